"""How Sphinx builds the documentation: ``make docs``, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))
sys.path.insert(0, str(HERE / "_extensions"))

from health_ml import __version__  # noqa: E402  the path has to be set first

project = "health_ml"
author = "The health_ml developers"
project_copyright = "The health_ml developers, MIT license"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "flag_tables"]
exclude_patterns = ["_build"]
smartquotes = False  # they would turn the dashes of flags into one long dash

html_theme = "alabaster"
html_theme_options = {
    "description": "Run PyTorch Lightning containers anywhere",
    "fixed_sidebar": True,
    "page_width": "1100px",
}

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
