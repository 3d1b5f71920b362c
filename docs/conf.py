"""How Sphinx makes the pages: `sphinx-build -W --keep-going -b html docs OUT`, extra `docs`."""

import os
import re
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import reflow_tf

project = "reflow_tf"
author = "The reflow_tf contributors"
release = version = reflow_tf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"reflow_tf {release}"
html_copy_source = False
exclude_patterns = ["_build"]

smartquotes = False  # --flag is no dash
default_role = "code"  # single backticks, as in Markdown
myst_heading_anchors = 3  # links to headings, as GitHub makes them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True


def escape_shapes(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """The star of a shape such as (n, *sample) begins no emphasis."""
    lines[:] = [re.sub(r", \*(?=\w+[,)])", r", \\*", line) for line in lines]


def setup(app: Any) -> None:
    """What Sphinx calls when it starts."""
    app.connect("autodoc-process-docstring", escape_shapes)
