"""python -m benchmarks.sizes: the bytes that cuconv and its alternatives download and unpack, to sizes.json.

pip says which wheels it would install for this Python and platform, from the index that it is configured to
use. It fetches none of them: of each only the end is read, where an archive lists its contents. With names as
arguments those installs are measured again, and the others stay as they are.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from datetime import date
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "sizes.json"
TAIL = 2**23
INSTALLS = {
    "cuconv": ["{wheel}"],
    "cuconv, CUDA 12": ["{wheel}[cuda12]"],
    "cuconv, CUDA 13": ["{wheel}[cuda13]"],
    "SciPy": ["scipy"],
    "JAX": ["jax"],
    "JAX, CUDA 13": ["jax[cuda13]"],
    "PyTorch, CPU build": ["torch==2.13.0+cpu"],
    "PyTorch": ["torch"],
    "CuPy 13 with cuDNN": ["cupy-cuda12x<14", "nvidia-cudnn-cu12<9"],
}
"""What is asked for. PyTorch's CPU build is on an index of its own; CuPy 13, the last with cuDNN, knows 8."""


def measured(url: str) -> dict[str, str | int]:
    """A wheel's file, its size, and that of what is in it."""
    with urlopen(Request(url, headers={"Range": f"bytes=-{TAIL}"})) as answer:
        end = answer.read()
        _, _, size = answer.headers.get("Content-Range", "").rpartition("/")
    with zipfile.ZipFile(io.BytesIO(end)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    return {"file": url.rpartition("/")[2], "download": int(size or len(end)), "unpacked": unpacked}


def main(names: list[str]) -> int:
    """Measure the installs of these names, or all."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    where = {"python": platform.python_version(), "platform": sysconfig.get_platform()}
    with tempfile.TemporaryDirectory() as folder:
        report, environment = Path(folder) / "report.json", {**os.environ, "PYTHONPATH": f"{folder}/pip"}

        def pip(*arguments: str) -> bool:
            command = [sys.executable, "-m", "pip", "-qq", *arguments]
            return subprocess.run(command, cwd=folder, env=environment).returncode == 0

        pip("install", "--target", f"{folder}/pip", "pip>=26")  # older ones fetch what they would install
        pip("wheel", "--no-deps", "--wheel-dir", folder, str(ROOT))
        (own,) = Path(folder).glob("cuconv-*.whl")
        only = ("--ignore-installed", "--only-binary=:all:", "--use-feature=fast-deps", f"--report={report}")
        for name in names or INSTALLS:
            if pip("install", "--dry-run", *only, *(line.format(wheel=own) for line in INSTALLS[name])):
                found = [entry["download_info"]["url"] for entry in json.loads(report.read_text())["install"]]
                record[name] = {"date": str(date.today()), **where, "wheels": [*map(measured, found)]}
                print(name, *(f"{total(record[name], key):,} {key}" for key in ("download", "unpacked")))
    kept = {name: record[name] for name in INSTALLS if name in record}
    RECORD.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


def total(install: dict, key: str) -> int:
    """The sum over an install's wheels."""
    return sum(wheel[key] for wheel in install["wheels"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
