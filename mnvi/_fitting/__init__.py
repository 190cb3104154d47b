"""The parts of :func:`mnvi.fit`: examples by number, models that train together, one training, what is saved of it."""
