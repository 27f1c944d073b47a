"""The README's program runs, and names, figures and links of all pages exist."""

import collections
import json
import math
import re
import statistics
from pathlib import Path

import pytest

import cuconv
from benchmarks import sizes
from benchmarks.record import all_records
from cuconv import nn
from cuconv.cpu import TABLE, blocking
from cuconv.cuda import algorithms, jit
from cuconv.dtypes import DTYPES, INTEGERS
from cuconv.plan import TABLES
from cuconv.problem import ACTIVATIONS, MODES_ELSEWHERE, PADDING_MODES, PADDING_NAMES

from .cases import OPS, PUBLIC

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
README, CONTRIBUTING, REFERENCE = PAGES["README.md"], PAGES["CONTRIBUTING.md"], PAGES["docs/reference.md"]
cupy = jit.usable_cupy()
PROGRAM, ON_A_GPU, *RECIPES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ADAPTERS = ("docs/cudnn.md", "docs/dask.md", "docs/jax.md", "docs/scipy.md", "docs/torch.md")


def test_readme_program_runs(capsys):
    scope = run(PROGRAM)
    assert "n8c3h32w32 k16r5s5 sh2sw2 p1:2\n" in capsys.readouterr().out
    dz = scope["y"] > 0  # of the loss y.sum()
    for gradient, expected in zip(
        (scope["dx"], scope["dw"], scope["db"]),
        cuconv.conv_backward(dz.astype("float32"), scope["x"], scope["w"], stride=2, padding="same"),
        strict=True,
    ):
        assert (gradient == expected).all()


def run(program):
    """What a program leaves behind, if the shapes in it are right."""
    scope = {}
    exec(program, scope)
    assert scope["y"].shape == (8, 16, 16, 16)
    assert scope["up"].shape == scope["x"].shape == scope["dx"].shape
    assert scope["dw"].shape == scope["w"].shape
    return scope


def test_readme_program_for_a_gpu_differs_in_two_lines(capsys):
    first, rest, last = filter(None, ON_A_GPU.splitlines())
    assert rest == "..."
    assert first.replace("cupy", "numpy") == PROGRAM.splitlines()[0]
    assert last.replace(', backend="cuda"', "") == PROGRAM.splitlines()[-1]
    exec("import cuconv\n" + last, run(PROGRAM))
    assert "algorithm  mma on " in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(cupy is None, reason="there is no GPU that CuPy can use")
def test_readme_program_runs_on_a_gpu():
    first, *_, last = ON_A_GPU.splitlines()
    scope = run("\n".join([first, *PROGRAM.splitlines()[1:-1], last]))
    assert isinstance(scope["dx"], cupy.ndarray)


@pytest.mark.peer
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.splitlines()[0])
def test_readme_recipes_run(recipe):
    library = re.match(r"import ([a-z]+)", recipe)[1]
    pytest.importorskip(library)
    exec(recipe, {})


@pytest.mark.peer
@pytest.mark.parametrize("page", ADAPTERS)
def test_programs_of_the_adapters_pages_run(page):
    """In order, each with what those before it left behind."""
    programs = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    for library in ("dask", "jax", "torch"):
        if any(f"import {library}" in program for program in programs):
            pytest.importorskip(library)
    scope = {}
    for program in programs:
        exec(program, scope)


def test_readme_begins_with_the_picture_and_two_commands():
    assert README.index("docs/demo.png") < README.index("```")
    assert re.findall(r"^make \w+", README, re.MULTILINE) == ["make demo", "make test"]
    assert re.search(r"```\n(.*?)```", README, re.DOTALL)[1].startswith("make demo")


def test_readme_states_the_sizes_that_were_measured():
    """Each install's bytes in MB or GB, in the table of installs or of alternatives."""
    record = json.loads(sizes.RECORD.read_text())
    assert list(record) == list(sizes.INSTALLS)
    for name, install in record.items():
        download, unpacked = (words(sizes.total(install, key)) for key in ("download", "unpacked"))
        together = (f"{download}, {unpacked}", f"| {download} | {unpacked} |")
        assert any(text in README for text in together), (name, *together)
        assert install["platform"] == "linux-x86_64"
        assert "3." + install["python"].split(".")[1] in README
        assert not [wheel for wheel in install["wheels"] if "/" in wheel["file"]]


