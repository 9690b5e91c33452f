"""Sphinx: the site is built by `make docs` into docs/_build/html."""

project = "globalcnn"
author = "the globalcnn maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "globalcnn"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
nitpicky = False
# the page of formulas is served by the browser's own rendering of MathJax; nothing is fetched at build time
