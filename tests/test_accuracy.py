"""Products of floats by parts are as exact as plain ones, whatever the numbers are."""

import contextlib

import numpy as np
import pytest

import cuconv
from cuconv.cuda import mma, wgmma

from . import accuracy
from .accuracy import DATA, SUMS, errors, in_one_part, measured, operands, shown, sums


@pytest.mark.parametrize("length", [mma.SHORT, 64, 147])
@pytest.mark.parametrize("data", DATA)
def test_parts_lose_no_more_than_plain_sums(data, length):
    """Of as many products as `auto` asks for; and what they lose keeps to the bound of docs/accuracy.md."""
    found = measured(data, length)
    (plain, _), (by_parts, largest) = found["plain"], found["by parts"]
    assert 0 < by_parts < plain
    if data != "subnormal sums":  # which are rounded to a last place of their own
        assert largest <= 26 + length / 16


@pytest.mark.parametrize("data", DATA)
def test_parts_that_warpgroups_multiply_lose_no_more_either(data):
    """From twice as many products on as their slices are long."""
    x, w = operands(data, wgmma.SHORT)
    assert 0 < errors(x, w, "wgmma")[0] < errors(x, w, "simt")[0]


def test_shorter_sums_may_lose_more():
    """So the bar of 32 is there for a reason."""
    found = measured("over 2^40", 9)
    assert found["by parts"][0] > found["plain"][0]
    x, w = operands("over 2^40", wgmma.SHORT // 2)
    assert errors(x, w, "wgmma")[0] > errors(x, w, "simt")[0]


BY_PARTS = pytest.mark.parametrize("algorithm", ["mma", "wgmma"])


@BY_PARTS
@pytest.mark.parametrize("data", ["normal", "subnormal x"])
def test_nothing_is_lost_of_what_parts_hold(data, algorithm, monkeypatch):
    """A single product of factors with many bits, in every magnitude, comes out rounded once or twice."""
    rng = np.random.default_rng(0)
    x, w = np.zeros((SUMS, 32), np.float32), np.zeros((SUMS, 32), np.float32)
    x[:, 3], w[:, 3] = rng.uniform(1, 2, (2, SUMS)) * 2.0 ** rng.integers(-30, 30, (2, SUMS))
    if data == "subnormal x":
        x[:, 3] = rng.integers(1, 1 << 22, SUMS) * 2.0**-149
        w[:, 3] *= 2.0**60
    assert errors(x, w, algorithm)[1] <= 3
    monkeypatch.setattr(accuracy, "in_one_part", contextlib.nullcontext)
    assert errors(x, w, algorithm)[1] <= 3


@BY_PARTS
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3.4e38, 2.0**127, 3.39e38])
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
def test_numbers_without_parts_give_what_plain_sums_do(number, algorithm):
    """Bit for bit in the rows and columns of a warp that meet one; the others have theirs by parts."""
    x, w = operands("normal", 40)
    untouched = sums(x, w, algorithm)
    x[5, 7], w[:, 7] = number, w[:, 7] * 2.0**-100
    w[9, 7] = 0
    got, plain = sums(x, w, algorithm), sums(x, w, "simt")
    if not number <= 3.39e38 or number == -np.inf:  # which a bfloat16 has
        np.testing.assert_array_equal(got[:, 5], plain[:, 5])
    assert np.isfinite(got[:, [i for i in range(SUMS) if i != 5]]).all()
    if np.isfinite(number):
        assert errors(x, w, algorithm)[1] <= 29
    assert (untouched[:, 40] != plain[:, 40]).any()


@BY_PARTS
def test_sums_that_overflow_on_the_way_give_what_plain_sums_do(algorithm):
    x, w = operands("positive", 64)
    x[:, :32] *= np.float32(2.0**126)
    x[:, 32:] = -x[:, :32]
    w[:, 32:] = w[:, :32]
    with np.errstate(all="ignore"):
        got, plain = sums(x, w, algorithm), sums(x, w, "simt")
    assert np.isinf(plain).any()
    np.testing.assert_array_equal(np.isinf(got), np.isinf(plain))


def test_the_document_has_what_is_measured():
    text = accuracy.DOCUMENT.read_text()
    for data, length in (("normal", 147), ("over 2^40", 32), ("subnormal x", 64)):
        (plain, most), (parts, most_parts) = measured(data, length).values()
        cells = (data, f"{length:,}", *map(shown, (plain, parts, most, most_parts)))
        assert f"| {' | '.join(cells)} |\n" in text


def test_the_tables_have_every_suite():
    lengths = {name: accuracy.lengths(name) for name in accuracy.suites.names()}
    found = {pair: {"plain": (2.0, 3.0), "by parts": (1.0, 4.0)} for pair in accuracy.wanted()}
    of_data, of_suites = accuracy.tables(found)
    assert "| normal | 9 | 2.00 | 1.00 | 3.00 | 4.00 |" in of_data
    assert len(of_data) == 2 + len(DATA) * len(accuracy.LENGTHS) + 2 * len(accuracy.LONG)
    assert len(of_suites) == 2 + 2 * sum(map(bool, lengths.values()))
    assert max(max(each) for each in lengths.values() if each) == accuracy.LONG[0]
    assert all(length >= mma.SHORT for each in lengths.values() for length in each)


def test_sums_are_in_one_part():
    """So the tables have what is lost without parts of a sum, which both algorithms otherwise have here."""
    launches = {}
    for cut in (contextlib.nullcontext, in_one_part):
        with cut():
            launches[cut] = [
                len(cuconv.plan("fprop", (1, 64, 9000), (64, 1, 9000), padding=0, layout="channels_last",
                                algorithm=algorithm, backend="cuda").launches)
                for algorithm in accuracy.ALGORITHMS.values()
            ]  # fmt: skip
    assert [*launches.values()] == [[2, 2], [1, 1]]
