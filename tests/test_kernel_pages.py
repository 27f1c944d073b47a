"""The pages of docs/kernels: tables and drawings are what the script makes, and numbers are the code's."""

import functools
import io
import math
import re
import shutil
from contextlib import redirect_stdout
from unittest import mock

import pytest

import cuconv
from benchmarks import drawings, kernel_pages
from benchmarks.kernel_pages import ARCH, COSTS, DRAWINGS, FOLDER, OPS, TABLES_OF
from cuconv.cuda import (
    algorithms,
    depthwise,
    direct,
    fft,
    grouped,
    jit,
    mma,
    schedule,
    simt,
    sums,
    transform,
    wgmma,
)
from cuconv.cuda.device import DEVICES
from cuconv.cuda.kernel import VECTOR
from cuconv.dtypes import DTYPES

PAGES = {path.stem: path.read_text() for path in FOLDER.glob("*.md")}
H200 = DEVICES[ARCH]
FAMILIES = sorted({entry.name for entries in algorithms.TABLE.values() for entry in entries} - {"sum"})
"""All that multiply: the bias gradient is on the page of passes."""


# ---- what the script makes ----


@pytest.fixture
def folder(tmp_path):
    """A copy of the pages, to plant faults in."""
    return shutil.copytree(FOLDER, tmp_path / "kernels")


def test_tables_and_drawings_are_what_the_script_makes(capsys):
    pytest.importorskip("matplotlib")
    assert kernel_pages.main(["--check"]) == 0
    assert not capsys.readouterr().out


@pytest.mark.parametrize("page", TABLES_OF)
def test_a_fault_in_a_table_is_found(page, folder):
    """A digit of the last row of costs, where the drawings are not looked at."""
    path = folder / f"{page}.md"
    text = path.read_text()
    assert kernel_pages.written(page, text) == text
    begin, end = kernel_pages.marks("costs")
    table = text.split(begin)[1].split(end)[0]
    place = max(match.start() for match in re.finditer(r"\d", table))
    other = table[:place] + str((int(table[place]) + 1) % 10) + table[place + 1 :]
    assert kernel_pages.written(page, text.replace(table, other)) == text


