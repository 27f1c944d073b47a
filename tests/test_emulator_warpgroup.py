"""The emulator's warpgroups: that products, barriers and rings of stages do what the PTX ISA says that they
do, and that each mistake in their use is found that the emulator is there to find.

The kernels are in emulator/kernels. Operands lie in shared memory as the PTX ISA's pictures have it: patterns
of eight lines with their chunks exchanged, put where the strides say. No formula is shared with the emulator.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

from cuconv.cuda.kernel import Kernel, Launch
from tests.emulator import EmulatorError, execute
from tests.emulator.runner import count_window

RNG = np.random.default_rng(9)
CONTIGUOUS = {"x": (0, (1,)), "w": (0, (1,)), "y": (0, (1,))}
DTYPES = {"F16": np.float16, "Bf16": ml_dtypes.bfloat16, "Tf32": np.float32}
SWIZZLES = {16: 0, 128: 1, 64: 2, 32: 3}  # by the bytes of a line


def launch(file, template, *arguments, threads=128, blocks=1, b=None, shared=0, residents=1):
    kernel = Kernel(f"{file}.cuh", template, arguments, threads, residents)
    return Launch(kernel, blocks, "x", b, "y", (), shared_bytes=shared)


def run(the_launch, x, y, w=None, seed=None):
    """The launch on contiguous arrays: what it leaves in y."""
    execute(the_launch, {"x": x, "y": y, "w": w}, CONTIGUOUS, seed=seed)
    return y


def integers(*shape):
    return RNG.integers(-8, 9, shape)


# ---- products ----


def exchanged(pattern):
    """Eight lines of bytes with their chunks of 16 where the picture of the pattern has them."""
    size = pattern.shape[1]
    picture = {
        16: ["0"] * 8,
        32: ["01"] * 4 + ["10"] * 4,
        64: ["0123"] * 2 + ["1032"] * 2 + ["2301"] * 2 + ["3210"] * 2,
        128: ["01234567", "10325476", "23016745", "32107654", "45670123", "54761032", "67452301", "76543210"],
    }[size]
    chunks = pattern.reshape(8, -1, 16)
    return np.stack([line[list(map(int, order))] for line, order in zip(chunks, picture, strict=True)])


class Operand:
    """A matrix, rows by k, in the bytes of shared memory from `start` on; `place` is what the kernel is told.

    Patterns lie `gap` bytes apart, those below one another in a row or, if `other`, those side by side.
    """

    def __init__(self, matrix, k_major, line, start, gap=0, other=False):
        lines = np.ascontiguousarray(matrix if k_major else matrix.T)
        lines = lines.view(np.uint8).reshape(len(lines), -1)
        down, across = len(lines) // 8, lines.shape[1] // line
        pitch = 8 * line + gap
        to_next_8, to_next_line = (pitch, down * pitch) if not other else (across * pitch, pitch)
        self.image = np.zeros(down * across * pitch, np.uint8)
        for i, j in itertools.product(range(down), range(across)):
            pattern = exchanged(lines[8 * i : 8 * i + 8, line * j : line * (j + 1)])
            at = i * to_next_8 + j * to_next_line
            self.image[at : at + 8 * line] = pattern.ravel()
        if k_major:
            leading, stride = (to_next_line if line == 16 else 0), to_next_8
            step, steps, block = 32, line // 32, to_next_line
            if line == 16:
                step, steps, block = 0, 1, 2 * to_next_line
        else:
            leading, stride = (to_next_8, to_next_line) if line == 16 else (to_next_line, to_next_8)
            step, steps, block = 0, 1, 2 * to_next_8
        base = 0 if line == 16 else start // 128 % 8
        self.start, self.end = start, start + len(self.image)
        self.place = [start, leading, stride, SWIZZLES[line], base, step, steps, block]


class Rows:
    """A matrix row by row, from which the kernel takes fragments."""

    def __init__(self, matrix, start):
        self.image = np.ascontiguousarray(matrix).view(np.uint8).ravel()
        self.start, self.end = start, start + len(self.image)
        self.place = [start, 0, 0, 0, 0, 0, 1, 0]


def product(name, a_from, b_from, a, b, operands, add):
    """a b^T on top of what the kernel begins with; the operands are to lie in shared memory as they say."""
    size = -(-max(operand.end for operand in operands) // 16) * 16
    image = np.zeros(size, np.uint8)
    for operand in operands:
        image[operand.start : operand.end] = operand.image
    steps = a.shape[1] * a.itemsize // 32
    settings = np.array([*operands[0].place, *operands[1].place, size, steps, add], np.int64)
    the_launch = launch("warpgroup", "product", name, len(b) // 8, a_from, b_from, b="w", shared=size)
    y = run(the_launch, image, np.empty((64, len(b)), np.float32), settings)
    begin = np.arange(64)[:, None] - 3 * np.arange(len(b)) if add else 0
    np.testing.assert_array_equal(y, a.astype(np.int64) @ b.astype(np.int64).T + begin)


def matrices(name, n, steps):
    depth = steps * 32 // np.dtype(DTYPES[name]).itemsize
    return (integers(rows, depth).astype(DTYPES[name]) for rows in (64, n))


SIXTEEN_BITS = [
    *itertools.product(["F16"], [64], ["REGISTERS", "K_MAJOR", "MN_MAJOR"], ["K_MAJOR", "MN_MAJOR"]),
    *(("F16", n, "K_MAJOR", b) for n in (128, 256) for b in ("K_MAJOR", "MN_MAJOR")),
    ("Bf16", 64, "MN_MAJOR", "K_MAJOR"),
    ("Bf16", 128, "REGISTERS", "MN_MAJOR"),
    ("Bf16", 256, "K_MAJOR", "MN_MAJOR"),
]
TF32 = [("Tf32", n, a, "K_MAJOR") for n in (64, 128, 256) for a in ("REGISTERS", "K_MAJOR")]


@pytest.mark.parametrize(("name", "n", "a_from", "b_from"), [*SIXTEEN_BITS, *TF32])
def test_product(name, n, a_from, b_from):
    """All layouts of both operands, their patterns together or apart, begun at any eighth of 1024 bytes."""
    cases = itertools.product(
        enumerate(SWIZZLES), [(1, 0, False, 0), (4, 0, True, 0), (4, 0, False, 3), (2, 1024, False, 6)]
    )
    for (index, line), (steps, gap, other, eighth) in cases:
        a, b = matrices(name, n, max(steps, line // 32))
        start = 128 * eighth
        operands = [
            Rows(a, start)
            if a_from == "REGISTERS"
            else Operand(a, a_from == "K_MAJOR", line, start, gap, other)
        ]
        line_b = [*SWIZZLES][(index + steps) % 4]
        if b_from == "K_MAJOR" and a.shape[1] * a.itemsize % line_b:
            line_b = line
        start_b = -(-operands[0].end // 1024) * 1024 + 1024 - start
        operands.append(Operand(b, b_from == "K_MAJOR", line_b, start_b, gap, not other))
        product(name, a_from, b_from, a, b, operands, add=steps != 1)


def test_products_follow_on_one_another():
    """Two of a kind, of which the second one adds to the first."""
    x = integers(2, 64, 32).astype(np.float16)
    y = run(launch("faulty_warpgroup", "two_products", "RIGHT", shared=8192), in_lines(x), square())
    np.testing.assert_array_equal(y, x[0].astype(int) @ x[1].astype(int).T)


def square():
    return np.empty((64, 64), np.float32)


def in_lines(x):
    """Matrices of 64 rows by 32 halves in lines of 64 bytes."""
    return np.concatenate([Operand(matrix, True, 64, 0).image for matrix in x])


# ---- barriers ----


def ring(slices=11, stages=3, mistake="NONE"):
    return launch(
        "warpgroup", "ring", slices, stages, mistake, threads=256, b="w", shared=stages * 2 * 64 * 64
    )


@pytest.mark.parametrize(("slices", "stages"), [(11, 3), (2, 4), (9, 2)])
@pytest.mark.parametrize("seed", [None, *range(6)])
def test_ring(slices, stages, seed):
    x, w = (integers(64, 32 * slices).astype(np.float16) for _ in range(2))
    y = run(ring(slices, stages), x, square(), w, seed)
    np.testing.assert_array_equal(y, x.astype(int) @ w.astype(int).T)


def test_ring_with_one_stage_cannot_run_ahead():
    x, w = (integers(64, 64).astype(np.float16) for _ in range(2))
    with pytest.raises(
        EmulatorError,
        match=r"deadlock: threads 0 to 127 wait at mbarrier.try_wait .*128 to 255 wait at mbarrier",
    ):
        run(ring(2, 1), x, square(), w)


def test_counted_ring():
    """Its copies are counted as ever; sums are left at zero."""
    x, w = (integers(64, 32 * 5).astype(np.float16) for _ in range(2))
    y = np.ones((64, 64), np.float32)
    counts = count_window(ring(5), {"x": x, "w": w, "y": y}, CONTIGUOUS, [0], 1 << 16)
    np.testing.assert_array_equal(y, 0)
    for space in (0, 1):
        assert counts.tallies[space, 2, 4]["requests"] == 5 * 256 / 32  # of a warp, for 16 bytes each
    assert counts.under_way == 3 * 64


@pytest.mark.parametrize("seed", [None, 1])
def test_named_barriers(seed):
    x = np.arange(5 * 256, dtype=np.float32)
    y = run(launch("warpgroup", "named_barriers", 5, threads=256), x, np.empty_like(x), seed=seed)
    i = np.arange(5 * 256)
    np.testing.assert_array_equal(y, x[i ^ 128] + x[i ^ 64])


@pytest.mark.parametrize("fence", ["BEFORE_BARRIER", "AFTER_BARRIER"])
def test_copies_that_their_own_threads_wait_for(fence):
    """With two sums in turn, and those of the first one stored while the second one's are under way."""
    x = integers(2, 64, 32).astype(np.float16)
    the_launch = launch("warpgroup", "product_of_copies", fence, shared=8192)
    y = run(the_launch, in_lines(x), np.empty((2, 64, 64), np.float32))
    np.testing.assert_array_equal(y, x[0].astype(int) @ x.astype(int).swapaxes(1, 2))


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_copies_of_two_kinds(seed):
    x = RNG.standard_normal((3, 32, 4)).astype(np.float32)
    the_launch = launch("warpgroup", "copies_of_two_kinds", threads=32, blocks=2)
    y = run(the_launch, x, np.empty_like(x), seed=seed)
    np.testing.assert_array_equal(y, [x[0], x[1, np.arange(32) ^ 1], x[2]])


