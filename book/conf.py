"""The course as a site: `make book` writes it to build/book, and needs no network to be read or searched.

Sphinx reads notebooks with the outputs that are stored in them (myst-nb); MathJax comes from a wheel.
"""

import re
from html import unescape
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).parents[1]

project = "CS-RLHF Kit"
author = "the CS-RLHF Kit's authors"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
root_doc = "book/index"
include_patterns = ["book/index.md", "docs/*.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [name.name for name in ROOT.glob(".*")] + [
    "build",
    "runs",
    "data",
    "student",
    "csrlhf_kit",
    "tests",
]

html_theme = "sphinx_book_theme"
html_title = "CS-RLHF Kit: constrained RLHF, from the labels to the audit"
html_theme_options = {"use_download_button": False, "navigation_with_keys": True, "navbar_persistent": []}
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_extra_path = ["index.html"]  # leads from the site's root to its first page
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser forbids on a disk
html_show_sphinx = False

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")
suppress_warnings = [
    "mystnb.unknown_mime_type",  # a figure's interactive form; the page shows its SVG
    "myst.header",
    "myst.xref_missing",  # links to files that only the repository holds
    "toc.not_included",
]


def describe(app, doctree) -> None:
    """Give every figure the description that its SVG carries as its title, for readers who cannot see it."""
    for image in doctree.findall(nodes.image):
        drawn = Path(app.srcdir) / image["uri"].lstrip("/")
        if not drawn.exists():
            drawn = Path(image["uri"])
        if drawn.suffix == ".svg" and drawn.exists():
            title = re.search(r"<title>(.*?)</title>", drawn.read_text(encoding="utf-8"), re.DOTALL)
            image["alt"] = unescape(title[1]) if title else image.get("alt", "")


def setup(app) -> None:
    app.connect("doctree-read", describe)
