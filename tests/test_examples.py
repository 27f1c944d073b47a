"""The programs in examples/ that need the extra `demo` alone: they run, and what they compute is right.

`volume.py` is run by test_dask_adapter.py, `data_parallel.py` by test_data_parallel.py.
"""

import ast
import functools
import gzip
import importlib.util
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from cuconv.cuda import jit

for library in ("sklearn", "matplotlib", "PIL", "tqdm"):
    pytest.importorskip(library)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "examples.md").read_text()
PICTURES = ROOT / "docs" / "examples"
NAMES = ("edges", "deblur", "scan", "fashion")


@functools.cache
def program(name):
    """The program as a module, which does nothing before its `main` is called."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def started(monkeypatch, tmp_path, capsys):
    """A function that runs a program in an empty folder: exit status, standard output, standard error."""

    def start(name, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        capsys.readouterr()
        try:
            status = program(name).main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return start


# -- all of them ------------------------------------------------------------------------------------------


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">2I", png[16:24])


@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_its_goal_and_draws_a_picture_as_large_as_the_pages(name, started, tmp_path):
    words = ("--data", clothes(tmp_path)) if name == "fashion" else ()
    status, out, _ = started(name, "--quick", *words)
    assert status == 0, out
    assert "goal" in out
    assert out.endswith(f"picture: {name}.png\n")
    drawn = (tmp_path / f"{name}.png").read_bytes()
    assert size_of(drawn) == size_of((PICTURES / f"{name}.png").read_bytes())


@pytest.mark.long
def test_from_the_repositorys_folder_as_the_page_says(tmp_path):
    out = tmp_path / "picture.png"
    command = [sys.executable, "examples/edges.py", "--quick", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith(f"picture: {out}\n")
    assert out.exists()


@pytest.mark.parametrize(("name", "impossible"), [("edges", -1.0), ("deblur", 99.0), ("scan", 0.0)])
def test_a_missed_goal_is_an_error(name, impossible, started, monkeypatch):
    monkeypatch.setattr(program(name), "GOAL", impossible)
    monkeypatch.setattr(program(name), "draw", lambda *_: None)
    status, out, _ = started(name, "--quick")
    assert status == 1
    assert f"(goal: {impossible})" in out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "picture.jpg"], "--out must be a .png file in an existing folder"),
        (["--out", "missing/picture.png"], "--out must be a .png file in an existing folder"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--gpu"], "--gpu needs CuPy and a GPU: "),
    ],
)
def test_wrong_options_are_one_line(name, words, said, started, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, out, errors = started(name, *words)
    assert (status, out) == (2, "")
    assert errors.startswith(f"{name}.py: error: {said}")
    assert errors.count("\n") == 1


def test_a_seed_is_a_number_from_zero_on(started):
    for word, said in (("-1", "--seed must be at least 0"), ("x", "argument --seed: invalid int value: 'x'")):
        assert started("fashion", "--seed", word) == (2, "", f"fashion.py: error: {said}\n")


def test_a_folder_is_no_picture(started, tmp_path):
    (tmp_path / "folder.png").mkdir()
    status, _, errors = started("edges", "--out", "folder.png")
    assert (status, errors.count("\n")) == (2, 1)


def test_cupys_words_on_what_it_lacks_are_one_line_too(started, monkeypatch):
    def device():
        raise RuntimeError("\n====\nno driver\n====\n")

    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=device)))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    said = "edges.py: error: --gpu needs CuPy and a GPU: ==== no driver ====\n"
    assert started("edges", "--gpu") == (2, "", said)


@pytest.mark.parametrize("name", NAMES)
def test_help_begins_with_what_it_shows(name, started):
    status, out, _ = started(name, "--help")
    assert status == 0
    assert out.startswith(program(name).__doc__)
    assert f"python examples/{name}.py" in out
    assert f"(default: {name}.png)" in out


@pytest.mark.gpu
@pytest.mark.skipif(jit.usable_cupy() is None, reason="there is no GPU that CuPy can use")
@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_its_goal_on_a_gpu(name, started, tmp_path):
    words = ("--data", clothes(tmp_path)) if name == "fashion" else ()
    status, out, _ = started(name, "--quick", "--gpu", *words)
    assert status == 0, out


def test_they_need_nothing_beside_the_extra():
    """The modules that they import, beside Python's own."""
    allowed = {"cuconv", "cupy", "matplotlib", "numpy", "PIL", "sklearn", "tqdm"}
    for name in NAMES:
        tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
        imported = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert imported - set(sys.stdlib_module_names) <= allowed


