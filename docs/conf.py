"""Sphinx's settings for the documentation: `make docs` writes it into site/.

Every page opens from the disk and loads nothing from the network, its search included.
"""

project = "optprof"
html_title = "optprof"
html_theme = "furo"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"source_view_link": ""}
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3
# A missing page, heading or picture is an error in `make docs` and in tests/test_docs.py.
nitpicky = True
