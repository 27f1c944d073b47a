"""The programs of all pages run, and names, figures and links in them exist."""

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

from . import pages
from .cases import OPS, PUBLIC

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cuda_src/*.md"))
}
README, CONTRIBUTING, REFERENCE = PAGES["README.md"], PAGES["CONTRIBUTING.md"], PAGES["docs/reference.md"]
cupy = jit.usable_cupy()
FIRST, SECOND, *RECIPES = (block for block in pages.blocks(README) if block.kind == "python")
PROGRAM, ON_A_GPU = FIRST.text, SECOND.text
WITH_CODE = [
    name
    for name, text in PAGES.items()
    if name != "README.md" and {block.kind for block in pages.blocks(text)} & {"python", "sh"}
]
PEERS = ("dask", "jax", "torch")


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


def case(name, program, text):
    """With the other libraries that a program imports, for which the test is marked."""
    libraries = [library for library in PEERS if re.search(rf"(?m)^(import|from) {library}\b", text)]
    return pytest.param(program, libraries, marks=[pytest.mark.peer] * bool(libraries), id=name)


@pytest.mark.parametrize(
    ("recipe", "libraries"), [case(each.text.splitlines()[0], each, each.text) for each in RECIPES]
)
def test_readme_recipes_run(recipe, libraries):
    """Each on its own."""
    for library in libraries:
        pytest.importorskip(library)
    pages.run([recipe])


@pytest.mark.parametrize(("page", "libraries"), [case(name, name, PAGES[name]) for name in WITH_CODE])
def test_programs_of_pages_run(page, libraries, tmp_path, monkeypatch):
    """In order, each with what those before it left behind; their pictures are of the size of those shown."""
    for library in libraries:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    for folder in ("benchmarks", "docs", "examples", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    pages.run(pages.blocks(PAGES[page]))
    for picture in tmp_path.glob("*.png"):
        if (shown := (ROOT / page).with_name(picture.name)).exists():
            assert size(picture) == size(shown), picture.name


def size(picture):
    """Width and height of a PNG file."""
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    return [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)]


def test_troubleshooting_has_words_of_messages_that_there_are():
    """Parts of them, around what differs; but for those of Python and CuPy."""
    sources = "".join(path.read_text() for path in sorted(ROOT.glob("cuconv/**/*.py")))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    text = PAGES["docs/troubleshooting.md"]
    words = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \| ", text, re.MULTILINE)))
    assert len(words) > 30
    foreign = {"Out of memory allocating", "module 'cuconv' has no attribute"}
    for part in (part for each in {*words} - foreign for part in each.split("...")):
        for constant in re.split(r"'fft'|'tune'", part):
            assert constant.strip() in joined, part


def test_every_block_says_what_it_is():
    """Programs, commands, and text; in pages for Sphinx its own directives too."""
    for name, text in PAGES.items():
        kinds = {block.kind for block in pages.blocks(text)}
        assert kinds <= {"python", "sh", "text", "json", "{eval-rst}", "{toctree}"}, name


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nraise AssertionError\n```\n",
        "```sh\npython -m cuconv explain nonsense\n```\n",
        "```sh\npython examples/missing.py\n```\n",
        "```sh\nmake nothing\n```\n",
        "```sh\npython -c pass\n```\n\n```text\nall is well\n```\n",
        "```python\nx = 1\n```\nThen:\n```python\nprint(x + 1)\n```\n```text\n1...\n```\n",
    ],
    ids=range(7),
)
def test_a_page_that_does_not_do_what_it_says(page):
    with pytest.raises(AssertionError):
        pages.run(pages.blocks(page))


def test_readme_begins_with_the_picture_and_two_commands():
    assert README.index("docs/demo.png") < README.index("```sh")
    assert re.findall(r"^make \w+", README, re.MULTILINE) == ["make demo", "make test"]
    assert pages.blocks(README)[0].text.startswith("make demo")


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
