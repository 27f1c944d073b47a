"""Removes the noise of a 3-D scan by a Gaussian and by a learned filter, and finds surfaces in it.

    python examples/scan.py

A Gaussian is separable: three calls with 1-D filters, one along each axis, are one call with their outer
product, at 3 R instead of R^3 products a cell. The learned filter w has 5 x 5 x 5 weights, all free. From one
scan whose truth is known it learns the least squares between its result and that truth,

    loss(w) = |conv(noisy, w) - clean|^2 / 2,  gradient(w) = conv_weight_grad(noisy, conv(noisy, w) - clean),

by gradient descent with Nesterov's momentum; both are then judged on another scan. Half of the noise is one
number for each slice, as scanners have it. The Gaussian, alike in all directions, knows nothing of that. The
surfaces are where the gradient by Sobel's three filters is largest. Needs the extra `demo`.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from cuconv import conv3d, conv_weight_grad

GOAL = 0.92
"""The learned filter's error on the unseen scan, at the most, over that of the best Gaussian there."""

EDGES = dict(padding="same", padding_mode="symmetric")
"""Results are as large as the scan, beyond whose edge its mirror image is seen."""


def phantom(size, rng):
    """A shell and ten ellipsoids within it, as densities (1, size, size, size)."""
    position = np.mgrid[:size, :size, :size] * 2 / (size - 1) - 1
    density = np.zeros((1, size, size, size), np.float32)

    def add(centre, radii, value):
        scaled = [(position[axis] - centre[axis]) / radii[axis] for axis in range(3)]
        density[0] += np.float32(value) * (sum(part**2 for part in scaled) < 1)

    add((0, 0, 0), (0.85, 0.72, 0.9), 1)
    add((0, 0, 0), (0.77, 0.64, 0.82), -0.6)
    for value in (0.3, 0.5, -0.3, 0.4, 0.3, -0.3, 0.5, 0.4, -0.3, 0.3):
        add(rng.uniform(-0.4, 0.4, 3), rng.uniform(0.08, 0.25, 3), value)
    return density


def scanned(clean, rng, noise=0.15):
    """With noise of each cell, and of each slice along the first axis."""
    of_cells = rng.standard_normal(clean.shape, np.float32)
    of_slices = rng.standard_normal((1, clean.shape[1], 1, 1), np.float32)
    return clean + np.float32(noise) * (of_cells + of_slices)


def smoothed(x, sigma, xp=np):
    """A Gaussian along each axis in turn, cut off at three times its width."""
    reach = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = xp.asarray(taps / taps.sum(), x.dtype)
    for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        x = conv3d(x, taps.reshape(1, 1, *shape), **EDGES)
    return x


def sobel_filters():
    """The derivatives along the three axes, (3, 1, 3, 3, 3)."""
    smooth, slope = np.array([1, 2, 1]) / 4, np.array([-1, 0, 1]) / 2
    factors = ((slope, smooth, smooth), (smooth, slope, smooth), (smooth, smooth, slope))
    return np.stack([np.einsum("i,j,k->ijk", *three) for three in factors])[:, None].astype(np.float32)


def steepness(x, xp=np):
    """The length of the gradient in each cell."""
    slopes = conv3d(x, xp.asarray(sobel_filters()), **EDGES)
    return (slopes**2).sum(axis=0, keepdims=True) ** 0.5


def learn(noisy, clean, steps, xp=np, taps=5):
    """The filter (1, 1, taps, taps, taps) of least squares from noisy to clean, from zeros on."""
    w = ahead = xp.zeros((1, 1, taps, taps, taps), noisy.dtype)

    def gradient(w, clean):
        return conv_weight_grad(noisy, conv3d(noisy, w, **EDGES) - clean, w.shape, **EDGES)

    # But for a constant the gradient is linear: iteration finds its largest slope, and so the longest step.
    direction = xp.ones_like(w)
    for _ in range(10):
        direction = direction / (direction**2).sum() ** 0.5
        direction = gradient(direction, 0)
    rate = 1 / (direction**2).sum() ** 0.5
    for step in tqdm(range(steps), desc="learning"):
        before, w = w, ahead - rate * gradient(ahead, clean)
        ahead = w + step / (step + 3) * (w - before)
    return w


