"""The package as others get it: the wheel in an empty environment, the Dockerfile outside Docker."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cuconv.cuda.device import KNOWN

ROOT = Path(__file__).parents[1]
WORKDIR = "/opt/cuconv"
"""Where the Dockerfile's commands run."""


def sh(*command, cwd=None, **environment):
    run = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}, timeout=900
    )
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def fresh_environment(folder):
    """An empty virtual environment and the variables that make its commands the first ones found."""
    sh(sys.executable, "-m", "venv", str(folder))
    return dict(
        PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", VIRTUAL_ENV=str(folder), PYTHONPATH=""
    )


def dockerfile():
    """The Dockerfile's instructions as (name, arguments)."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_dockerfile_is_pinned_and_not_root():
    pins = [
        line
        for line in (ROOT / "docker/requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert pins
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins)
    instructions = dict(dockerfile())
    assert instructions["USER"] == "1000:1000"
    assert instructions["VOLUME"] == "/cache"
    assert {name for name, _ in dockerfile()} <= {
        "FROM", "WORKDIR", "COPY", "ARG", "RUN", "ENV", "VOLUME", "USER", "ENTRYPOINT", "CMD",
    }  # fmt: skip


def test_dockerfile_compiles_for_architectures_that_there_are():
    """Into a folder that no volume hides, before anybody else than root runs."""
    (architectures,) = (arguments for name, arguments in dockerfile() if name == "ARG")
    name, _, value = architectures.partition("=")
    (compiles,) = (arguments for _, arguments in dockerfile() if arguments.startswith("cuconv compile"))
    assert f"${name}" in compiles
    assert {int(arch[3:]) for arch in shlex.split(value)[0].split()} <= set(KNOWN)
    (carried,) = (value for name, value in dockerfile() if value.startswith("CUCONV_KERNEL_DIR="))
    assert carried.partition("=")[2] == f"{WORKDIR}/{compiles.split()[-1]}"
    assert not carried.startswith("CUCONV_KERNEL_DIR=/cache")


def test_pins_satisfy_the_package():
    tomllib = pytest.importorskip("tomllib")

    packaging = pytest.importorskip("packaging.requirements")
    pins = dict(
        line.split("==")
        for line in (ROOT / "docker/requirements.txt").read_text().splitlines()
        if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["cuda12"]
    for text in needed + project["build-system"]["requires"]:
        requirement = packaging.Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name]), text


@pytest.mark.packaging
def test_dockerfile_commands_run_outside_docker(tmp_path):
    """COPY into a folder, RUN in a fresh environment, then the entry point with its default argument.

    What was compiled then is what a later call looks for: it is found again, and nothing is compiled.
    """
    image, environment = tmp_path / "image", fresh_environment(tmp_path / "venv")
    image.mkdir()
    entry = {}
    for name, arguments in dockerfile():
        if name == "COPY":
            *sources, target = [word for word in arguments.split() if not word.startswith("--")]
            place = image / target.lstrip("/")
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    (place / "x" if target.endswith("/") else place).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, place)
        elif name == "RUN":
            sh("sh", "-c", arguments, cwd=image, **environment)
        elif name == "ARG":
            key, _, value = arguments.partition("=")
            environment[key] = "sm_80" if key == "ARCHITECTURES" else shlex.split(value)[0]
        elif name == "ENV":
            key, value = arguments.split("=")
            environment[key] = str(image / value.removeprefix(WORKDIR).lstrip("/"))
        elif name in ("ENTRYPOINT", "CMD"):
            entry[name] = eval(arguments)
    for sources in ("cuconv", "cuda_src"):
        shutil.rmtree(image / sources)
    text = sh(*entry["ENTRYPOINT"], *entry["CMD"], cwd=tmp_path, **environment)
    assert "all within their bounds" in text
    found = json.loads(sh(*entry["ENTRYPOINT"], "info", "--json", cwd=tmp_path, **environment))
    assert found["kernel_cache"] == found["tuned"]["folder"] == str(image / "cache")
    assert found["kernels_ahead"] == str(image / "kernels")
    command = ("compile", "n4c64h56w56 k64r3s3 p1", "--device", "sm_80", "--out", str(image / "kernels"))
    again = json.loads(sh(*entry["ENTRYPOINT"], *command, "--json", cwd=tmp_path, **environment))
    assert (again["compiled"], again["failed"]) == (0, 0)
    assert again["kept"] > 0


@pytest.mark.parametrize(("driver", "extras"), [("11.8", ""), ("12.4", ",cuda12"), ("13.0", ",cuda13")])
def test_make_picks_the_extra_that_fits_the_driver(tmp_path, driver, extras):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '| Driver Version: 1.2   CUDA Version: {driver}     |'\n")
    smi.chmod(0o755)
    plan = sh("make", "-n", "-B", "demo", cwd=ROOT, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert f"'.[demo{extras}]'" in plan


def test_import_beside_the_source_tree(tmp_path):
    """A script in the folder that holds the source tree, itself called cuconv, imports the package."""
    if not any(importlib.metadata.distributions(name="cuconv")):
        pytest.skip("cuconv is run from its source tree here, not installed")
    (tmp_path / "cuconv").symlink_to(ROOT)
    program = "import cuconv; print(cuconv.conv.__name__)"
    assert sh(sys.executable, "-c", program, cwd=tmp_path).strip() == "conv"


@pytest.mark.packaging
def test_wheel_in_an_empty_environment(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "dist"))
    sh(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cuconv/py.typed" in names
    sources = {f"cuconv/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "cuda_src").rglob("*.cuh")}
    assert "cuconv/cuda_src/ptx/base.cuh" in sources <= set(names)
    assert {name.split("/")[0] for name in names} == {"cuconv", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    environment = fresh_environment(tmp_path / "venv")
    sh("pip", "install", "--quiet", str(wheel), cwd=tmp_path, **environment)
    installed = sh("pip", "list", "--format", "freeze", cwd=tmp_path, **environment)
    packages = {line.split("==")[0] for line in installed.splitlines()}
    assert packages <= {"cuconv", "numpy", "ml_dtypes", "threadpoolctl", "pip", "setuptools"}
    assert "all within their bounds" in sh("cuconv", "check", cwd=tmp_path, **environment)
    assert "pip install 'cuconv[demo]'" in sh("cuconv", "info", cwd=tmp_path, **environment)
    if sys.platform == "linux":
        compile_from_the_installed_sources(tmp_path, environment)


def compile_from_the_installed_sources(folder, environment):
    """A kernel is found and compiled where the wheel put it, by NVRTC and nothing else."""
    sh("pip", "install", "--quiet", "nvidia-cuda-nvrtc-cu12>=12.8,<13", cwd=folder, **environment)
    program = f"""
import sys
sys.path.append({str(ROOT)!r})  # behind the installed package, for the tests' compiler only
from cuconv.cuda import algorithms, jit
from tests import compiler
assert jit.SOURCES.is_relative_to({str(folder)!r}), jit.SOURCES
made = compiler.report_kernel(algorithms.kernels()[-1], 80)
print(made.registers, made.problems)
"""
    registers, problems = sh("python", "-c", program, cwd=folder, **environment).split(maxsplit=1)
    assert int(registers) > 0
    assert problems.strip() == "[]"
