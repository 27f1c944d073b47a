"""Files that are kept from one process to the next, in folders that others may write to as well.

What is kept is a memory, never a truth: whoever reads checks all of it, and what cannot be kept is made
again, so that no call fails for the sake of a file. A file is written under a name that nobody can guess and
then put in its place: readers see the old one or the new one whole, writers do not wait for one another, and
what else has its name, a link or a pipe, is replaced and never written through.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
import sys
import time
import warnings
from pathlib import Path

# No link is followed, and no pipe waited for. What a system does not have counts as zero.
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))

# On Windows nothing is replaced while somebody reads it.
_PAUSES = (0.01, 0.1, 1.0) if sys.platform == "win32" else ()


def read(path: Path, most: int) -> bytes | None:
    """What is in a file; None unless it is a regular one of at most so many bytes that can be read."""
    try:
        number = os.open(path, _READ)
    except OSError:
        return None
    try:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most:
            return None
        with open(number, "rb", closefd=False) as file:
            return file.read(most)
    except OSError:
        return None
    finally:
        os.close(number)


def write(path: Path, content: bytes) -> None:
    """Put a file with this content in the place of what has its name; OSError where that cannot be done.

    Its folder is made where it is missing. Whatever fails or interrupts, nothing unfinished is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(unfinished, "xb") as file:  # a new file, with the rights that the user gives to new files
            file.write(content)
        _replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _replace(new: Path, path: Path) -> None:
    for pause in _PAUSES:
        try:
            os.replace(new, path)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(new, path)


@functools.cache
def warn(message: str) -> None:
    """Say, once per process, that something cannot be kept. The caller's work goes on, and is not half done.

    Where warnings are errors, this one is shown all the same and not raised.
    """
    try:
        warnings.warn(message, stacklevel=2)
    except UserWarning as warning:
        warnings.showwarning(warning, UserWarning, __file__, 0)