def test_the_page_shows_every_example():
    """Each is linked, with a command; each picture is there, and small enough to be fetched with the page."""
    for path in EXAMPLES.glob("*.py"):
        assert f"](../examples/{path.name})" in PAGE
        assert re.search(rf"^\S+ .*examples/{path.name}", PAGE, re.MULTILINE)
    pictures = {path.name: path.stat().st_size for path in PICTURES.glob("*.png")}
    assert set(pictures) == {f"{name}.png" for name in NAMES}
    assert set(re.findall(r"\]\(examples/(\w+\.png)\)", PAGE)) == set(pictures)
    assert max(pictures.values()) < 250_000
    assert sum(pictures.values()) < 900_000


@pytest.mark.parametrize(
    ("name", "stated"),
    [("edges", r"(\d+)°"), ("deblur", r"(\d+) dB"), ("scan", r"(0\.\d+)"), ("fashion", r"(\d+) %")],
)
def test_the_page_states_the_goals(name, stated):
    paragraph = PAGE.partition(f"](../examples/{name}.py)")[2].partition("\n## ")[0]
    goal = float(re.search(rf"goal is {stated}", paragraph.replace("\n", " "))[1])
    assert goal == program(name).GOAL * (100 if name == "fashion" else 1)


# -- edges ------------------------------------------------------------------------------------------------


def test_the_sobel_filters_are_scipys():
    edges = program("edges")
    photo = np.random.default_rng(0).random((40, 50))
    found = edges.filtered(photo, edges.sobel_filters().astype(float))
    for axis, ours in zip((1, 0), found, strict=True):
        np.testing.assert_allclose(8 * ours, scipy.ndimage.sobel(photo, axis, mode="reflect"), atol=1e-12)


def test_the_gabor_filters_are_waves_and_what_they_see_is_scipys():
    edges = program("edges")
    photo, angles = np.random.default_rng(0).random((40, 50)), np.arange(8) * np.pi / 8
    bank = edges.gabor_filters(angles).astype(complex)
    assert bank.shape == (8, 1, 11, 11)
    assert abs(bank.sum(axis=(1, 2, 3))).max() < 1e-6  # blind to even brightness
    np.testing.assert_allclose(bank[4], np.swapaxes(bank[0], 1, 2), atol=1e-7)
    for ours, wave in zip(edges.filtered(photo.astype(complex), bank), bank[:, 0], strict=True):
        real, imaginary = (
            scipy.ndimage.correlate(photo, part, mode="reflect") for part in (wave.real, wave.imag)
        )
        np.testing.assert_allclose(ours, real + 1j * imaginary, atol=1e-12)


def test_the_directions_of_ripples_point_to_their_centre():
    edges = program("edges")
    rows, columns = np.mgrid[-40:41, -40:41]
    radius = np.hypot(rows, columns)
    ripples = np.sin(radius * 2 * np.pi / 7).astype(np.float32)
    gx, gy = edges.filtered(ripples, edges.sobel_filters())
    slopes = (abs(np.sin(radius * 2 * np.pi / 7)) < 0.5) & (radius > 10) & (radius < 35)
    off = edges.difference(np.arctan2(gy, gx) % np.pi, np.arctan2(rows, columns) % np.pi)[slopes]
    assert off.max() < 5


