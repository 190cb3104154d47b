"""What sparsify.py and the papers' experiments share: data, networks, checkpoints, command lines, figures."""
