"""The site of the documentation: `make docs` builds it with Sphinx into build/docs, without a network."""

import retro_demo

project = "retro_demo"
author = "the authors of retro_demo"
version = release = retro_demo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
exclude_patterns = ["notebook.ipynb"]  # linked to as a file: it is run by who opens it
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"retro_demo {version}"
html_show_copyright = False
html_copy_source = False
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository that are no pages of the site
    "misc.highlighting_failure",  # GitHub draws the diagram of architecture.md; here it stands as text
    "ref.python",  # two classes may have a field of the same name
]