def test_directions_are_the_same_after_half_a_turn():
    one, other = np.radians([0, 10, 179, 90]), np.radians([180, 350, 1, 0])
    np.testing.assert_allclose(program("edges").difference(one, other), [0, 20, 2, 90], atol=1e-9)


# -- deblur -----------------------------------------------------------------------------------------------


def test_the_blur_is_scipys():
    deblur, rng = program("deblur"), np.random.default_rng(0)
    h, x = deblur.camera_path().astype(float), rng.random((3, 1, 40, 50))
    assert h.shape == (15, 15)
    assert h.sum() == pytest.approx(1)
    whole = np.stack([scipy.ndimage.convolve(colour, h) for colour in x[:, 0]])
    np.testing.assert_allclose(deblur.blurred(x, h[None, None])[:, 0], whole[:, 7:-7, 7:-7], atol=1e-12)


def test_the_gradient_is_the_slope_of_the_loss():
    deblur, rng = program("deblur"), np.random.default_rng(0)
    x, towards = rng.random((2, 3, 1, 20, 24))
    h, d = deblur.camera_path(7).astype(float)[None, None], deblur.differences().astype(float)
    y = rng.random((3, 1, 14, 18))
    options = dict(strength=0.3, epsilon=0.1)
    _, gradient = deblur.loss_and_gradient(x, y, h, d, **options)
    step = 1e-5
    ahead, behind = (
        deblur.loss_and_gradient(x + each * towards, y, h, d, **options)[0] for each in (step, -step)
    )
    assert (gradient * towards).sum() == pytest.approx((ahead - behind) / (2 * step), rel=1e-8)
    # The loss itself, from its definition.
    residual = (
        np.stack([scipy.ndimage.convolve(colour, h[0, 0]) for colour in x[:, 0]])[:, 3:-3, 3:-3] - y[:, 0]
    )
    across, down = np.diff(x[:, 0], axis=2)[:, :-1], np.diff(x[:, 0], axis=1)[:, :, :-1]
    expected = (residual**2).sum() / 2 + 0.3 * np.sqrt(across**2 + down**2 + 0.01).sum()
    assert deblur.loss_and_gradient(x, y, h, d, **options)[0] == pytest.approx(expected, rel=1e-12)


def test_without_noise_the_picture_is_found_and_the_loss_falls():
    deblur, rng = program("deblur"), np.random.default_rng(0)
    x = rng.random((1, 1, 24, 24))
    h, d = np.zeros((1, 1, 3, 3)), deblur.differences().astype(float)
    h[0, 0, 1] = 0.2, 0.6, 0.2
    y, losses = deblur.blurred(x, h), []
    restored = deblur.restore(np.zeros_like(x), y, h, d, 200, lambda x, loss: losses.append(loss))
    seen = (..., slice(3, -3), slice(3, -3))
    assert deblur.psnr(restored[seen], x[seen]) > 40
    assert losses[-1] < 0.01 * losses[0]


def test_decibels():
    assert program("deblur").psnr(np.full(5, 0.6), np.full(5, 0.5)) == pytest.approx(20)


# -- scan -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.3])
def test_three_calls_are_scipys_gaussian(sigma):
    x = np.random.default_rng(0).random((12, 13, 14))
    expected = scipy.ndimage.gaussian_filter(x, sigma, mode="reflect", radius=int(np.ceil(3 * sigma)))
    np.testing.assert_allclose(program("scan").smoothed(x[None], sigma)[0], expected, atol=1e-12)


def test_steepness_is_scipys_sobel():
    x = np.random.default_rng(0).random((1, 10, 11, 12), np.float32)
    slopes = [scipy.ndimage.sobel(x[0].astype(float), axis, mode="reflect") / 32 for axis in range(3)]
    np.testing.assert_allclose(program("scan").steepness(x)[0], np.sqrt(sum(s**2 for s in slopes)), atol=1e-6)


