"""Public docstrings: numpydoc's sections, the signature's arguments, text that renders, examples that run."""

import builtins
import doctest
import importlib
import inspect
import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numpydoc")
from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles
from numpydoc.docscrape import NumpyDocString
from numpydoc.docscrape_sphinx import get_doc_object
from sphinx.util.docutils import docutils_namespace

import cuconv

CORE = ("cuconv", "cuconv.nn")  # whose functions and classes all have an example
PEERS = [pytest.param(f"cuconv.{name}", marks=pytest.mark.peer) for name in ("torch", "jax", "dask")]
MODULES = [*CORE, "cuconv.cudnn", "cuconv.signal", "cuconv.ndimage", *PEERS]
WIDTH = 100


@dataclass(frozen=True)
class Documented:
    """Something public: a module, function or class, or, with the class it is a member of, its method."""

    name: str
    value: Any
    of: type | None = None

    @property
    def text(self):
        return inspect.getdoc(self.value) or ""

    @property
    def inherits(self):
        """Whether its docstring is that of the method it overrides, and checked there."""
        return self.of is not None and self.value.__doc__ is None

    @property
    def what(self):
        if inspect.ismodule(self.value) or inspect.isclass(self.value):
            return "module" if inspect.ismodule(self.value) else "class"
        return "function" if callable(self.value) else "attribute"

    @property
    def doc(self):
        """The docstring as numpydoc has it; what it warns of is an error."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return get_doc_object(self.value, self.what, self.text, {"show_class_members": False})

    def parameters(self):
        """The signature's names, `*args` and `**kwargs` with their stars."""
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        parameters = list(inspect.signature(self.value).parameters.values())
        if self.of and inspect.isfunction(inspect.getattr_static(self.of, self.value.__name__)):
            del parameters[0]  # self
        return [stars.get(each.kind, "") + each.name for each in parameters]


def documented(name):
    """A module, what is public in it, and the members that classes have from cuconv."""
    if name.rpartition(".")[2] in ("torch", "jax", "dask"):
        pytest.importorskip(name.rpartition(".")[2])
    module = importlib.import_module(name)
    defined = [each for each, value in vars(module).items() if getattr(value, "__module__", "") == name]
    found = [Documented(name, module)]
    for public in getattr(module, "__all__", [each for each in defined if each[0] != "_"]):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value):
            found.append(Documented(f"{name}.{public}", value))
        if inspect.isclass(value):
            found += members(value, f"{name}.{public}")
    assert len(found) > 4
    return found


def members(cls, name):
    ours = [base for base in cls.__mro__ if base.__module__.startswith("cuconv")]
    for member in sorted({member for base in ours for member in vars(base)}):
        if member[0] != "_" or member == "__call__":
            value = inspect.getattr_static(cls, member)
            if isinstance(value, classmethod | staticmethod):
                value = getattr(cls, member)
            if hasattr(type(value), "__get__"):  # a function or property, not the default of a field
                yield Documented(f"{name}.{member}", value, cls)


# -- sections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_sections(module):
    found = [f"{each.name}: {fault}" for each in documented(module) for fault in faults(each, module)]
    assert not found, "\n".join(found)


def faults(each, module):
    """What is wrong with a docstring, as far as its sections tell."""
    if not each.text or (each.what == "class" and not each.value.__doc__):
        return ["no docstring"]
    if each.inherits:
        return []
    try:
        doc = each.doc
    except (UserWarning, ValueError) as problem:
        return [str(problem)]
    found = []
    if len(doc["Summary"]) != 1 or not doc["Summary"][0].endswith("."):
        found.append("the summary must be one line that ends in a full stop")
    if long := [line for line in each.text.splitlines() if len(line) > WIDTH]:
        found.append(f"more than {WIDTH} characters: {long}")
    headers = re.findall(r"^(\S.*)\n-{3,}$", each.text, re.MULTILINE)
    if headers and each.what == "module":
        found.append(f"sections are for functions and classes, of a module's Sphinx makes titles: {headers}")
    if headers != sorted(headers, key=list(NumpyDocString.sections).index):
        found.append(f"sections are not in numpydoc's order: {headers}")
    for entry in doc["Raises"]:
        for name in entry.type.split(", "):
            if not issubclass(getattr(builtins, name, object), Exception):
                found.append(f"Raises has {name!r}, which is no exception of Python's")
    if each.what in ("function", "class"):
        found += faults_of_the_signature(each, doc)
    if module in CORE and each.of is None and each.what != "module" and ">>> " not in each.text:
        found.append("no example")
    return found


def faults_of_the_signature(each, doc):
    """A section for what goes in, what comes out, and what is raised.

    Nobody makes a Plan by hand: its fields are Attributes. A constructor that comes from another library, as
    those of PyTorch's modules, is documented there. Methods may leave it to their class what is raised.
    """
    names, section = each.parameters(), "Attributes" if each.value is cuconv.Plan else "Parameters"
    stated = [name for entry in doc[section] for name in re.split(", *", entry.name)]
    if each.what == "class" and not getattr(each.value.__init__, "__module__", "cuconv").startswith("cuconv"):
        names = stated and names
    if stated != names:
        yield f"{section} are {stated}, the signature has {names}"
    if names and section == "Parameters" and each.of is None and not doc["Raises"]:
        yield "it takes arguments, and there is no section Raises"
    if each.what == "function":
        returns = inspect.signature(each.value).return_annotation not in (None, "None")
        if returns != bool(doc["Returns"] or doc["Yields"]):
            yield f"a section Returns is {'missing' if returns else 'too much: it returns nothing'}"


# -- reStructuredText -------------------------------------------------------------------------------


class OfSphinx(Directive):
    """In place of a directive that docutils has not: its content is parsed all the same."""

    has_content, optional_arguments, final_argument_whitespace = True, 1, True

    def run(self):
        container = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, container)
        return [container]


@pytest.mark.parametrize("module", MODULES)
def test_rendering(module):
    with docutils_namespace():
        for name in ("autosummary", "index", "only", "seealso"):
            directives.register_directive(name, OfSphinx)
        for name in ("attr", "class", "doc", "func", "meth", "mod", "obj", "ref"):
            roles.register_generic_role(name, nodes.literal)
        own = [each for each in documented(module) if each.text and not each.inherits]
        found = [f"{each.name}: {fault}" for each in own if (fault := unrendered(each))]
    assert not found, "\n".join(found)


def unrendered(each):
    """What docutils warns of, in the text that numpydoc makes, and what became a quotation."""
    problems = io.StringIO()
    try:
        text = each.text if each.what == "module" else str(each.doc)
    except (UserWarning, ValueError) as problem:
        return str(problem)
    tree = publish_doctree(text, settings_overrides={"report_level": 2, "warning_stream": problems})
    quoted = [
        f"a formula without '::' before it: {node.astext()}" for node in tree.findall(nodes.block_quote)
    ]
    return problems.getvalue() + "\n".join(quoted)


# -- examples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    """Each docstring's, in order, with `np` and `cuconv` imported and nothing else."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output = []
    for each in documented(module):
        if not each.inherits:
            scope = {"np": np, "cuconv": cuconv}
            runner.run(
                doctest.DocTestParser().get_doctest(each.text, scope, each.name, None, None),
                out=output.append,
            )
    assert not runner.failures, "".join(output)
    assert runner.tries or module not in CORE
