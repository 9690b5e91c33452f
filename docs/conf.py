"""Sphinx: the site is built by `make docs` into docs/_build/html."""

import re

project = "globalcnn"
author = "the globalcnn maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "globalcnn"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
html_show_copyright = False

default_role = "code"


def _as_rst(app, what, name, obj, options, lines):  # Sphinx calls it with these
    """Docstrings here are plain text; a line `name: meaning`, with indented continuation, becomes an item."""
    item = re.compile(
        r"^(?!Source|Parameters|Raises|Returns)([A-Za-z_*][\w*]*(?:, [A-Za-z_*][\w*]*)*): (\S.*)$"
    )
    made = []
    inside = False
    for i, line in enumerate(lines):
        ruled = i + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[i + 1])
        if re.fullmatch(r"-{3,}", line):
            continue
        match = item.match(line)
        if ruled:
            made += ["", f"**{line}**", ""]
            inside = False
        elif match:
            if not inside:
                made.append("")
            made.append(f"* `{match[1]}`: {match[2]}")
            inside = True
        elif inside and line.strip():  # the item goes on until an empty line
            made.append("  " + line.strip())
        else:
            inside = False
            made.append(line)
    lines[:] = made


def setup(app):
    """Register the translation of docstrings."""
    app.connect("autodoc-process-docstring", _as_rst)
