"""The example programs; README.md in this folder lists them all, with times and data."""