# ---- registers ----


@pytest.mark.parametrize(
    # 168 of each thread at launch, where 65536 go to 384, and 128 where they go to two blocks of 256.
    ("threads", "residents", "fewer", "more"),
    [(384, 1, 24, 240), (384, 1, 40, 232), (256, 2, 24, 232), (256, 1, 240, 256)],
)
def test_registers(threads, residents, fewer, more):
    x = np.arange(threads, dtype=np.float32)
    the_launch = launch("warpgroup", "registers", fewer, more, threads=threads, residents=residents)
    np.testing.assert_array_equal(run(the_launch, x, np.empty_like(x)), x)
    one_less = launch("warpgroup", "registers", fewer + 8, more, threads=threads, residents=residents)
    with pytest.raises(EmulatorError, match=f"deadlock: .* to {threads - 1} wait at setmaxnreg.inc"):
        run(one_less, x, np.empty_like(x))


# ---- mistakes ----

RING_MISTAKES = [
    ("FULL_NOT_AWAITED", "wgmma: reads where an asynchronous copy has yet to arrive"),
    ("FULL_OF_OTHER_PARITY", "wgmma: reads where an asynchronous copy has yet to arrive"),
    ("EMPTY_NOT_AWAITED", "cp.async: writes to where another copy has yet to arrive"),
    (
        "EMPTY_OF_OTHER_PARITY",
        "deadlock: threads 0 to 127 wait at mbarrier.try_wait .* 128 to 255 wait at mbarrier",
    ),
    ("EMPTIED_TOO_EARLY", "wgmma: an operand was overwritten, or arrived, while the product was under way"),
    ("NO_PROXY_FENCE", "wgmma: reads what an asynchronous copy wrote after the last fence.proxy.async"),
    ("NOT_INITIALISED", "mbarrier.try_wait: the barrier was never initialised"),
    ("INITIALISED_TWICE", "thread 0: mbarrier.init: the barrier has been initialised before"),
    ("NO_BARRIER_AFTER_INITIALISATION", "reverse, .*mbarrier.try_wait: the barrier was never initialised"),
    (
        "TOO_MANY_EXPECTED",
        "deadlock: threads 0 to 127 wait at mbarrier.try_wait .* 128 to 255 wait at mbarrier",
    ),
    ("TOO_FEW_EXPECTED", "wgmma: reads where an asynchronous copy has yet to arrive"),
    ("BARRIER_OVERWRITTEN", "the barrier has been overwritten"),
]


