"""The same numbers as rows and cells, for the page, the terminal and Markdown."""