def words(size):
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def test_the_wheels_that_are_measured_are_what_the_package_asks_for():
    """A dependency that comes or goes makes the record old."""
    asked = set(
        re.findall(
            r'"([\w-]+)', re.search(r"^dependencies = (.*)$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
        )
    )
    wheels = json.loads(sizes.RECORD.read_text())["cuconv"]["wheels"]
    assert {wheel["file"].split("-")[0] for wheel in wheels} == asked | {"cuconv"}
    assert not [name for name in asked if name.lower() not in README.lower()]


def test_the_reference_names_everything_public():
    public = [
        *cuconv.__all__,
        *(name for name, value in vars(nn).items() if getattr(value, "__module__", "") == nn.__name__),
    ]
    names = [name for name in public if name[0] != "_" and name != "Layer"]
    assert [name for name in names if f"`{name}`" not in REFERENCE] == []
    entries = [
        entry.name
        for table in (TABLE, algorithms.TABLE)
        for op in ("fprop", "dgrad", "wgrad")
        for entry in table[op]
    ]
    assert [name for name in entries if f"`{name}`" not in REFERENCE] == []


def test_the_reference_states_the_workspace():
    assert f"blocks of {blocking.WORKSPACE >> 20} MiB for each thread" in REFERENCE


def test_every_choice_is_documented():
    choices = (*ACTIVATIONS[1:], *PADDING_MODES, *PADDING_NAMES, *DTYPES, *INTEGERS)
    for text in (REFERENCE, cuconv.conv.__doc__):
        assert [name for name in choices if not re.search(rf"\b{name}\b", text)] == []
    assert [name for name in PADDING_MODES if not re.search(rf"\b{name}\b", README)] == []


def test_other_libraries_words_for_padding_modes():
    rows = re.findall(r'^\| `"(\w+)"` \| .* \| (.*) \|$', REFERENCE, re.MULTILINE)
    assert [mode for mode, _ in rows] == list(PADDING_MODES)
    for mode, elsewhere in rows:
        for word in re.findall(r"`(\w+)`", elsewhere):
            assert word == "reflect" or MODES_ELSEWHERE[word][1] == mode  # ndimage's reflect is a mode here


def test_links_and_files_exist():
    for name, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (ROOT / name).parent.joinpath(link).exists(), (name, link)
        assert name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") or f"]({name})" in README, name
    for room in re.findall(r"^\| `([^|]+)` \|", CONTRIBUTING, re.MULTILINE):
        first, *rest = room.replace("`", "").split(", ")
        for path in [Path(first), *(Path(first).parent / name for name in rest)]:
            assert (ROOT / path).exists(), path


def test_the_rooms_are_all_there():
    """Every file of the package has a row, its own or its folder's."""
    rooms = re.findall(r"^\| `([^|]+)` \|", CONTRIBUTING, re.MULTILINE)
    named = {
        (Path(first).parent / name).as_posix()
        for first, *rest in (room.replace("`", "").split(", ") for room in rooms)
        for name in (Path(first).name, *rest)
    }
    files = {path.relative_to(ROOT) for path in ROOT.glob("cuconv/**/*.py") if path.stem[0] != "_"}
    assert [path for path in sorted(files) if not {path.as_posix(), path.parent.as_posix()} & named] == []


def test_a_call_goes_through_files_that_there_are():
    """Those in the diagram; a file's folder is the last one named before it."""
    assert (
        CONTRIBUTING.index("## Setting up")
        < CONTRIBUTING.index("## A call")
        < CONTRIBUTING.index("## The rooms")
    )
    diagram = CONTRIBUTING.partition("## A call")[2].split("```")[1]
    folder = Path()
    for name in re.findall(r"[\w/]+\.(?:py|cuh)\b", diagram):
        folder = Path(name).parent if "/" in name else folder
        path = folder / Path(name).name
        assert (
            (ROOT / path).exists() or (ROOT / "cuconv" / path).exists() or (ROOT / "cuconv" / name).exists()
        ), name


def test_commands_name_the_environment_they_need():
    """Its Python, since another has neither the package nor the tests' libraries."""
    elsewhere = r"(?<!\.venv/bin/)(?<!\.venv/bin/python -m )\b"
    command = elsewhere + r"(?:python3?|pytest|pre-commit|ruff|mypy) (?:-m|install|check)\b.*"
    for page in (CONTRIBUTING, PAGES["docs/testing.md"]):
        assert re.findall(command, page) == []


def test_every_public_function_is_documented():
    for name in cuconv.__all__:
        assert (getattr(cuconv, name).__doc__ or "").strip(), name


def test_help_names_the_algorithms_of_both_backends():
    """Those of the function's own op, and no others."""
    names = {name for tables in TABLES.values() for op in OPS for name in [e.name for e in tables[op]]}
    for op in OPS:
        here = {entry.name for tables in TABLES.values() for entry in tables[op]}
        assert {name for name in names if f'"{name}"' in PUBLIC[op].__doc__} == here


def worth(record, family, op):
    """How many times as long suites would take without a family, or its op, by (suite, dtype): means."""
    logarithms = collections.defaultdict(list)
    for row in record.rows.values():
        seconds = {timing.contender: timing.median_s for timing in row.ours if timing.median_s}
        rest = [time for name, time in seconds.items() if name != family or op not in ("", row.key.op)]
        logarithms[row.key.suite, row.key.dtype].append(math.log(min(rest) / min(seconds.values())))
    return {suite: math.exp(statistics.fmean(values)) for suite, values in logarithms.items()}


def test_what_each_family_is_worth_is_what_the_records_say():
    """Every suite that would take 1.05 times as long or longer is there, with that number, and no other."""
    table = re.findall(
        r"^\| (?:(\w+) of )?`(\w+)` \| (.*) \| (.*) \|$", PAGES["docs/performance.md"], re.MULTILINE
    )
    assert {family for op, family, *_ in table if not op} == {
        entry.name for op in OPS for entry in TABLE[op] if entry.exact
    }
    records = [record for record in all_records().values() if record.environment.device == "cpu"]
    assert len(records) == 2
    for op, family, *cells in table:
        for record, cell in zip(records, cells, strict=True):
            found = worth(record, family, op)
            rests = {suite: f"{times:.2f}" for suite, times in found.items() if round(times, 2) >= 1.05}
            stated = re.findall(r"(\w+)(?: \((\w+)\))? ([\d.]+)", cell)
            assert {(suite, dtype or "float32"): times for suite, dtype, times in stated} == rests