def error(x, clean):
    """The root of the mean square."""
    return float(((x - clean) ** 2).mean() ** 0.5)


def found(steep, clean_steep):
    """The share of the clean scan's surface cells that are among as many steepest ones."""
    surface = clean_steep > 0.1
    limit = np.quantile(steep, 1 - surface.mean())
    return float((steep > limit)[surface].mean())


def draw(path, columns, w):
    """Columns of volumes (title, volume, style), each by its three middle slices, and the filter's."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(3, len(columns) + 1)
    limit = abs(w).max()
    columns = (*columns, ("learned filter", w, dict(cmap="RdBu_r", vmin=-limit, vmax=limit)))
    for column, (title, volume, style) in zip(axes.T, columns, strict=True):
        column[0].set_title(title, fontsize=10)
        for along, axis in enumerate(column):
            axis.imshow(np.take(volume, volume.shape[along] // 2, along), **style)
            axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], ("a slice", "across slices", "across slices"), strict=True):
        axis.set_ylabel(name)
    figure.savefig(path, dpi=75)
    # Of 256 colours, which takes fewer bytes.
    Image.open(path).convert("RGB").quantize(256, kmeans=2000).save(path, optimize=True)


def main():
    options = parse()
    xp, host = options.xp, options.host
    size, steps = (40, 60) if options.quick else (96, 150)
    rng = np.random.default_rng(0)
    known, unseen = (phantom(size, rng) for _ in range(2))
    known_noisy, noisy = (xp.asarray(scanned(clean, rng)) for clean in (known, unseen))

    w = learn(known_noisy, xp.asarray(known), steps, xp)
    by_filter = conv3d(noisy, w, **EDGES)
    # Of all Gaussians the best one for this very scan: the learned filter has not seen it.
    gaussians = [smoothed(noisy, sigma, xp) for sigma in np.arange(0.5, 1.6, 0.1)]
    by_gaussian = min(gaussians, key=lambda x: error(host(x), unseen))

    surfaces, errors = {}, {}
    for name, x in (("clean", unseen), ("noisy", noisy), ("Gaussian", by_gaussian), ("learned", by_filter)):
        surfaces[name] = host(steepness(xp.asarray(x), xp))
        errors[name] = error(host(x), unseen)
        share = found(surfaces[name], surfaces["clean"])
        print(f"{name:8} error {errors[name]:.4f}, {share:4.0%} of the surface among the steepest cells")
    ratio = errors["learned"] / errors["Gaussian"]
    print(f"the learned filter's error is {ratio:.2f} of the best Gaussian's (goal: {GOAL})")

    grey, glow = dict(cmap="gray", vmin=-0.3, vmax=1.3), dict(cmap="magma", vmin=0, vmax=0.4)
    columns = (
        ("truth", unseen[0], grey),
        (f"noisy: error {errors['noisy']:.3f}", host(noisy)[0], grey),
        (f"Gaussian: error {errors['Gaussian']:.3f}", host(by_gaussian)[0], grey),
        (f"learned: error {errors['learned']:.3f}", host(by_filter)[0], grey),
        ("surfaces, noisy", surfaces["noisy"][0], glow),
        ("surfaces, learned", surfaces["learned"][0], glow),
    )
    draw(options.out, columns, host(w)[0, 0])
    print(f"picture: {options.out}")
    return int(ratio > GOAL)


def parse():
    """Options; as `xp` the library of the arrays, as `host` what makes NumPy's of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default="scan.png", help="the picture's file (default: scan.png)")
    parser.add_argument("--quick", action="store_true", help="a smaller scan")
    parser.add_argument("--gpu", action="store_true", help="on CuPy's arrays instead of NumPy's")
    options = parser.parse_args()
    if options.out.suffix != ".png" or options.out.is_dir() or not options.out.parent.is_dir():
        parser.error("--out must be a .png file in an existing folder")
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