@pytest.mark.parametrize(("mistake", "message"), RING_MISTAKES)
def test_mistake_in_the_ring(mistake, message):
    x, w = (integers(64, 32 * 11).astype(np.float16) for _ in range(2))
    with pytest.raises(EmulatorError, match=f"^(?s:ring_11_3_{mistake}.*{message})"):
        run(ring(mistake=mistake), x, square(), w)
    # The runtime is none the worse for it.
    y = run(ring(), x, square(), w)
    np.testing.assert_array_equal(y, x.astype(int) @ w.astype(int).T)


FAULTS = [
    # template, arguments, what the error says
    ("two_products", ["NO_FENCE"], "there was no wgmma.fence before the first product"),
    ("two_products", ["READ_EARLY"], r"y\[0, 0\] is nan and then"),
    ("two_products", ["TOO_FEW_GROUPS_AWAITED"], "a sum was written while the product was under way"),
    ("two_products", ["NO_COMMIT"], "thread .*wgmma: exits while products are under way"),
    ("two_products", ["NO_WAIT"], "thread .*wgmma: exits while products are under way"),
    ("two_products", ["WRITTEN_UNDER_WAY"], "a sum was written while the product was under way"),
    ("two_products", ["WRITTEN_BETWEEN_PRODUCTS"], "a sum was written while a product was under way"),
    ("two_products", ["WRITTEN_AFTER_FENCE"], "sums were written after the last wgmma.fence"),
    (
        "two_products",
        ["OPERAND_WRITTEN_UNDER_WAY"],
        "an operand was overwritten, or arrived, while the product",
    ),
    ("two_products", ["OTHER_SUMS"], "products with other sums in the same registers are under way"),
    ("fragments_written", ["true"], "fragments of a were written while the product was under way"),
    ("fragments_written", ["false"], "fragments of a were written after the last wgmma.fence"),
    ("warps_differ", ["OTHER_OPERAND"], "another warp of the warpgroup has another product in its place"),
    ("warps_differ", ["OTHER_ADD"], "another warp of the warpgroup has another product in its place"),
    ("warps_differ", ["OTHER_PLACE"], "another warp of the warpgroup has another product in its place"),
    ("warps_differ", ["ONE_LESS"], "wgmma: warp 2 has exited without it, others of its warpgroup have not"),
    ("warps_differ", ["ONE_MORE"], "wgmma: warp 0 has exited without it, others of its warpgroup have not"),
    ("warps_differ", ["OTHER_OPERAND_OF_A_LANE"], "wgmma: lanes 0 and 8 have different operands"),
    (
        "warps_differ",
        ["NO_PRODUCT_OF_A_LANE"],
        "wgmma.commit_group: other lanes wait at wgmma|wgmma: other lanes wait",
    ),
    (
        "wrong_operand",
        [4224, "SWIZZLE_128", 0, 1024],
        "at 0x[0-9a-f]+80 begins inside its pattern of 1024 bytes",
    ),
    (
        "wrong_operand",
        [4096, "SWIZZLE_128", 1, 1024],
        "begins inside its pattern .* whose base is said to be 1",
    ),
    (
        "wrong_operand",
        [4352, "SWIZZLE_64", 0, 512],
        "at 0x[0-9a-f]+00 begins inside its pattern of 512 bytes",
    ),
    (
        "wrong_operand",
        [4160, "SWIZZLE_64", 0, 512],
        "at 0x[0-9a-f]+40 begins inside its pattern of 512 bytes",
    ),
    (
        "wrong_operand",
        [4224, "SWIZZLE_32", 0, 256],
        "at 0x[0-9a-f]+80 begins inside its pattern of 256 bytes",
    ),
    ("wrong_operand", [4144, "SWIZZLE_64", 0, 512], "at 0x[0-9a-f]+30 leaves its line of 64 bytes"),
    ("wrong_operand", [0, "NO_SWIZZLE", 1, 256], "that is not swizzled has no pattern to begin at 1"),
    ("wrong_operand", [4096, "SWIZZLE_64", 0, 1024], "an operand is outside of dynamic shared memory"),
    ("wrong_operand", [4100, "SWIZZLE_64", 0, 512], "wgmma_operand: [0-9]+ is not a multiple of 16 below"),
    ("wrong_operand", [4096, "SWIZZLE_64", 0, 520], "wgmma_operand: 520 is not a multiple of 16 below"),
    ("wrong_operand", [4096, "SWIZZLE_64", 8, 512], "wgmma_operand: a pattern cannot begin at line 8 of 8"),
    ("wrong_mn_major_operand", [32], "at 0x[0-9a-f]+20 leaves its line of 64 bytes"),
    ("operand_in_static_memory", [], "wgmma_operand: .* is not in dynamic shared memory"),
    ("undefined_bits", [], "wgmma: descriptor [0-9a-f]{16} has bits that mean nothing"),
    (
        "product_of_copies",
        ["BEFORE_WAIT"],
        "reads what an asynchronous copy wrote after the last fence.proxy.async",
    ),
    (
        "product_of_copies",
        ["IN_ONE_WARP"],
        "reads what an asynchronous copy wrote after the last fence.proxy.async",
    ),
    (
        "warps_differ_in_registers",
        [],
        "setmaxnreg.dec: another warp of the warpgroup has asked for (40|48) registers",
    ),
    (
        "registers_of_three_warps",
        [],
        "setmaxnreg.dec: warp 3 has exited without it, others of its warpgroup have not",
    ),
    ("registers_the_wrong_way", [40, 48], "setmaxnreg.dec: asks for 48 registers where threads have 40"),
    ("registers_the_wrong_way", [40, 32], "setmaxnreg.inc: asks for 32 registers where threads have 40"),
    ("expects", [0], "mbarrier.init: a barrier cannot expect 0 arrivals"),
    ("expects", [1 << 20], "mbarrier.init: a barrier cannot expect 1048576 arrivals"),
    ("waits_for", [2], "mbarrier.try_wait: a phase cannot have parity 2"),
    ("waits_for", [0], "deadlock: threads 0 to 127 wait at mbarrier.try_wait"),
    ("barrier_elsewhere", [], "mbarrier.init: there is no room for a barrier at"),
]


@pytest.mark.parametrize(("template", "arguments", "message"), FAULTS)
def test_fault(template, arguments, message):
    x = in_lines(integers(2, 64, 32).astype(np.float16))
    with pytest.raises(EmulatorError, match=f"^(?s:{template}.*({message}))"):
        run(launch("faulty_warpgroup", template, *arguments, shared=8192), x, square())
    y = run(launch("faulty_warpgroup", "two_products", "RIGHT", shared=8192), x, square())
    assert np.isfinite(y).all()


def test_part_of_a_warpgroup():
    x = in_lines(integers(2, 64, 32).astype(np.float16))
    with pytest.raises(EmulatorError, match=r"wgmma.fence: the warpgroup has not got four warps"):
        run(launch("faulty_warpgroup", "two_products", "RIGHT", threads=96, shared=8192), x, square())
