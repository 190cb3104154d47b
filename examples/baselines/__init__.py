"""What people use to know what a network does not know, one method a file; none of them knows what the inputs are.

Each function trains (or converts) a network and returns its draws: see :mod:`examples.baselines.draws`.
"""
