"""The demonstration: recover a filter from a photograph, then train a network on handwritten digits.

Both learn through cuconv's own forward, weight-gradient and input-gradient, on the GPU where there is one
that CuPy can use. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import conv, conv_weight_grad, nn
from ..arrays import on_host
from ..cuda import jit
from ..options import shown
from . import arguments, info
from .check import place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOES = "learn a filter and train a network, with a picture at the end"
EXAMPLE = "python -m cuconv demo --quick --out picture.png"

FILTER_GOAL = 1e-2
"""The relative error below which the recovered filter counts as found."""

DIGITS_GOAL = 0.97
"""The share of held-out digits that the network has to read."""

DPI = 110
"""Dots per inch of the picture."""


@dataclass
class FilterRun:
    """What learning a filter left: images (H, W), filters (5, 5), and per step loss and relative error."""

    photo: np.ndarray
    filtered: np.ndarray
    truth: np.ndarray
    start: np.ndarray
    learned: np.ndarray
    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


@dataclass
class DigitsRun:
    """What training left: held-out images (N, 1, 8, 8), labels, answers, and per epoch the curves."""

    images: np.ndarray
    labels: np.ndarray
    answers: np.ndarray
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def learn_filter(steps: int = 400, seed: int = 0, quiet: bool = False) -> FilterRun:
    """Filter a photograph with a 5x5 kernel and a sigmoid; recover the kernel, starting from noise.

    Minimises the mean of (o - target)^2, with o = sigmoid(conv(x, w)), over w by gradient descent with
    momentum. The chain rule gives dL/dz = 2 (o - target) o (1 - o) / cells and dL/dw = conv_weight_grad.
    """
    from sklearn.datasets import load_sample_image

    xp = jit.usable_cupy() or np
    grey = load_sample_image("china.jpg")[80:336, 200:456].mean(axis=2)
    photo = ((grey - grey.mean()) / grey.std()).astype(np.float32)
    truth = _gabor()
    x, true_w = xp.asarray(photo[None, None]), xp.asarray(truth[None, None])
    target = conv(x, true_w, activation="sigmoid")

    start = (np.random.default_rng(seed).standard_normal(true_w.shape) / 5).astype(np.float32)
    w = xp.array(start)
    velocity = xp.zeros_like(w)
    run = FilterRun(photo, on_host(target)[0, 0], truth, start[0, 0], start[0, 0])
    for _ in (progress := _bar(steps, "learning a filter", quiet)):
        output = conv(x, w, activation="sigmoid")
        difference = output - target
        dz = 2 * difference * output * (1 - output) / difference.size
        velocity = 0.95 * velocity + conv_weight_grad(x, dz, w.shape)
        w -= 0.5 * velocity
        run.losses.append(float((difference**2).mean()))
        run.errors.append(float(((w - true_w) ** 2).sum() / (true_w**2).sum()) ** 0.5)
        progress.set_postfix_str(f"relative error {run.errors[-1]:.1e}", refresh=False)
    run.learned = on_host(w)[0, 0]
    return run


def train_digits(epochs: int = 40, seed: int = 0, quiet: bool = False) -> DigitsRun:
    """Train a small convolutional network on scikit-learn's digits; a quarter of them is held out."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = (digits.images[order, None] / 16).astype(np.float32)
    labels = digits.target[order]
    held_out = len(labels) // 4
    xp = jit.usable_cupy() or np
    x, y, unseen = (xp.asarray(part) for part in (images[held_out:], labels[held_out:], images[:held_out]))

    network = nn.Sequential(
        nn.Conv(1, 16, 3, padding="same", rng=rng),
        nn.ReLU(),
        nn.MaxPool(2),
        nn.Conv(16, 32, 3, padding="same", rng=rng),
        nn.ReLU(),
        nn.AvgPool(2),
        nn.Flatten(),
        nn.Dense(128, 10, rng=rng),
    )
    network.convert(xp.asarray)
    loss, optimizer = nn.SoftmaxCrossEntropy(), nn.Adam(network)
    run = DigitsRun(images[:held_out], labels[:held_out], labels[:held_out])
    for epoch in (progress := _bar(epochs, "training a network", quiet)):
        optimizer.rate = 0.01 * (1 - epoch / epochs)
        losses = []
        for batch in map(xp.asarray, np.array_split(rng.permutation(len(y)), len(y) // 64)):
            losses.append(loss.forward(network(x[batch]), y[batch]))
            network.backward(loss.backward())
            optimizer.step()
        run.answers = on_host(network(unseen).argmax(axis=1))
        run.losses.append(float(np.mean(losses)))
        run.accuracies.append(float(np.mean(run.answers == run.labels)))
        progress.set_postfix_str(
            f"loss {run.losses[-1]:.3f}, held out {run.accuracies[-1]:.1%}", refresh=False
        )
    return run


def picture(learnt: FilterRun, digits: DigitsRun, path: Path) -> None:
    """Draw both runs into a PNG file."""
    drawn(learnt, digits).savefig(path, dpi=DPI)


def drawn(learnt: FilterRun, digits: DigitsRun) -> Figure:
    """Both runs as a figure: the filter above, the network below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(12, 6.6), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    FigureCanvasAgg(figure)
    rows: Any = figure.subfigures(2, 1, height_ratios=(5, 7), hspace=0.03)
    _draw_filter(rows[0], learnt)
    _draw_digits(rows[1], digits)
    return figure


def _draw_filter(part: Any, run: FilterRun) -> None:
    part.suptitle("Learning a filter: minimise (sigmoid(conv(x, w)) - target)² over w", fontweight="bold")
    axes = part.subplots(1, 6)
    scale = dict(cmap="RdBu", vmin=-abs(run.truth).max(), vmax=abs(run.truth).max())
    images = (
        (run.photo, "photograph x", dict(cmap="gray")),
        (run.filtered, "target", dict(cmap="gray")),
        (run.truth, "true filter", scale),
        (run.start, "start: noise", scale),
        (run.learned, f"learned: error {run.errors[-1]:.0e}", scale),
    )
    for axis, (image, title, style) in zip(axes, images, strict=False):
        axis.imshow(image, **style)
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    curves, middle = axes[5], len(run.errors) // 2
    curves.set_box_aspect(1)
    curves.set_title(f"{len(run.errors)} steps", fontsize=10)
    # Both fall: there is room for words above the upper curve and below the lower one.
    beside = dict(textcoords="offset points", fontsize=9)
    for values, color, name, side, offset in (
        (run.errors, "C0", "error of w", dict(ha="left", va="bottom"), (3, 3)),
        (run.losses, "C1", "loss", dict(ha="right", va="top"), (-5, -5)),
    ):
        curves.semilogy(values, color=color)
        curves.annotate(name, (middle, values[middle]), offset, color=color, **side, **beside)
    curves.tick_params(labelsize=8)


def _draw_digits(part: Any, run: DigitsRun) -> None:
    part.suptitle(
        f"Training a network: {run.accuracies[-1]:.1%} of {len(run.labels)} held-out digits read "
        "(wrong answers first, in red)",
        fontweight="bold",
    )
    left, right = part.subfigures(1, 2, width_ratios=(3, 5))
    loss = left.subplots()
    accuracy = loss.twinx()
    loss.set_xlabel("epoch")
    epochs = range(1, len(run.losses) + 1)
    for axis, values, color, name in (
        (loss, run.losses, "C0", "training loss"),
        (accuracy, run.accuracies, "C1", "held-out accuracy"),
    ):
        axis.plot(epochs, values, color=color)
        axis.set_ylabel(name, color=color)
        axis.tick_params(axis="y", which="both", labelcolor=color)
    loss.set_yscale("log")
    accuracy.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    # The wrong answers first: they are what one wants to see.
    order = np.argsort(run.answers == run.labels, kind="stable")[:40]
    for axis, index in zip(right.subplots(4, 10).flat, order, strict=True):
        answer, label = run.answers[index], run.labels[index]
        axis.imshow(run.images[index, 0], cmap="gray_r")
        axis.set(xticks=[], yticks=[])
        title, color = (f"{answer}", "black") if answer == label else (f"{answer}, is {label}", "red")
        axis.set_title(title, color=color, fontsize=9, pad=2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be asked."""
    parser.add_argument(
        "--out", type=arguments.path, default=Path("cuconv-demo.png"), help="the picture's file (PNG)"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps only, without a goal")


def run(options: argparse.Namespace) -> int:
    """Run the demo, if it has what it needs and its picture can be written."""
    if lacks := info.demo_lacks():
        raise arguments.CommandError(f"the demo needs {lacks}: pip install 'cuconv[demo]'")
    path = options.out
    try:
        if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
            raise arguments.UsageError(
                f"--out must be a .png file in an existing folder, got {shown(str(path))}"
            )
        _try_to_write(path)
    except OSError as error:
        raise arguments.UsageError(f"--out must be a file that can be written: {error}") from error
    return main(path, options.quick)


def _try_to_write(path: Path) -> None:
    """Raise OSError where a file cannot be written, and leave everything as it was."""
    path = Path(os.path.realpath(path))  # a link to nothing stays
    new = not path.exists()
    path.open("ab").close()
    if new:
        path.unlink()


def main(path: Path, quick: bool = False) -> int:
    """Run both parts and write the picture; 0 if both reached their goals."""
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    print(f"on {place()}")
    # The matrices are small: a second BLAS thread gains little, and on a busy machine both wait.
    with threadpool_limits(1, "blas"):
        learnt = learn_filter(60 if quick else 400)
        digits = train_digits(2 if quick else 40)
    picture(learnt, digits, path)
    print(f"filter:  relative error {learnt.errors[-1]:.1e} (goal: below {FILTER_GOAL:.0e})")
    read, count = digits.accuracies[-1], len(digits.labels)
    print(f"digits:  {read:.1%} of {count} held out read (goal: {DIGITS_GOAL:.0%})")
    print(f"picture: {path} ({time.perf_counter() - start:.0f} s in all)")
    reached = learnt.errors[-1] < FILTER_GOAL and digits.accuracies[-1] >= DIGITS_GOAL
    if not reached and not quick:
        print("a goal was missed")
    return 0 if reached or quick else 1


def _gabor() -> np.ndarray:
    """A 5x5 edge detector: a plane wave under a Gaussian, at 30 degrees."""
    rows, columns = np.mgrid[-2:3, -2:3]
    along = columns * np.cos(np.pi / 6) + rows * np.sin(np.pi / 6)
    return (np.exp(-(rows**2 + columns**2) / 4) * np.sin(along * 1.6)).astype(np.float32)


def _bar(count: int, title: str, quiet: bool):  # type: ignore[no-untyped-def]
    """A progress bar over range(count)."""
    from tqdm import tqdm

    return tqdm(range(count), desc=f"{title:18}", disable=quiet, dynamic_ncols=True)
