"""Programs that use mnvi; see examples/README.md."""
