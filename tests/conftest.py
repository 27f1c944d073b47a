"""Settings of the whole suite."""

import collections
import os

# Two workers with as many BLAS threads as cores each wait for one another most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Float32 is held to its own accuracy.
os.environ.pop("CUPY_TF32", None)

import hypothesis
import pytest

from cuconv.plan import Call, forget

# A failing example prints the line that repeats it; CI draws the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="session")
def _winners_of_the_tests(tmp_path_factory):
    """What tests tune stays out of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUCONV_CACHE_DIR", str(tmp_path_factory.mktemp("tuned")))
        yield


@pytest.fixture(scope="module")
def one_thread_of_torch():
    """Several would wait for one another where others work too, for most of the time."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_plans():
    """No plan is known, nor what the environment says, and nothing of it is when the test is over."""

    forget()
    yield
    forget()


@pytest.fixture
def timed(monkeypatch):
    """The algorithms that `algorithm="tune"` times, in order."""
    names, seconds = [], Call._seconds
    monkeypatch.setattr(
        Call, "_seconds", lambda call, *rest: names.append(rest[0].algorithm) or seconds(call, *rest)
    )
    return names


def pytest_collection_modifyitems(config, items):
    """What may not end on a GPU is run only if it is asked for."""
    if "untried" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("untried"):
                item.add_marker(pytest.mark.skip(reason="no GPU has run it yet: -m 'gpu and untried' does"))


def pytest_terminal_summary(terminalreporter):
    """Why tests were skipped: a line for each reason."""
    skipped = terminalreporter.stats.get("skipped", ())
    reasons = collections.Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
