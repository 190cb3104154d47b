"""Tests of the parts of ``mnvi.fit``."""
