"""The matrices of cuda_src/gather.cuh, element by element, against matrices that are put together plainly."""

import itertools
import math

import numpy as np
import pytest

import cuconv
from cuconv.cuda.geometry import axes, divisor
from cuconv.cuda.kernel import Kernel, Launch
from cuconv.cuda.schedule import pixels
from tests.emulator import execute

BM, BN, BK = 64, 32, 8
PROBLEMS = (
    "n2c3h6w5 k5r3s2 p1",  # one tile, one residue
    "n1c8h7w9 k4r3s3 g2 sh2sw3 dh1dw2 ph2:0pw1:3",  # groups, strides, dilation
    "n2c5d4h5w3 k20t2r3s2 sd2sh1sw2 dd1dh2dw1 p1",  # three axes; padded channels; tiles of B
    "n1c2w70 k3s35 dw1 p3",  # more than 32 taps, which carry over several digits
    "n3c1h4w4 k1r1s1 sh3sw2",  # residues without a tap
    "n1c7h3w3 k6r3s3 g1 sh2sw2 dh2dw2 p4",  # every second tap; cells far outside
)


def up(extent, multiple):
    return -(-extent // multiple) * multiple


def taps_and_channels(lanes, taps, channels, padded):
    """The columns of a filter, (c, (t, r, s)), in the order of the lanes; None for padded channels."""
    everything = list(itertools.product(*taps))
    if lanes == "CHANNEL_LANES":
        return [(c, tap) if c < channels else None for tap in everything for c in range(padded)]
    return [(c, tap) for c in range(channels) for tap in everything]


def cell(array, n, channel, place):
    inside = all(0 <= i < extent for i, extent in zip(place, array.shape[2:], strict=True))
    return array[(n, channel, *place)] if inside else 0


class Explicit:
    """Both matrices of each group and residue, and where in the result their rows are."""

    def __init__(self, problem, op, lanes, vector):
        rng = np.random.default_rng(0)
        self.problem, self.op, self.lanes = problem, op, lanes
        self.c, self.k = problem.c // problem.groups, problem.k // problem.groups
        self.cp, self.kp = up(self.c, vector), up(self.k, vector)
        y = rng.integers(1, 1000, (problem.n, problem.groups, self.kp, *problem.output))
        x = rng.integers(1, 1000, (problem.n, problem.groups, self.cp, *problem.input))
        w = rng.integers(1, 1000, (problem.k, self.cp, *problem.filter))
        x[:, :, self.c :], y[:, :, self.k :], w[:, self.c :] = 0, 0, 0
        x, y = (each.reshape(problem.n, -1, *each.shape[3:]) for each in (x, y))
        self.x, self.w, self.dy = (self.laid_out(each) for each in (x, w, y))
        self.operands = {"fprop": (self.x, self.w), "dgrad": (self.dy, self.w), "wgrad": (self.x, self.dy)}[
            op
        ]
        self.strides = {
            "fprop": (977, 31, 7, 5, 3),
            "dgrad": (977, 31, 7, 5, 3),
            "wgrad": (977, 31, 7, 5, 3),
        }[op]

    def laid_out(self, array):
        array = np.ascontiguousarray(array, np.float32)
        if self.lanes == "CHANNEL_LANES":
            aligned = np.zeros(array.size + 4, np.float32)
            start = -aligned.ctypes.data // 4 % 4
            shape = (array.shape[0], *array.shape[2:], array.shape[1])
            array, source = aligned[start : start + array.size].reshape(shape), array
            array = np.moveaxis(array, -1, 1)
            array[...] = source
        return array

    def residues(self):
        return list(itertools.product(*map(range, self.problem.stride if self.op == "dgrad" else (1, 1, 1))))

    def matrices(self, group, residue):
        """A, B and the offsets of their rows in the result."""
        return getattr(self, self.op)(group, residue)

    def offset(self, *index):
        return sum(i * step for i, step in zip(index, self.strides, strict=True))

    def fprop(self, group, _):
        problem = self.problem
        pixels = list(itertools.product(range(problem.n), *map(range, problem.output)))
        columns = taps_and_channels(self.lanes, [range(r) for r in problem.filter], self.c, self.cp)
        a = [[self.met(group, pixel, column) for column in columns] for pixel in pixels]
        b = [
            [self.w[(group * self.k + k, column[0], *column[1])] if column else 0 for column in columns]
            for k in range(self.k)
        ]
        rows = [self.offset(n, 0, *place) for n, *place in pixels]
        return a, b, rows, [self.offset(0, group * self.k + k, 0, 0, 0) for k in range(self.k)]

    def met(self, group, pixel, column):
        """The cell of x that an output pixel and a tap meet at."""
        if column is None:
            return 0
        problem, (n, *place), (c, tap) = self.problem, pixel, column
        parts = zip(place, tap, problem.stride, problem.dilation, problem.padding, strict=True)
        at = [p * stride + r * dilation - before for p, r, stride, dilation, (before, _) in parts]
        return cell(self.x, n, group * self.cp + c, at)

    def dgrad(self, group, residue):
        problem = self.problem
        geometry = list(zip(problem.stride, problem.dilation, problem.padding, strict=True))
        taps = [
            [r for r in reversed(range(extent)) if (first + before - r * dilation) % stride == 0]
            for extent, first, (stride, dilation, (before, _)) in zip(
                problem.filter, residue, geometry, strict=True
            )
        ]
        columns = taps_and_channels(self.lanes, taps, self.k, self.kp)
        # As many as the largest residue has: those beyond the input do not exist.
        cells = [
            range(first, first + up(h, s), s)
            for first, h, s in zip(residue, problem.input, problem.stride, strict=True)
        ]
        pixels = list(itertools.product(range(problem.n), *cells))

        def exists(pixel):
            return all(h < extent for h, extent in zip(pixel[1:], problem.input, strict=True))

        def value(pixel, column):
            if column is None or not exists(pixel):
                return 0
            (n, *place), (k, tap) = pixel, column
            at = [
                (h + before - r * dilation) // stride
                for h, r, (stride, dilation, (before, _)) in zip(place, tap, geometry, strict=True)
            ]
            return cell(self.dy, n, group * self.kp + k, at)

        a = [[value(pixel, column) for column in columns] for pixel in pixels]
        b = [
            [self.w[(group * self.k + column[0], c, *column[1])] if column else 0 for column in columns]
            for c in range(self.c)
        ]
        rows = [self.offset(pixel[0], 0, *pixel[1:]) if exists(pixel) else -1 for pixel in pixels]
        return a, b, rows, [self.offset(0, group * self.c + c, 0, 0, 0) for c in range(self.c)]

    def wgrad(self, group, _):
        problem = self.problem
        pixels = list(itertools.product(range(problem.n), *map(range, problem.output)))
        columns = taps_and_channels(self.lanes, [range(r) for r in problem.filter], self.c, self.cp)
        a = [[self.dy[(n, group * self.kp + k, *place)] for n, *place in pixels] for k in range(self.k)]
        b = [[self.met(group, pixel, column) for pixel in pixels] for column in columns]
        rows = [self.offset(group * self.k + k, 0, 0, 0, 0) for k in range(self.k)]
        return a, b, rows, [self.offset(0, each[0], *each[1]) if each else -1 for each in columns]


@pytest.mark.parametrize("line", PROBLEMS)
@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize(
    ("lanes", "vector"), [("PIXEL_LANES", 1), ("CHANNEL_LANES", 1), ("CHANNEL_LANES", 4)]
)
def test_matrices(op, lanes, vector, line):
    """Every element of every tile, in one part of gemm_k and in several."""
    problem = cuconv.ConvProblem.parse(line).volumetric
    explicit = Explicit(problem, op, lanes, vector)
    tables = {
        (group, i): explicit.matrices(group, residue)
        for group in range(problem.groups)
        for i, residue in enumerate(explicit.residues())
    }
    depth = max(len(b[0]) for _, b, _, _ in tables.values())
    tiles_m = max(-(-len(a) // BM) for a, _, _, _ in tables.values())
    tiles_n = max(-(-len(b) // BN) for _, b, _, _ in tables.values())
    planar = problem.input[0] == problem.filter[0] == 1 and problem.padding[0] == (0, 0)
    for chunk in {max(depth, 1), up(max(depth // 3, 1), BK)}:
        parts = max(-(-depth // chunk), 1)
        blocks = parts * problem.groups * len(explicit.residues()) * tiles_m * tiles_n
        arguments = (lanes, vector, str(planar).lower())
        template = "gathered_filters" if op == "wgrad" else "gathered_pixels"
        if op != "wgrad":
            arguments = (str(op == "dgrad").lower(), *arguments)
        columns = min(chunk, up(max(depth, 1), BK))
        fields = dict(
            batch=problem.n, groups=problem.groups, channels=explicit.c, filters=explicit.k,
            axis=axes(problem), chunk=chunk, items=columns,
            pixel=[divisor(extent) for extent in reversed(pixels(problem, op))],
        )  # fmt: skip
        launch = Launch(
            Kernel("gathered.cuh", template, arguments, 64), blocks, "a", "b", "y", tuple(fields.items())
        )
        out = np.full(
            (parts, problem.groups, len(explicit.residues()), tiles_m, tiles_n, BM + BN, columns + 1), 7, "f"
        )
        operands = dict(zip("ab", explicit.operands, strict=True))
        places = {
            name: (
                0,
                tuple(
                    step // 4 if extent > 1 else 0
                    for step, extent in zip(array.strides, array.shape, strict=True)
                ),
            )
            for name, array in operands.items()
        }
        execute(launch, operands | {"y": out}, places | {"y": (0, explicit.strides)})
        for index in np.ndindex(out.shape[:5]):
            part, group, residue, tile_m, tile_n = index
            a, b, rows, names = tables[group, residue]
            expected = np.zeros((BM + BN, columns + 1), "f")
            expected[:, -1] = -1
            of_part = [row if row == -1 else row + part * columns for row in rows]
            for matrix, places_of, first, size, at in (
                (a, of_part, tile_m * BM, BM, 0),
                (b, names, tile_n * BN, BN, BM),
            ):
                some = np.array(matrix[first : first + size], "f")
                some = some.reshape(len(some), len(b[0]))
                some = some[:, part * chunk : part * chunk + columns]
                expected[at : at + len(some), : some.shape[1]] = some
                expected[at : at + len(some), -1] = places_of[first : first + size]
            np.testing.assert_array_equal(out[index], expected, f"{index} of {chunk}")
    assert math.prod(out.shape) > 0
