"""Trains a convolutional network to name clothes: the 60,000 pictures of Fashion-MNIST, and 10,000 to test.

    python examples/fashion.py

Layers, loss and optimizer are those of `cuconv.nn`. A step takes 128 pictures x and mirrors some of them:

    loss = mean of -log softmax(network(x))[label],  parameters -= rate * Adam(gradients of the loss)

with a rate that falls to zero. The network has strides where others have pooling: a fourth of the cells is
computed. With the same seed and number of threads the result is the same, bit for bit.

The data are four files, packed by gzip or not. `--data` names their folder. Debian has them in a package,
`apt-get install dataset-fashion-mnist`, whose folder is the default. Needs the extra `demo`.
"""

import argparse
import gzip
import math
import sys
import zlib
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from cuconv import nn

GOAL = 0.9
"""The share of the test's pictures that the network has to name."""

NAMES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
BATCH = 128


class DataError(Exception):
    """The data cannot be used: why, in one line."""


def read_idx(folder, name):
    """The array of bytes in the IDX file `name`, or `name`.gz, of a folder.

    It begins with two zeros, 8 for bytes, and the number of axes; then come the extents, as big-endian
    numbers of four bytes each, and the elements.
    """
    packed = not (folder / name).exists()
    path = folder / (f"{name}.gz" if packed else name)
    try:
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: apt-get install dataset-fashion-mnist, or put the four files of "
            "https://github.com/zalandoresearch/fashion-mnist into a folder and name it by --data"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, 8]) or content[3] > 3:
        raise DataError(f"{path} is not an IDX file of bytes")
    begin = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, begin, 4))
    if not 0 < math.prod(shape) == len(content) - begin:
        raise DataError(f"{path} holds {max(len(content) - begin, 0)} bytes, its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def load(folder, part):
    """Pictures (N, 1, 28, 28) of floats with mean 0 and variance 1, about, and their labels (N,)."""
    pictures, labels = (read_idx(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if labels.ndim != 1 or not len(labels) or pictures.shape != (len(labels), 28, 28) or labels.max() > 9:
        raise DataError(
            f"{folder}: {part} should be pictures (N, 28, 28) with N labels from 0 to 9, "
            f"but these are {pictures.shape} and {labels.shape}"
        )
    return (pictures[:, None].astype(np.float32) - 73) / 90, labels.astype(np.int64)


def made(rng):
    """The network: 28 x 28 pictures become 14 x 14 cells of 32 channels, then 7 x 7 cells of 64."""
    return nn.Sequential(
        nn.Conv(1, 32, 5, stride=2, padding=2, rng=rng),
        nn.ReLU(),
        nn.Conv(32, 64, 3, stride=2, padding=1, rng=rng),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dense(64 * 7 * 7, 10, rng=rng),
    )


def train(network, pictures, labels, epochs, rng, xp=np, after_epoch=lambda loss: None):
    """Adam on batches drawn anew in each epoch."""
    loss, optimizer = nn.SoftmaxCrossEntropy(), nn.Adam(network)
    batches = max(len(labels) // BATCH, 1)
    for epoch in range(epochs):
        total = 0.0
        order = np.array_split(rng.permutation(len(labels)), batches)
        for step, batch in enumerate(tqdm(order, desc=f"epoch {epoch + 1} of {epochs}")):
            x = pictures[batch]
            mirrored = rng.random(len(batch)) < 0.5
            x[mirrored] = x[mirrored, :, :, ::-1]
            optimizer.rate = 0.003 * (1 - (epoch + step / batches) / epochs)
            total += loss.forward(network(xp.asarray(x)), xp.asarray(labels[batch]))
            network.backward(loss.backward())
            optimizer.step()
        after_epoch(total / batches)


def answers(network, pictures, options):
    """The network's label of each picture: the largest sum of the scores of it and of its mirror image."""
    labels = []
    for part in np.array_split(pictures, math.ceil(len(pictures) / 1000)):
        x = options.xp.asarray(part)
        labels.append(options.host((network(x) + network(x[:, :, :, ::-1])).argmax(axis=1)))
    return np.concatenate(labels)


def draw(path, losses, shares, filters, pictures, labels, given):
    """Curves, filters (K, 1, R, S), and up to 32 pictures that the network got wrong."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(4, 7))
    above, below = left.subfigures(2, 1, height_ratios=(3, 4))
    axis = above.subplots()
    right_axis = axis.twinx()
    epochs = range(1, len(losses) + 1)
    for each, values, colour, name in (
        (axis, losses, "C0", "training loss"),
        (right_axis, shares, "C1", "named right"),
    ):
        each.plot(epochs, values, ".-", color=colour)
        each.set_ylabel(name, color=colour)
        each.tick_params(axis="y", labelcolor=colour)
    right_axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axis.set_xlabel("epoch")
    axis.set_xticks(epochs)
    axis.set_title(f"{shares[-1]:.1%} of {len(labels)} test pictures", fontsize=11)
    below.suptitle("filters of the first layer", fontsize=11)
    limit = abs(filters).max()
    for axis, image in zip(below.subplots(4, 8).flat, filters[:, 0], strict=True):
        axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_axis_off()
    wrong = np.flatnonzero(given != labels)
    right.suptitle(
        f"{min(len(wrong), 32)} of the {len(wrong)} wrong answers: the network's, and below it the label",
        fontsize=11,
    )
    axes = right.subplots(4, 8)
    for axis, index in zip(axes.flat, wrong, strict=False):
        axis.imshow(pictures[index, 0], cmap="gray_r")
        axis.set_title(f"{NAMES[given[index]]}\n({NAMES[labels[index]]})", fontsize=8, pad=3)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=80)
    # Of 256 colours, which takes fewer bytes.
    Image.open(path).convert("RGB").quantize(256, kmeans=2000).save(path, optimize=True)


def main():
    options = parse()
    try:
        pictures, labels = load(options.data, "train")
        test_pictures, test_labels = load(options.data, "t10k")
    except DataError as error:
        print(f"fashion.py: {error}", file=sys.stderr)
        return 1
    epochs, goal = 8, GOAL
    if options.quick:
        epochs, goal = 3, 0.7
        pictures, labels, test_pictures, test_labels = (
            each[:3000] for each in (pictures, labels, test_pictures, test_labels)
        )

    rng = np.random.default_rng(options.seed)
    network = made(rng)
    network.convert(options.xp.asarray)
    losses, shares = [], []

    def judge(loss):
        losses.append(loss)
        shares.append(float((answers(network, test_pictures, options) == test_labels).mean()))
        tqdm.write(
            f"epoch {len(losses)}: loss {loss:.3f}, {shares[-1]:.2%} of the test's pictures named right"
        )

    train(network, pictures, labels, epochs, rng, options.xp, judge)
    filters = options.host(next(network.layers()).parameters["w"])
    given = answers(network, test_pictures, options)
    draw(options.out, losses, shares, filters, test_pictures, test_labels, given)
    print(f"{shares[-1]:.2%} of {len(test_labels)} test pictures named right (goal: {goal:.0%})")
    print(f"picture: {options.out}")
    return int(shares[-1] < goal)


def parse():
    """Options; as `xp` the library of the arrays, as `host` what makes NumPy's of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default="fashion.png", help="the picture's file (default: fashion.png)"
    )
    parser.add_argument("--data", type=Path, default=DEBIAN, help=f"the files' folder (default: {DEBIAN})")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    parser.add_argument("--quick", action="store_true", help="3000 pictures, three epochs")
    parser.add_argument("--gpu", action="store_true", help="on CuPy's arrays instead of NumPy's")
    options = parser.parse_args()
    if options.out.suffix != ".png" or options.out.is_dir() or not options.out.parent.is_dir():
        parser.error("--out must be a .png file in an existing folder")
    if options.seed < 0:
        parser.error("--seed must be at least 0")
    options.xp, options.host = np, np.asarray
    if options.gpu:
        try:
            import cupy

            cupy.cuda.runtime.getDevice()
        except Exception as error:
            parser.error(f"--gpu needs CuPy and a GPU: {' '.join(str(error).split())}")
        options.xp, options.host = cupy, cupy.asnumpy
    return options


if __name__ == "__main__":
    raise SystemExit(main())
