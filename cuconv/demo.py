"""The demonstration: recover a filter from a photograph, then train a network on handwritten digits.

Both learn through cuconv's own forward, weight-gradient and input-gradient, on the GPU where there is one
that CuPy can use. Needs the extra `demo`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import conv, conv_weight_grad, nn
from .arrays import on_host
from .check import place
from .cuda import jit

FILTER_GOAL = 1e-2
"""The relative error below which the recovered filter counts as found."""

DIGITS_GOAL = 0.97
"""The share of held-out digits that the network has to read."""


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    rows: Any = figure.subfigures(2, 1)
    top, bottom = rows

    top.suptitle("Learning a filter: minimise (sigmoid(conv(x, w)) - target)² over w")
    axes = top.subplots(1, 6)
    scale = dict(cmap="RdBu", vmin=-abs(learnt.truth).max(), vmax=abs(learnt.truth).max())
    images = (
        (learnt.photo, "photograph x", dict(cmap="gray")),
        (learnt.filtered, "target", dict(cmap="gray")),
        (learnt.truth, "true filter", scale),
        (learnt.start, "start: noise", scale),
        (learnt.learned, f"learned, error {learnt.errors[-1]:.0e}", scale),
    )
    for axis, (image, title, style) in zip(axes, images, strict=False):
        axis.imshow(image, **style)
        axis.set(title=title, xticks=[], yticks=[])
    axes[5].semilogy(learnt.errors, label="relative error of w")
    axes[5].semilogy(learnt.losses, label="loss")
    axes[5].set_xlabel("step")
    axes[5].legend()

    bottom.suptitle(
        f"Training a network: {digits.accuracies[-1]:.1%} of {len(digits.labels)} held-out digits read "
        "(wrong answers in red)"
    )
    left, right = bottom.subfigures(1, 2, width_ratios=(2, 3))
    curves = left.subplots()
    curves.plot(digits.losses, label="training loss")
    curves.plot(digits.accuracies, label="held-out accuracy")
    curves.set_xlabel("epoch")
    curves.legend()
    # The wrong answers first: they are what one wants to see.
    order = np.argsort(digits.answers == digits.labels, kind="stable")[:40]
    for axis, index in zip(right.subplots(4, 10).flat, order, strict=True):
        right_answer = digits.answers[index] == digits.labels[index]
        axis.imshow(digits.images[index, 0], cmap="gray_r")
        axis.set(xticks=[], yticks=[])
        axis.set_title(
            str(digits.answers[index]), color="black" if right_answer else "red", fontsize=9, pad=2
        )
    figure.savefig(path, dpi=110)


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