def test_the_learned_filter_is_that_of_least_squares():
    scan, rng = program("scan"), np.random.default_rng(0)
    clean = scan.phantom(16, rng)
    noisy = scan.scanned(clean, rng).astype(float)
    learned = scan.learn(noisy, clean.astype(float), 300, taps=3)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(noisy[0], 1, "symmetric"), (3, 3, 3))
    best, *_ = np.linalg.lstsq(windows.reshape(-1, 27), clean.ravel().astype(float), rcond=None)
    np.testing.assert_allclose(learned.ravel(), best, atol=1e-4)


def test_the_phantom_is_a_shell_around_ellipsoids():
    clean = program("scan").phantom(41, np.random.default_rng(0))
    assert clean.shape == (1, 41, 41, 41)
    assert clean.dtype == np.float32
    assert clean[0, 0, 20, 20] == clean[0, 20, 0, 0] == 0
    assert clean[0, 20 + 16, 20, 20] == 1  # 0.8 of the way along the first axis: between both surfaces
    assert (clean > 0).mean() == pytest.approx(0.85 * 0.72 * 0.9 * np.pi / 6, rel=0.1)


def test_the_noise_is_half_of_cells_and_half_of_slices():
    scan = program("scan")
    noise = scan.scanned(np.zeros((1, 400, 30, 30), np.float32), np.random.default_rng(0))
    of_slices = noise.mean(axis=(2, 3))
    assert of_slices.std() == pytest.approx(0.15, rel=0.1)
    assert (noise - of_slices[:, :, None, None]).std() == pytest.approx(0.15, rel=0.01)


def test_the_share_of_the_surface_that_is_found():
    scan, steep = program("scan"), np.zeros((1, 10, 10, 10))
    steep[0, 5] = 1
    assert scan.found(steep + np.linspace(0, 1e-3, 10), steep) > 0.95
    halfway = np.where(np.arange(10) < 5, steep, steep[:, ::-1])
    assert scan.found(halfway + np.linspace(0, 1e-3, 1000).reshape(10, 10, 10), steep) == pytest.approx(
        0.5, abs=0.05
    )


# -- fashion ----------------------------------------------------------------------------------------------


def idx(array, shape=None):
    """An IDX file of bytes, whose header may say another shape than the array has."""
    shape = array.shape if shape is None else shape
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def clothes(folder, train=3000, test=300):
    """The four files, of ten patterns in noise; those of the test are not packed."""
    rng = np.random.default_rng(0)
    patterns = scipy.ndimage.gaussian_filter(rng.standard_normal((10, 28, 28)), (0, 3, 3))
    for part, count in (("train", train), ("t10k", test)):
        labels = rng.integers(0, 10, count)
        pictures = 128 + 400 * patterns[labels] + 20 * rng.standard_normal((count, 28, 28))
        for name, array in (("images-idx3", pictures.clip(0, 255)), ("labels-idx1", labels)):
            content = idx(array.astype(np.uint8))
            path = folder / f"{part}-{name}-ubyte"
            if part == "train":
                (folder / f"{path.name}.gz").write_bytes(gzip.compress(content, 1))
            else:
                path.write_bytes(content)
    return folder


def test_idx_files_packed_or_not(tmp_path):
    fashion, array = program("fashion"), np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "packed"):
        np.testing.assert_array_equal(fashion.read_idx(tmp_path, name), array)