def test_a_fault_in_a_drawing_is_found(folder, capsys):
    pytest.importorskip("matplotlib")
    path = folder / "simt.svg"
    drawing = path.read_text()
    path.write_text(drawing.replace("128 threads", "129 threads"))
    (folder / "mma.svg").unlink()
    assert kernel_pages.main(["--check", "--folder", str(folder)]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["simt.svg", "mma.svg"]
    assert kernel_pages.main(["--folder", str(folder)]) == 0
    assert path.read_text() == drawing


def test_drawings_of_another_matplotlib_are_compared_by_their_words():
    drawing = (FOLDER / "simt.svg").read_text()
    older = re.sub(r"Matplotlib v[\d.]+", "Matplotlib v3.8.0", drawing)
    assert drawings.alike(drawing, drawing)
    assert drawings.alike(drawing, older.replace("#cfe0f5", "#cfe0f6"))
    assert not drawings.alike(drawing, drawing.replace("#cfe0f5", "#cfe0f6"))
    assert not drawings.alike(drawing, older.replace("128 threads", "129 threads"))
    assert "the tile: 128 threads," in drawings.texts(drawing)


@pytest.mark.parametrize("page", DRAWINGS)
def test_drawings_are_small_and_the_same_at_any_time(page):
    drawing = (FOLDER / f"{page}.svg").read_text()
    assert len(drawing) < 60_000
    assert "<dc:date>" not in drawing
    assert f"]({page}.svg)" in PAGES[page]
    pytest.importorskip("matplotlib")
    assert DRAWINGS[page]().svg() == DRAWINGS[page]().svg()


def test_costs_are_those_of_the_page_on_predictions():
    """The same counts, as another file makes the table there."""
    theirs = (FOLDER.parent / "predictions.md").read_text()
    compared = 0
    for family in COSTS:
        for op, arrays, *found in re.findall(
            r"^\| (\w+) \| \w+, (\w+) \| ([\d.]+) \| ([\d.]+) \| (\d+%) \|", PAGES[family], re.MULTILINE
        ):
            (line,) = re.findall(rf"^\| {family} \| {op} \| {arrays} \|.*$", theirs, re.MULTILINE)
            assert f"| {' | '.join(found)} |" in line, (family, line)
            compared += 1
    assert compared == 2 * len(OPS) * len(COSTS) - len(OPS)  # grouped has one of the two kinds


# ---- what pages there are ----


def test_every_family_has_a_page_with_its_sources():
    assert sorted(PAGES) == sorted([*FAMILIES, "passes", "index"])
    assert sorted(TABLES_OF) == sorted(DRAWINGS) == sorted([*FAMILIES, "passes"])
    for family in FAMILIES:
        assert f"[`{family}`]({family}.md)" in PAGES["index"]
        assert f"(../../cuconv/cuda/{family}.py)" in PAGES[family]
        if family != "fft":
            assert f"(../../cuda_src/{family}.cuh)" in PAGES[family]
    files = {kernel.file for kernel in (*transform.kernels(), *schedule.padding_kernels())}
    files |= {kernel.file for kernel in (*schedule.widening_kernels(), *sums.kernels("float32"))}
    for file in files:
        assert f"(../../cuda_src/{file})" in PAGES["passes"]


def test_every_launch_of_the_passes_is_named():
    kernels = (*transform.kernels(), *schedule.padding_kernels(), *schedule.widening_kernels())
    for kernel in (*kernels, *schedule.reduce_kernels(), *sums.kernels("float32")):
        assert f"`{kernel.template}`" in PAGES["passes"]


# ---- numbers ----


def source(file):
    return (jit.SOURCES / file).read_text()


def constant(file, pattern):
    """The numbers in the one place of a kernel's source that a pattern matches."""
    (found,) = re.findall(pattern, source(file))
    return tuple(map(int, found)) if isinstance(found, tuple) else int(found)


@functools.cache
def launch(family):
    """The launch that multiplies in fprop, of what the page's program plans."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGES[family], re.DOTALL)
    with mock.patch.object(cuconv, "plan", wraps=cuconv.plan) as plan, redirect_stdout(io.StringIO()):
        exec(program, {})
    first = plan.call_args_list[0]
    assert first.args[0] == "fprop"
    return cuconv.plan(*first.args, **first.kwargs).launches[-1]


def bytes_of(size):
    return f"{size:,} bytes"


def facts_of_direct():
    kernel = launch("direct").kernel
    return [f"A block is {kernel.threads} such threads", "2^31", "indices have 64 bits"]


def facts_of_simt():
    tile, item = simt.TILES["fprop"]["float32"][0], 4
    vector = VECTOR // item
    wide = min(tile.bn // tile.tn, 8)
    buffers = 2 * tile.bk * ((tile.bm + vector) + (tile.bn + vector)) * item
    assert launch("simt").kernel.arguments[1:6] == (tile.bm, tile.bn, tile.bk, tile.tm, tile.tn)
    assert (tile.tm // vector) * (tile.tn // vector) == 4, "four pieces"
    assert (tile.tm + tile.tn) * item // VECTOR == 4, "four vectors"
    assert constant("simt.cuh", r"WARP_N = BN / TN < 8 \? BN / TN : (\d+)") == 8
    assert simt.TILES["wgrad"]["float32"][0] == tile
    assert tile.planar
    return [
        "before sm_80", f"of float32 {tile.bm} x {tile.bn}", f"slices, {tile.bk} deep",
        f"a patch of {32 // wide} x {wide} threads", f"{tile.tm} x {tile.tn} sums in registers",
        f"pieces of {vector} x {vector}", f"multiplies {tile.tm * tile.tn} times",
        f"the tile of {tile.bm} x {tile.bn} once more",
        f"{bytes_of(buffers)} in all for that tile", f"up to {simt._most('float32')} neighbouring channels",
        f"vectors of {VECTOR} bytes", "2^30", "have 32 bits", f"at most {schedule.SHOWN_TAPS} taps",
        f"at least {schedule.SHOWN_CHANNELS} channels", f"more than {simt.SHOWN_FILTERS} filters",
    ]  # fmt: skip


def facts_of_depthwise():
    view, kernel = drawings.depthwise_view(), launch("depthwise").kernel
    shape, tile = view.shape, view.tile
    lines, width = shape.rows + shape.taps_r - 1, shape.out + shape.taps_s - 1
    products = shape.rows * shape.out * shape.taps_r * shape.taps_s
    fields = dict(launch("depthwise").fields)
    unrolled = {(each.taps_r, each.taps_s) for each in (*depthwise._GATHERS, *depthwise._WGRADS)}
    assert unrolled == {(3, 3), (5, 5), (7, 7), (1, 4)}
    assert {(each.taps_r, each.taps_s) for each in depthwise._of_several(depthwise._GATHERS)} == {(3, 3)}
    assert shape.taps_r == 3, "three rows"
    assert depthwise.SHARED % 1024 == 0
    return [
        "also for 3 x 3 filters", f"up to {depthwise.MOST_CHANNELS} channels a group",
        f"{view.height} x {view.width} results of {tile.held} channels, of {fields['chunk']} images",
        f"a strip of {shape.rows} x {shape.out} results",
        f"{tile.across} x {tile.along} strips of {tile.held} channels keep "
        f"{tile.across * tile.along * tile.held} of the {kernel.threads} threads busy",
        f"{lines} lines of {width} cells", f"{products} products for {lines * width} cells",
        "for 3 x 3, 5 x 5 and 7 x 7 filters", f"{bytes_of(launch('depthwise').shared_bytes)} for this tile",
        f"more than {depthwise.SHARED >> 10} KiB", f"the {depthwise.SHARED >> 10} KiB",
        f"vectors of {VECTOR} bytes",
        f"{depthwise.LANES} neighbouring threads have {depthwise.LANES} channels",
        "2^30", "for stride 1", "for 3 x 3 filters of stride 2",
    ]  # fmt: skip


def facts_of_grouped():
    tile, work = drawings.grouped_tile(), launch("grouped")
    assert work.kernel.arguments[1:] == tile.arguments
    few, *others, most = grouped.CHANNELS
    blocks = {int(rows) for rows, _ in grouped._BLOCKS}
    assert constant("grouped.cuh", r"JOBS = (\d+), PAIRS = (\d+);") == (grouped.JOBS, grouped.PAIRS)
    assert constant("grouped.cuh", r"constexpr int OCTET = (\d+);") == 2 * grouped.OCTET
    assert constant("grouped.cuh", r"slice = 0; slice < steps; slice \+= (\d+)") * 16 == grouped.SLICE
    return [
        "16-bit layers", f"groups of {few}, {', '.join(map(str, others))} or {most} channels and filters",
        f"want {mma.LEAST} channels", f"of {grouped.SET} channels where groups have fewer",
        f"here {tile.groups} groups of {grouped.CHANNELS[0]}", f"at most {grouped.MOST} in each",
        f"here {tile.high} x {tile.wide}",
        f"an octet, are {2 * grouped.OCTET} bytes",
        f"multiplies {16 * max(blocks)} pixels, or {16 * min(blocks)},",
        "a product takes 16 pixels", f"and {grouped.OCTET} results", f"copies of {VECTOR} bytes",
        f"{bytes_of(tile.shared_bytes)} here, at most {grouped.SHARED >> 10} KiB", "takes 16 pixels from",
        f"slice of {grouped.SLICE} products", "products of 16 pixels",
        f"no multiples of {grouped.OCTET}", f"no multiple of {grouped.OCTET}",
        f"more than {grouped.MOST_CHANNELS} channels or filters", "more than 4 times as many",
        f"wgrad has {grouped._WARPS['wgrad']} warps", f"in slices of {grouped.SLICE}",
        f"Up to {grouped.PAIRS} pairs",
    ]  # fmt: skip


def facts_of_mma():
    work = launch("mma")
    tile = mma.PRODUCTS["float16", None].tiles["fprop"][0]
    assert work.kernel.arguments[1:7] == (tile.bm, tile.bn, tile.bk, tile.wm, tile.wn, tile.stages)
    depths = {name[0]: {each.bk for each in made.tiles["fprop"]} for name, made in mma.PRODUCTS.items()}
    assert depths["float16"] == {32}
    assert depths["float32"] == {16}
    assert {each.newest for made in mma.PRODUCTS.values() for each in made.tiles["fprop"]} == {None, 90}
    vectors = [VECTOR // DTYPES[dtype].itemsize for dtype in ("float16", "float32", "float64", "complex128")]
    assert DTYPES["complex64"].itemsize == DTYPES["float64"].itemsize
    m, n, k = constant("mma.cuh", r"mma_m(\d+)n(\d+)k(\d+)_f16\(")
    parts = constant("parts.cuh", r"constexpr int PARTS = (\d+);")
    assert parts == 3, "three parts"
    return [
        "from sm_80 on", f"about {mma.LEAST} channels and filters", f"of {m} x {n} sums", f"of {k} steps of",
        "An instruction of 16 bits", f"a warp's part of {tile.wm} x {tile.wn}",
        f"these are {tile.wm * tile.wn // 32} registers",
        f"copies of {VECTOR} bytes: {vectors[0]} neighbouring channels of 16 bits, {vectors[1]} of float32, "
        f"{vectors[2]} of float64 and complex64, {vectors[3]} of complex128",
        f"with {tile.stages} stages {tile.stages - 1} slices are under way",
        f"This block has {bytes_of(work.shared_bytes)}", "loads fragments of 16 bits",
        "32 products of 16 bits, 16 of float32", "three parts of 8 bits",
        f"by {mma.PRODUCTS['float32', None].parts} products of bfloat16", "newer than sm_90", "before sm_80",
        f"fewer than {mma.LEAST} channels or filters", "2^30", f"fewer than {mma.SHORT} products",
        "by a table in 16 bits", f"at most {schedule.SHOWN_TAPS} taps",
        f"at least {schedule.SHOWN_CHANNELS} channels", "so that in 16 bits",
    ]  # fmt: skip


def facts_of_wgmma():
    most, least = constant("wgmma.cuh", r"BM \* BN > 128 \* 128 \? (\d+) : PARTS > 1 \? \d+ : (\d+);")
    assert least > most
    registers = constant("wgmma.cuh", r"MULTIPLYING = \(3 \* (\d+) - BRINGING\) / 2;")
    group, consumers = constant("wgmma.cuh", r"WARPGROUP = (\d+), CONSUMERS = (\d+);")
    assert group * (consumers + 1) == wgmma.THREADS
    assert constant("wgmma.cuh", r"WARPS = (\d+) \* CONSUMERS") * 32 == group
    assert constant("wgmma.cuh", r"LINE = (\d+), BK") == wgmma.LINE
    made = {name: each for name, each in wgmma.PRODUCTS.items() if each.longest}
    half, brain, tf32 = made["float16", None], made["bfloat16", None], made["float32", "tf32"]
    assert "wgrad" not in tf32.ops
    first = launch("wgmma")
    assert first.kernel.threads == wgmma.THREADS
    assert first.kernel.residents == 1
    return [
        f"of {wgmma.LEAST} channels and filters a group", f"one block of {wgmma.THREADS} threads",
        f"at most {H200.multiprocessors} blocks", f"begin with {registers} registers",
        f"above {most}", f"the consumers take {(3 * registers - most) // 2}",
        f"a line of {wgmma.LINE} bytes: {half.depth} numbers of 16 bits, {tf32.depth} of TF32",
        f"copies of {VECTOR} bytes", f"the producer's {group} threads",
        f"the {consumers * group // 32} warps",
        "Products of 16 bits", "which products of 16 bits", "some 60%",
        f"at most {half.longest * half.depth:,} products of float16, "
        f"{brain.longest * brain.depth:,} of bfloat16 and {tf32.longest * tf32.depth:,} of TF32",
        f"fewer than {wgmma.LEAST} channels or filters", f"fewer than {wgmma.SHORT} products",
    ]  # fmt: skip


def facts_of_fft():
    primes = [2, 3, 5, 7]
    for extent in (11, 1023, 4126, 999_983):
        length = cuconv.fourier.fast_length(extent)
        for prime in primes:
            while length % prime == 0:
                length //= prime
        assert length == 1
    return [
        f"prime factor above {primes[-1]}",
        "the stride is above 1",
        f"of {fft.WORKSPACE >> 30} GiB",
        f"2^{math.log2(fft.LIMIT):.0f}",
    ]


def facts_of_passes():
    copies = {kernel.threads for kernel in (*schedule.padding_kernels(), *schedule.widening_kernels())}
    (by_tables,) = copies
    (rows,) = {kernel.threads for kernel in transform.kernels() if kernel.template == "conv_channels_last"}
    (summing,) = {kernel.threads for kernel in sums.kernels("float32")}
    vectors = max(transform._TILES)
    assert transform.PARTS * 2 / 4 == 1.5, "one and a half times the memory"
    return [
        f"copies {schedule._COPIED} elements, which become",
        f"copies {schedule._COPIED} elements of the padded x", f"vectors of {VECTOR} bytes",
        f"in up to {transform._LINES} lines", f"up for {schedule._FOLDED} elements",
        f"A block of {rows} threads has {transform._TILES[vectors]} places of {vectors} vectors",
        "three numbers of 16 bits", f"a block of {by_tables} threads", f"writes {VECTOR} bytes at once",
        f"its {summing} threads", "2^31", f"about {cost_of_a_launch()} us",
    ]  # fmt: skip


def cost_of_a_launch():
    from tests.cost.gpus import GPUS

    return f"{GPUS[ARCH].launch * 1e6:.1f}"


def facts_of_index():
    return ["16 bits", "those of 32 bytes"]


FACTS = {
    "direct": facts_of_direct,
    "simt": facts_of_simt,
    "depthwise": facts_of_depthwise,
    "grouped": facts_of_grouped,
    "mma": facts_of_mma,
    "wgmma": facts_of_wgmma,
    "fft": facts_of_fft,
    "passes": facts_of_passes,
    "index": facts_of_index,
}
"""By page, what it says with numbers, as the code has them."""


def prose(text):
    """A page without programs, generated tables, names in code and targets of links."""
    for pattern in (r"^```.*?^```$", r"<!-- (\w+): begin -->.*?<!-- \1: end -->"):
        text = re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(re.sub(r"`[^`]*`|\]\([^)]*\)", "", text).split())


@functools.cache
def facts_of(page):
    return [prose(fact) for fact in FACTS[page]()]


def unsaid(page, text):
    """The facts that a page does not say, and the numbers in it that are of none."""
    words, facts = prose(text), facts_of(page)
    missing = [fact for fact in facts if fact not in words]
    for fact in sorted(facts, key=len, reverse=True):
        words = words.replace(fact, "")
    return missing, re.findall(r"(?<![\w^])\d[\d,.]*\b.{0,20}", words)


@pytest.mark.parametrize("page", FACTS)
def test_numbers_are_those_of_the_code(page):
    assert unsaid(page, PAGES[page]) == ([], [])


@pytest.mark.parametrize("page", FACTS)
def test_any_other_number_is_found(page):
    """Each number of a page, planted as another one."""
    words = prose(PAGES[page])
    for match in re.finditer(r"(?<![\w^])\d[\d,]*", words):
        number = match[0].rstrip(",")
        other = str(int(number.replace(",", "")) + 1)
        planted = words[: match.start()] + other + words[match.start() + len(number) :]
        assert unsaid(page, planted) != ([], []), planted[match.start() - 30 : match.start() + 30]


def test_extents_of_the_product_are_those_of_problems():
    """The table of the index, by numbers."""
    problem = cuconv.ConvProblem.parse("n3c8h9w11 k12r3s5 g2 p1:2")
    n, (p, q), (h, w), (r, s) = problem.n, problem.output, problem.input, problem.filter
    letters = {"N": n, "P": p, "Q": q, "H": h, "W": w, "R": r, "S": s, "K/groups": 6, "C/groups": 4}
    for op in OPS:
        (row,) = re.findall(rf"^\| {op} \| (.*) \|$", PAGES["index"], re.MULTILINE)
        extents = tuple(
            math.prod(letters[word] for word in cell.split(":")[1].split()) for cell in row.split(" | ")
        )
        assert extents == problem.gemm(op)


def test_direct_reads_by_the_launch_that_the_drawing_shows():
    assert direct._kernel("fprop", "float32").threads == schedule.THREADS
    assert f"line; {schedule.THREADS} of" in drawings.texts((FOLDER / "direct.svg").read_text())
