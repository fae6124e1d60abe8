"""Numbers as rows and cells, for every medium."""