def test_pictures_and_labels(tmp_path):
    pictures, labels = program("fashion").load(clothes(tmp_path, 20, 20), "t10k")
    assert (pictures.shape, pictures.dtype, labels.dtype) == ((20, 1, 28, 28), np.float32, np.int64)
    raw = np.frombuffer((tmp_path / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    np.testing.assert_allclose(pictures.ravel() * 90 + 73, raw, atol=1e-4)
    assert (
        labels.tobytes("C")
        == np.frombuffer((tmp_path / "t10k-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
        .astype(np.int64)
        .tobytes()
    )


FOUR = np.zeros((4, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-images-idx3-ubyte", b"", "is not an IDX file of bytes"),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x01" + bytes(8), "is not an IDX file of bytes"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "holds 0 bytes, its header says (0, 0, 0)"),
        ("train-images-idx3-ubyte", idx(FOUR)[:-1], "holds 3135 bytes, its header says (4, 28, 28)"),
        ("train-images-idx3-ubyte", idx(FOUR) + b"\0", "holds 3137 bytes, its header says (4, 28, 28)"),
        ("train-images-idx3-ubyte", idx(FOUR, (2**32 - 1,) * 3), "holds 3136 bytes, its header says (42949"),
        ("train-images-idx3-ubyte", b"\0\0\x08\xff" + bytes(4 * 255), "is not an IDX file of bytes"),
        ("train-images-idx3-ubyte", idx(FOUR, (4, 784)), "but these are (4, 784) and (20,)"),
        ("train-images-idx3-ubyte", idx(FOUR), "but these are (4, 28, 28) and (20,)"),
        ("t10k-labels-idx1-ubyte", idx(np.full(20, 10, np.uint8)), "labels from 0 to 9"),
        ("t10k-labels-idx1-ubyte", idx(np.uint8(3)), "but these are (20, 28, 28) and ()"),
        ("train-images-idx3-ubyte.gz", b"no archive", "cannot be read: Not a gzipped file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(FOUR))[:-12], "cannot be read: Compressed file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"")[:10] + b"\xff" * 9, "cannot be read: Error -3"),
        ("train-images-idx3-ubyte.gz", None, "is missing: apt-get install dataset-fashion-mnist, or"),
    ],
    ids=range(15),  # of bytes that may differ between workers: an archive has the time in it
)  # fmt: skip
def test_damaged_data_are_one_line(name, content, said, started, tmp_path):
    path = clothes(tmp_path, 20, 20) / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    status, out, errors = started("fashion", "--data", tmp_path)
    assert (status, out) == (1, "")
    assert errors.startswith("fashion.py: ")
    assert said in errors
    assert errors.count("\n") == 1


def test_missing_data_says_both_ways_to_get_them(started, tmp_path):
    status, out, errors = started("fashion", "--data", tmp_path / "nowhere")
    assert (status, out) == (1, "")
    assert errors.count("\n") == 1
    for word in ("dataset-fashion-mnist", "github.com/zalandoresearch/fashion-mnist", "--data"):
        assert word in errors


def test_a_training_is_the_same_every_time(tmp_path):
    fashion = program("fashion")
    pictures, labels = fashion.load(clothes(tmp_path, 300, 20), "train")
    ends = []
    for seed in (0, 0, 1):
        rng, losses = np.random.default_rng(seed), []
        network = fashion.made(rng)
        fashion.train(network, pictures, labels, 2, rng, after_epoch=losses.append)
        parts = [value.tobytes() for layer in network.layers() for value in layer.parameters.values()]
        ends.append((losses, b"".join(parts)))
    assert ends[0] == ends[1] != ends[2]
    assert ends[0][0][1] < ends[0][0][0]


def test_untrained_networks_miss_the_goal(started, tmp_path, monkeypatch):
    monkeypatch.setattr(program("fashion"), "train", lambda *arguments: arguments[-1](1.0))
    status, out, _ = started("fashion", "--quick", "--data", clothes(tmp_path, 20, 100))
    assert status == 1
    assert "(goal: 70%)" in out


@pytest.mark.long
def test_nine_of_ten_clothes_are_named(started):
    if not program("fashion").DEBIAN.exists():
        pytest.skip("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
    status, out, _ = started("fashion")
    assert status == 0, out
    assert float(re.search(r"([\d.]+)% of 10000 test pictures", out)[1]) >= 90
