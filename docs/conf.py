"""How Sphinx makes the pages of this folder into a site: make docs."""

import importlib.util
import os
import re
from pathlib import Path

from docutils import nodes

from cuconv import __version__

ROOT = Path(__file__).parents[1]

project, author, release = "cuconv", "the cuconv developers", __version__
copyright = author
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]

html_theme = "furo"
html_title = f"cuconv {release}"
html_copy_source = False

# As on GitHub: a link to a heading is its words with hyphens, and formulas stand between dollars.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# An adapter whose library is missing is described all the same. Its operators need JAX itself.
autodoc_mock_imports = [
    mocked
    for library, *inner in (("dask",), ("jax", "cuconv.jax.operators"), ("torch",))
    if not importlib.util.find_spec(library)
    for mocked in (library, *inner)
]
autodoc_typehints = "none"  # the sections Parameters and Returns have the types
numpydoc_show_class_members = False

ELSEWHERE = {
    "index": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "kernel-sources": "cuda_src/README.md",
}
"""Pages whose text is a file elsewhere. What they have here, a list of contents, comes below it."""


def read(app, name, source):
    """Bring in the text of a page from elsewhere, and have links point to that page instead of the file."""
    here, page = Path("docs", name).parent, {file: f"docs/{name}.md" for name, file in ELSEWHERE.items()}
    file = ELSEWHERE.get(name)
    folder = Path(file).parent if file else here
    text = f"{(ROOT / file).read_text()}\n{source[0]}" if file else source[0]

    def moved(link):
        target = os.path.normpath(folder / link[1])
        return f"]({os.path.relpath(page.get(target, target), here)}{link[2]})"

    source[0] = re.sub(r"\]\((?!https:|#)([^)#\s]+)(#[^)]*|)\)", moved, text)


def numbered(app, doctree, name):
    """Show citations by the numbers that docstrings give them, not by the names that numpydoc does."""
    for reference in doctree.findall(nodes.reference):
        if number := re.fullmatch(r"\[R[0-9a-f]{12}-(\w+)\]", reference.astext()):
            reference.children = []
            reference += nodes.inline("", f"[{number[1]}]")


def setup(app):
    """Have pages changed where they are read, and where they are written."""
    app.connect("source-read", read)
    app.connect("doctree-resolved", numbered)
