"""What the page on splits counts: halos cell by cell, splits carried out, rings simulated, tables current."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cuconv
from benchmarks import splits
from benchmarks.splits import INFINIBAND, LINKS, NVLINK, OPS, Split, cost
from cuconv.problem import ConvProblem

SMALL = [
    "n2c4h9w8 k6r3s3 p1",
    "n2c4h12w7 k6r3s2 sh2sw1 p1",
    "n1c4h13w9 k2r3s3 dh2dw3 p2:1",
    "n3c2w21 k4s5 sw3 p4",
    "n2c2d4h5w6 k2t2r3s3 p1",
    "n2c4h6w6 k4r1s1 sh2sw2",
    "n4c4h8w8 k8r3s3 g4 p1",
]
"""Problems on which every split is carried out."""


@st.composite
def chunked(draw):
    """A problem and chunks of its spatial axes, of any sizes."""
    rank = draw(st.integers(1, 3))
    longest = {1: 24, 2: 9, 3: 6}[rank]

    def some(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    input, filter, stride, dilation = some(1, longest), some(1, 4), some(1, 4), some(1, 3)
    padding = tuple((draw(st.integers(-1, 5)), draw(st.integers(-1, 5))) for _ in range(rank))
    try:
        problem = ConvProblem(1, 1, 1, input, filter, stride, dilation, padding)
    except ValueError:
        assume(False)
    chunks = []
    for extent in input:
        cuts = draw(st.sets(st.integers(1, extent - 1), max_size=4)) if extent > 1 else set()
        ends = [*sorted(cuts), extent]
        chunks.append(tuple(np.diff([0, *ends]).tolist()))
    return problem, chunks


def box(indices):
    """All cells from the least to the greatest on every axis."""
    axes = [sorted(set(axis)) for axis in zip(*indices, strict=True)]
    return set(itertools.product(*(range(axis[0], axis[-1] + 1) for axis in axes)))


def counted(problem, chunks, op):
    """Per chunk of the grid the cells needed and those that are its own, found by looking at every window."""
    chunk_of = [np.repeat(np.arange(len(sizes)), sizes) for sizes in chunks]

    def holder(cell):
        return tuple(int(of[min(max(h, 0), len(of) - 1)]) for of, h in zip(chunk_of, cell, strict=True))

    cells = list(itertools.product(*map(range, problem.input)))
    own, seen, made = {}, {}, {}
    for cell in cells:
        own.setdefault(holder(cell), set()).add(cell)
    for output in itertools.product(*map(range, problem.output)):
        begin = [p * s - a for p, s, (a, _) in zip(output, problem.stride, problem.padding, strict=True)]
        window = list(
            itertools.product(*(range(b, b + reach) for b, reach in zip(begin, problem.reach, strict=True)))
        )
        middle = [b + (reach - 1) // 2 for b, reach in zip(begin, problem.reach, strict=True)]
        seen[output] = window
        made.setdefault(holder(middle), set()).add(output)
    if op == "dgrad":
        readers = {}
        for output, window in seen.items():
            for cell in window:
                readers.setdefault(cell, set()).add(output)
        needed = {
            chunk: box(outputs) if (outputs := [p for h in held for p in readers.get(h, ())]) else set()
            for chunk, held in own.items()
        }
        own = {chunk: made.get(chunk, set()) for chunk in own}
    else:
        within = set(cells)
        needed = {
            chunk: box([h for p in made[chunk] for h in seen[p]]) & within if chunk in made else set()
            for chunk in own
        }
    return needed, own


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@settings(max_examples=120)
@given(case=chunked())
def test_halos_are_those_of_the_windows_cell_by_cell(op, case):
    """In all, and of each chunk and axis; and how many chunks on an axis have some of it."""
    problem, chunks = case
    needed, own = counted(problem, chunks, op)
    halo = sum(len(cells - own[chunk]) for chunk, cells in needed.items())
    assert splits.halo_bytes(problem, chunks, "float64", op) == 8 * halo
    if op == "fprop":
        assert splits.halo_bytes(problem, chunks, "float64", "wgrad") == 8 * halo
    axes = [splits.needs(problem, axis, sizes, op) for axis, sizes in enumerate(chunks)]
    for chunk, cells in needed.items():
        each = [axis[index] for axis, index in zip(axes, chunk, strict=True)]
        assert len(cells) == math.prod(need.cells for need in each)
        assert len(cells & own[chunk]) == math.prod(need.own for need in each)
        if cells:
            holders = [other for other, held in own.items() if held & cells]
            along = [{h[axis] for h in holders} - {chunk[axis]} for axis in range(problem.rank)]
            assert [need.neighbours for need in each] == [len(others) for others in along]


def test_halo_counts_images_channels_and_bytes():
    one, many = (ConvProblem.parse(text) for text in ("n1c1h9w8 k1r3s3 p1", "n5c3h9w8 k7r3s3 p1"))
    chunks = ((4, 5), (3, 3, 2))
    cells = splits.halo_bytes(one, chunks, "float64") // 8
    assert splits.halo_bytes(many, chunks, "float32") == 4 * 5 * 3 * cells
    cells = splits.halo_bytes(one, chunks, "float64", "dgrad") // 8
    assert splits.halo_bytes(many, chunks, "complex128", "dgrad") == 16 * 5 * 7 * cells


def test_the_examples_of_the_page():
    signal, picture = (ConvProblem.parse(text) for text in ("c1w16 k1s3 p1", "c1h16w16 k1r3s3 p1"))
    assert [need.cells - need.own for need in splits.needs(signal, 0, (8, 8), "fprop")] == [1, 1]
    assert splits.outputs(signal, 0, (8, 8)) == [(0, 8), (8, 16)]
    assert splits.read(signal, 0, (7, 8)) == (6, 9)
    four = cost(picture, "fprop", "float32", Split(space=(2, 2)))
    assert four.exchanged == 4 * (8 + 8 + 1)
    two = cost(ConvProblem.parse("n2c1h16w16 k1r3s3 p1"), "wgrad", "float32", Split(batch=2))
    assert two.received == 4 * 9


# -- splits carried out ------------------------------------------------------------------------------------


def arrays(problem):
    rng = np.random.default_rng(0)
    shapes = (problem.x_shape(), problem.w_shape(), problem.y_shape())
    return [rng.integers(-4, 5, shape).astype(np.float64) for shape in shapes]


def only(array, ranges):
    """The array with zeros beside the ranges of its last axes."""
    index = (..., *(slice(*each) for each in ranges))
    kept = np.zeros_like(array)
    kept[index] = array[index]
    return kept


@pytest.mark.parametrize("text", SMALL)
def test_what_chunks_are_sent_is_enough(text):
    """Each makes its part from no more than that, and together they make the whole, to the bit."""
    problem = ConvProblem.parse(text)
    x, w, dy = arrays(problem)
    options = problem.options()
    y, dx, dw = (
        cuconv.conv(x, w, **options),
        cuconv.conv_input_grad(dy, w, x.shape, **options),
        cuconv.conv_weight_grad(x, dy, w.shape, **options),
    )
    for parts in itertools.product((1, 2, 3), repeat=problem.rank):
        grid = [splits.even(extent, n) for extent, n in zip(problem.input, parts, strict=True)]
        inputs = [splits.bounds(chunks) for chunks in grid]
        outputs = [splits.outputs(problem, axis, chunks) for axis, chunks in enumerate(grid)]
        sum_of_dw = np.zeros_like(dw)
        for chunk in itertools.product(*map(range, parts)):
            held, made = ([of[i] for of, i in zip(axes, chunk, strict=True)] for axes in (inputs, outputs))
            window = [splits.read(problem, axis, part) for axis, part in enumerate(made)]
            readers = [splits.readers(problem, axis, part) for axis, part in enumerate(held)]
            here = (..., *(slice(*part) for part in made))
            part = cuconv.conv(only(x, window), w, **options)[here]
            np.testing.assert_array_equal(part, y[here])
            sum_of_dw += cuconv.conv_weight_grad(only(x, window), only(dy, made), w.shape, **options)
            here = (..., *(slice(*part) for part in held))
            part = cuconv.conv_input_grad(only(dy, readers), w, x.shape, **options)[here]
            np.testing.assert_array_equal(part, dx[here])
        np.testing.assert_array_equal(sum_of_dw, dw)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("text", SMALL)
def test_grids_cost_what_their_fullest_chunk_does(text, op):
    """Beside the batch, which divides it."""
    problem = ConvProblem.parse(text)
    channels = problem.k if op == "dgrad" else problem.c
    for parts in itertools.product((1, 2, 3), repeat=problem.rank):
        split = Split(space=parts)
        if math.prod(parts) == 1 or split.unfit(problem):
            continue
        grid = [splits.even(extent, n) for extent, n in zip(problem.input, parts, strict=True)]
        needed, own = counted(problem, grid, op)
        halo = max(len(cells - own[chunk]) for chunk, cells in needed.items())
        for batch in range(1, problem.n + 1):
            images = -(-problem.n // batch)
            found = cost(problem, op, "float64", Split(batch=batch, space=parts))
            assert found.exchanged == 8 * images * channels * halo
            assert found.summands == batch * math.prod(parts)
            assert found.summed == (8 * math.prod(problem.w_shape()) if op == "wgrad" else 0)


def test_channels_cost_what_is_sent():
    """Four GPUs, each with a quarter of x, w and y: their parts of a sum, or what the others have."""
    problem = ConvProblem.parse("n2c8h6w6 k4r3s3 p1")
    x, w, dy = arrays(problem)
    options = problem.options()
    x_parts, dy_parts = np.split(x, 4, axis=1), np.split(dy, 4, axis=1)
    y, dx = cuconv.conv(x, w, **options), cuconv.conv_input_grad(dy, w, x.shape, **options)
    # Input channels: every GPU is sent three parts of the sums that it adds up.
    sums = [cuconv.conv(part, w[:, 2 * i : 2 * i + 2], **options) for i, part in enumerate(x_parts)]
    sent = [np.split(each, 4, axis=1) for each in sums]
    for i in range(4):
        np.testing.assert_array_equal(sum(parts[i] for parts in sent), np.split(y, 4, axis=1)[i])
    assert cost(problem, "fprop", "float64", Split(c=4)).exchanged == 3 * sent[0][0].nbytes
    for op in ("dgrad", "wgrad"):
        assert cost(problem, op, "float64", Split(c=4)).exchanged == 3 * dy_parts[0].nbytes
    # Output channels: the other way round.
    sums = [cuconv.conv_input_grad(part, w[i : i + 1], x.shape, **options) for i, part in enumerate(dy_parts)]
    sent = [np.split(each, 4, axis=1) for each in sums]
    for i in range(4):
        np.testing.assert_array_equal(sum(parts[i] for parts in sent), np.split(dx, 4, axis=1)[i])
    for op in OPS:
        found = cost(problem, op, "float64", Split(k=4))
        assert found.exchanged == 3 * x_parts[0].nbytes
        assert (found.messages, found.summands) == (2, 1)
    half = cost(problem, "wgrad", "float64", Split(batch=2, k=4))
    assert (half.exchanged, half.summed, half.summands) == (3 * x_parts[0].nbytes // 2, w.nbytes // 4, 2)


@pytest.mark.parametrize(("channels", "sent"), [(2, 0), (4, 0), (8, 1)])
def test_whole_groups_are_sent_nothing(channels, sent):
    """And of a group in parts only the others' parts."""
    problem = ConvProblem.parse("n1c8h8w8 k8r3s3 g4 p1")
    for split in (Split(c=channels), Split(k=channels)):
        for op in OPS:
            assert cost(problem, op, "float32", split).exchanged == sent * 4 * 64


