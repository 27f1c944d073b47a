"""Files kept from one process to the next: nothing else is read or overwritten, nothing is left over."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cuconv import kept

links = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are for the superuser there")


@pytest.fixture
def path(tmp_path):
    """A file that is not there, in a folder that is not there."""
    return tmp_path / "new/folder/file"


def soon(work, *arguments):
    """What work(*arguments) returns; a failure where it hangs."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work(*arguments)), daemon=True)
    thread.start()
    thread.join(20)
    assert results, "it hangs"
    return results[0]


def test_what_is_written_is_read(path):
    assert kept.read(path, 100) is None
    for content in (b"first", b"", b"\0\r\n\xff\x1a"):
        kept.write(path, content)
        assert kept.read(path, 100) == content
    assert os.listdir(path.parent) == ["file"]


def test_as_many_bytes_as_were_asked_for_are_read_and_no_more(path):
    kept.write(path, bytes(100))
    assert kept.read(path, 100) == bytes(100)
    assert kept.read(path, 99) is None
    os.truncate(path, 1 << 40)
    assert kept.read(path, 100) is None


@pytest.mark.skipif(sys.platform == "win32", reason="there is no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_user_says_who_may_read(path, umask):
    before = os.umask(umask)
    try:
        kept.write(path, b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@links
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_planted_link_does_not_lead_to_what_is_precious(path, tmp_path, link):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    path.parent.mkdir(parents=True)
    link(precious, path)
    if link is os.symlink:
        assert kept.read(path, 100) is None
    kept.write(path, b"content")
    assert precious.read_bytes() == b"precious"
    assert not path.is_symlink()
    assert kept.read(path, 100) == b"content"


@links
def test_a_link_to_nothing_makes_nothing(path, tmp_path):
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    assert kept.read(path, 100) is None
    kept.write(path, b"content")
    assert not (tmp_path / "elsewhere").exists()


@links
def test_a_pipe_is_not_waited_for(path):
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert soon(lambda: [kept.read(path, 100)]) == [None]
    soon(lambda: [kept.write(path, b"content")])
    assert kept.read(path, 100) == b"content"


@links
def test_a_device_is_not_read(path):
    assert soon(lambda: [kept.read(Path("/dev/zero"), 100)]) == [None]
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/zero")
    assert soon(lambda: [kept.read(path, 100)]) == [None]


def test_a_folder_of_that_name_is_left_alone(path):
    path.mkdir(parents=True)
    (path / "within").write_bytes(b"precious")
    assert kept.read(path, 100) is None
    with pytest.raises(OSError):  # noqa: PT011
        kept.write(path, b"content")
    assert [file.name for file in path.parent.rglob("*")] == ["file", "within"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_file_stays_open(path):
    path.mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        kept.read(path, 100)
        kept.read(path.parent / "missing", 100)
        kept.read(Path(__file__), 1)
        kept.write(path.parent / "other", b"content")
    assert len(os.listdir("/proc/self/fd")) == before


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Failing:
    """A file that fails, or is interrupted, in one of its steps."""

    def __init__(self, file, step, error):
        self.file, self.step, self.error = file, step, error

    def __enter__(self):
        return self

    def write(self, content):
        self.file.write(content[:3])
        if self.step == "write":
            raise self.error

    def __exit__(self, *_):
        self.file.close()
        if self.step == "close":
            raise self.error


@pytest.mark.parametrize(
    "error", [FULL, KeyboardInterrupt(), MemoryError()], ids=["full", "interrupt", "memory"]
)
@pytest.mark.parametrize("step", ["opened", "write", "close", "replace", "replaced"])
def test_whatever_fails_leaves_nothing_unfinished(path, monkeypatch, step, error):
    """The old file stays, whole; an interrupt may come just after a step as well."""
    kept.write(path, b"old")

    def fail(*_):
        raise error

    def open_and_fail(*arguments):
        file = open(*arguments)  # noqa: SIM115
        if step == "opened":
            file.close()
            fail()
        return Failing(file, step, error)

    replace = os.replace
    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr(kept.os, "replace", fail)
        elif step == "replaced":
            patch.setattr(kept.os, "replace", lambda *names: fail(replace(*names)))
        else:
            patch.setattr(kept, "open", open_and_fail, raising=False)
        with pytest.raises(type(error)):
            kept.write(path, b"new content")
    assert os.listdir(path.parent) == ["file"]
    assert kept.read(path, 100) == (b"new content" if step == "replaced" else b"old")


def test_a_disk_that_is_full(path):
    """Not simulated but refused by the system, which is told that no file may grow."""
    resource = pytest.importorskip("resource")
    kept.write(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            kept.write(path, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(path.parent) == ["file"]
    assert kept.read(path, 100) == b"old"


def test_nobody_can_guess_the_unfinished_name(path, monkeypatch):
    names, replace = [], os.replace
    monkeypatch.setattr(kept.os, "replace", lambda new, old: names.append(Path(new)) or replace(new, old))
    for _ in range(20):
        kept.write(path, b"content")
    assert {name.parent for name in names} == {path.parent}
    parts = {name.name.removeprefix("file.") for name in names}
    assert len(parts) == 20
    assert all(len(part) >= 16 and int(part, 16) >= 0 for part in parts)


def test_what_has_the_unfinished_name_is_not_written_through(path, tmp_path, monkeypatch):
    """Even a name that was guessed: a new file is made or none."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    monkeypatch.setattr(kept.secrets, "token_hex", lambda count: "guessed")
    path.parent.mkdir(parents=True)
    os.link(precious, path.with_name("file.guessed"))
    with pytest.raises(FileExistsError):
        kept.write(path, b"content")
    assert precious.read_bytes() == b"precious"


def test_who_replaces_a_file_waits_for_readers(path, monkeypatch):
    """On Windows a file that somebody reads cannot be replaced."""
    refusals, replace = [1, 1, 1], os.replace

    def busy(*names):
        if refusals:
            refusals.pop()
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        replace(*names)

    monkeypatch.setattr(kept.os, "replace", busy)
    monkeypatch.setattr(kept, "_PAUSES", (0.001, 0.001, 0.001))
    kept.write(path, b"content")
    assert kept.read(path, 100) == b"content"
    refusals += [1] * 4
    with pytest.raises(PermissionError):
        kept.write(path, b"other")
    assert os.listdir(path.parent) == ["file"]


def test_readers_see_the_old_or_the_new_whole(path):
    contents = [bytes([value]) * 300_000 for value in range(8)]
    kept.write(path, contents[0])
    program = f"""
from pathlib import Path
from cuconv import kept
for count in range(80):
    kept.write(Path({str(path)!r}), bytes([count % 8]) * 300_000)
"""
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    seen = set()
    while writer.poll() is None:
        seen.add(kept.read(path, 1 << 20))
    assert writer.returncode == 0
    assert seen <= set(contents)
    assert os.listdir(path.parent) == ["file"]


WARNING = """
from cuconv import kept

for _ in range(2):
    kept.warn("this is not kept")
kept.warn("nor is this")
print("goes on")
"""


@pytest.mark.parametrize(
    ("how", "shown"), [("default", True), ("always", True), ("error", True), ("ignore", False)]
)
def test_a_warning_is_said_once_and_fails_nothing(how, shown):
    command = [sys.executable, "-W", how, "-c", WARNING]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "goes on\n"), run.stderr
    assert [run.stderr.count(text) for text in ("UserWarning: this is", "UserWarning: nor is")] == [shown] * 2
    assert "Traceback" not in run.stderr
