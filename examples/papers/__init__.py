"""The experiments of the papers: ``python -m examples.papers.copying --help``, and so on."""
