"""Settings of the documentation's build: `make docs`."""

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import surefoot

project = "surefoot"
author = copyright = "The surefoot contributors"
release = version = surefoot.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "cli_reference",
    "docstrings",
    "repository_links",
]
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = f"surefoot {release}"
html_static_path = ["_static"]
html_css_files = ["figures.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute the notebooks; the site shows the outputs that are in them
suppress_warnings = ["misc.highlighting_failure"]  # examples of TRL's output in code blocks
lexers["mermaid"] = TextLexer()

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "code"
copybutton_prompt_text = "$ "