# -- sums and exchanges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_a_ring_moves_so_many_bytes(devices):
    """A ring carried out: who receives a part adds it to its own, then hands on what is summed up."""
    rng = np.random.default_rng(devices)
    own = rng.integers(0, 100, (devices, devices, 5))
    expected, received, messages = own.sum(axis=0), np.zeros(devices), 0
    for step in range(2 * (devices - 1)):
        before = own.copy()
        for device in range(devices):
            sender = (device - 1) % devices
            part = (sender - step) % devices
            if step < devices - 1:
                own[device, part] += before[sender, part]
            else:
                own[device, part] = before[sender, part]
            received[device] += before[sender, part].nbytes
        messages += 1
    assert (own == expected).all()
    assert (received == splits.ring_bytes(expected.nbytes, devices)).all()
    link = splits.Link("one", 1e9, {"Simple": 1e-6})
    alone = link.seconds(messages, received[0])
    assert splits.all_reduce_seconds(expected.nbytes, devices, link) <= alone
    large = 1e15
    assert splits.all_reduce_seconds(large, devices, link) == link.seconds(
        messages, splits.ring_bytes(large, devices)
    )


@pytest.mark.parametrize("devices", [2, 4, 8, 16])
def test_an_exchange_takes_so_many_messages(devices):
    """Pairs exchange what they have, then pairs of pairs: the bytes of q - 1 parts in log2 q messages."""
    held, received, messages = [{device} for device in range(devices)], [0] * devices, 0
    while any(len(parts) < devices for parts in held):
        distance = 2**messages
        sent = [held[device ^ distance] for device in range(devices)]
        received = [count + len(parts) for count, parts in zip(received, sent, strict=True)]
        held = [mine | theirs for mine, theirs in zip(held, sent, strict=True)]
        messages += 1
    problem = ConvProblem.parse("n1c16h4w4 k16r1s1")
    found = cost(problem, "fprop", "float32", Split(k=devices))
    assert found.messages == messages
    assert received == [found.exchanged * devices // (4 * 16 * 16)] * devices


def test_trees_win_for_small_sums_and_boxes_for_large_ones():
    ring = INFINIBAND.seconds(2 * 1023, splits.ring_bytes(1e3, 1024))
    assert splits.all_reduce_seconds(1e3, 1024, INFINIBAND) == INFINIBAND.seconds(20, 2e3) < ring / 10
    for size in (1e6, 1e9):
        boxed = splits.boxed_all_reduce_seconds(size, 64, NVLINK, INFINIBAND)
        assert boxed < splits.all_reduce_seconds(size, 64, INFINIBAND)
    # At best an eighth of the bytes, and what NVLink takes beside.
    assert boxed > splits.ring_bytes(1e9, 8) / 8 / INFINIBAND.rate + splits.ring_bytes(1e9, 8) / NVLINK.rate
    assert splits.boxed_all_reduce_seconds(1e9, 8, NVLINK, INFINIBAND) < splits.all_reduce_seconds(
        1e9, 8, INFINIBAND
    )


def test_a_link_takes_the_faster_protocol():
    """LL without waiting for buffers, Simple at the full rate."""
    for link in LINKS:
        assert link.seconds(0, 0) == 0
        assert link.seconds(2, 0) == splits.CALL["LL"] + 2 * link.message["LL"]
        assert link.seconds(1, 1e12) == pytest.approx(1e12 / link.rate, rel=1e-3)
        assert link.seconds(3, 1e6) > link.seconds(3, 1e5) > link.seconds(2, 1e5)


# -- what must hold for any split --------------------------------------------------------------------------

LARGE = {text: ConvProblem.parse(text) for text in splits.PROBLEMS}


@pytest.mark.parametrize("text", [*SMALL, *splits.PROBLEMS])
@pytest.mark.parametrize("op", OPS)
def test_one_gpu_is_sent_nothing_and_does_all(text, op):
    problem = ConvProblem.parse(text)
    one = cost(problem, op, "float32", Split())
    assert (one.received, one.messages) == (0, 0)
    assert one.flops == problem.flops(op, "float32")
    assert one.held == problem.bytes(op, "float32")
    assert [one.seconds(link) for link in LINKS] == [one.floor] * 3
    assert splits.efficiency(problem, "float32", Split(), INFINIBAND) == 1


@pytest.mark.parametrize("text", splits.PROBLEMS)
def test_more_gpus_move_more_and_none_gains_more_than_its_share(text):
    problem, dtype = LARGE[text], splits.PROBLEMS[text]
    for axis in range(problem.rank):
        before = -1
        for count in (1, 2, 4, 7):
            parts = [count if other == axis else 1 for other in range(problem.rank)]
            grid = [splits.even(extent, n) for extent, n in zip(problem.input, parts, strict=True)]
            for op in OPS:
                cut = splits.halo_bytes(problem, grid, dtype, op)
                assert cut >= 0
            assert cut > before or problem.reach[axis] == 1
            before = cut
    for devices in splits.DEVICES:
        for split in splits.splits(problem, dtype, devices):
            assert split.devices == devices
            assert split.unfit(problem) is None
            for op in OPS:
                found = cost(problem, op, dtype, split)
                assert found.flops * devices >= problem.flops(op, dtype)
                assert found.held >= problem.bytes(op, dtype) / devices
            for link in LINKS:
                assert 0 < splits.efficiency(problem, dtype, split, link) < 1
    received = [cost(problem, "wgrad", dtype, Split(batch=n)).received for n in range(1, problem.n + 1)]
    assert received == sorted(received)


def test_of_each_kind_the_best_split_is_kept():
    """Of all there are, by other means."""
    problem = ConvProblem.parse("n4c8h16w16 k8r3s3 p1")
    found = list(splits.splits(problem, "float32", 8))
    numbers = (1, 2, 4, 8)
    everything = [
        Split(n, (h, w), c, k)
        for n, h, w, c, k in itertools.product(numbers, repeat=5)
        if n * h * w * c * k == 8 and not Split(n, (h, w), c, k).unfit(problem)
    ]

    def kind(split):
        return split.batch > 1, math.prod(split.space) > 1, split.c > 1, split.k > 1

    def seconds(split):
        return splits.training_seconds(problem, "float32", split, INFINIBAND)

    assert {kind(split) for split in found} == {kind(split) for split in everything}
    for split in found:
        assert seconds(split) == min(seconds(other) for other in everything if kind(other) == kind(split))
    least = splits.fastest(problem, "float32", 8, INFINIBAND)
    assert seconds(least) == min(map(seconds, everything))


def test_what_cannot_be_split_so():
    problem = ConvProblem.parse("n2c4h8w8 k6r3s3 p1")
    for split, reason in [
        (Split(batch=3), "not every GPU would have a part"),
        (Split(c=5), "not every GPU would have a part"),
        (Split(space=(9, 1)), "not every GPU would have a part"),
        (Split(space=(2,)), "space has 2 axes"),
        (Split(space=(2, 1), c=2), "only one is split"),
        (Split(c=2, k=2), "only one is split"),
    ]:
        with pytest.raises(ValueError, match=reason):
            cost(problem, "fprop", "float32", split)
    with pytest.raises(ValueError, match="nor a group of whole parts"):
        cost(ConvProblem.parse("n1c12h8w8 k12r3s3 g4"), "fprop", "float32", Split(c=6))
    with pytest.raises(ValueError, match="chunks must add up to 8 on axis 1"):
        splits.halo_bytes(problem, ((4, 4), (4, 3)), "float32")
    with pytest.raises(ValueError, match="the chunks of 2 axes, got 1"):
        splits.halo_bytes(problem, ((4, 4),), "float32")
    with pytest.raises(ValueError, match="padding_mode must be 'zeros'"):
        cost(ConvProblem.parse("n1c1w9 k1s3 p1 circular"), "fprop", "float32", Split(space=(2,)))


# -- the page ----------------------------------------------------------------------------------------------


def test_the_page_has_what_is_computed(tmp_path, capsys):
    assert splits.main(["--check"]) == 0
    page = tmp_path / "scale.md"
    page.write_text(splits.PAGE.read_text().replace("NVLink |", "NVLink, wrong |"))
    assert splits.main(["--check", "--page", str(page)]) == 1
    assert splits.main(["--update", "--page", str(page)]) == 0
    assert page.read_text() == splits.PAGE.read_text()
    page.write_text("no tables")
    with pytest.raises(ValueError, match="must have <!-- splits:begin -->"):
        splits.main(["--check", "--page", str(page)])
    capsys.readouterr()
    assert splits.main([]) == 0
    printed = capsys.readouterr().out
    for part in (splits.rates(), splits.best(), splits.boxes(), splits.details()):
        assert part in printed
        assert part in splits.PAGE.read_text()


def test_what_the_page_says_of_its_tables():
    """Its sentences on which split is best hold for its problems."""

    def fastest(text, devices, link=INFINIBAND):
        problem = LARGE[text]
        split = splits.fastest(problem, splits.PROBLEMS[text], devices, link)
        return split, splits.efficiency(problem, splits.PROBLEMS[text], split, link)

    for text, problem in LARGE.items():
        for link in LINKS:
            split, found = fastest(text, 8, link)
            if problem.n == 1:
                assert math.prod(split.space) == 8
            else:
                assert split.batch > 1
            if splits.PROBLEMS[text] == "float32":  # the large volume and the long signal
                assert found > 0.5
            elif math.prod(problem.input) < 100 or (link is not NVLINK and problem.input[0] < 100):
                assert found < 0.5
    assert splits.PAGE.read_text().count("**No time on this page was measured.**") == 1
    # Batch against input channels: bytes of a step, where the two are equal.
    problem = ConvProblem.parse("n16c24h4w4 k1024r4s4 p1:2")
    assert 3 * problem.n * math.prod(problem.output) == 2 * problem.c * math.prod(problem.filter)
    y, w = (math.prod(shape) for shape in (problem.y_shape(), problem.w_shape()))
    assert 3 * y == 2 * w
