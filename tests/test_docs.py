"""The README's program runs, and its names and links exist."""

import re
from pathlib import Path

import cuconv
from cuconv.cpu import blocking
from cuconv.dtypes import DTYPES
from cuconv.problem import ACTIVATIONS, PADDING_MODES

ROOT = Path(__file__).parents[1]


def test_readme_program_runs(capsys):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scope = {}
    exec(program, scope)
    assert scope["y"].shape == (8, 16, 16, 16)
    assert scope["up"].shape == scope["x"].shape == scope["dx"].shape
    assert scope["dw"].shape == scope["w"].shape
    assert "n8c3h32w32 k16r5s5 sh2sw2 p1:2\n" in capsys.readouterr().out


def test_readme_names_every_public_function():
    text = (ROOT / "README.md").read_text()
    for name in ("conv1d/2d/3d", "conv_transpose1d/2d/3d"):
        stem = name.partition("1d")[0]
        text = text.replace(name, " ".join(f"`{stem}{rank}d`" for rank in (1, 2, 3)))
    functions = [name for name in cuconv.__all__ if name[0].islower()]
    assert [name for name in functions if f"`{name}`" not in text] == []


def test_readme_states_the_workspace():
    text = (ROOT / "README.md").read_text()
    assert f"blocks of {blocking.WORKSPACE >> 20} MiB for each thread" in text


def test_links_and_files_exist():
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / link).exists(), link
    for room in re.findall(r"^\| `([^|]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE):
        first, *rest = room.replace("`", "").split(", ")
        folder = Path(first).parent
        for name in [first, *rest]:
            assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name


def test_commands_name_the_environment_they_need():
    """Its Python, since another has neither the package nor the tests' libraries."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert (
        re.findall(
            r"(?<!\.venv/bin/)\b(?:python3?|pytest|pre-commit|ruff|mypy) (?:-m|install|check)\b.*", text
        )
        == []
    )
    assert text.index("## Setting up") < text.index("## The rooms")


def test_every_choice_is_documented():
    text = (ROOT / "README.md").read_text()
    choices = (*ACTIVATIONS[1:], *PADDING_MODES, *DTYPES)
    assert [name for name in choices if not re.search(rf"\b{name}\b", text)] == []
    assert [name for name in choices if not re.search(rf"\b{name}\b", cuconv.conv.__doc__)] == []


def test_every_public_function_is_documented():
    for name in cuconv.__all__:
        assert (getattr(cuconv, name).__doc__ or "").strip(), name
