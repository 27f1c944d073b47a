"""Finds the edges of a photograph and their direction, in two ways.

    python examples/edges.py

Sobel's filters are derivatives of a smoothed picture p. Their results g give each edge its strength and the
direction across it:

    strength = sqrt(gx^2 + gy^2),  direction = atan2(gy, gx), modulo 180 degrees

A Gabor filter is a plane wave under a Gaussian. It answers where the picture looks like the wave. A bank of
them, one for each of K directions a, is a single call with K filters, of complex numbers; with its answers r,

    direction = arg(sum over k of |r_k| exp(2 i a_k)) / 2

The two know nothing of each other; on strong edges their directions should be the same. Needs the extra
`demo`.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

import cuconv

GOAL = 10
"""Degrees by which the two directions may differ, in the median over the strongest edges."""


def sobel_filters():
    """Both derivatives, of shape (K, C, R, S) = (2, 1, 3, 3): along the columns (x), along the rows (y)."""
    smooth, slope = np.array([1, 2, 1]) / 4, np.array([-1, 0, 1]) / 2
    return np.stack([np.outer(smooth, slope), np.outer(slope, smooth)])[:, None].astype(np.float32)


def gabor_filters(angles, taps=11, wavelength=5.0, sigma=1.5):
    """A bank (K, 1, taps, taps) of complex waves that run at these angles, each blind to even brightness."""
    rows, columns = np.mgrid[:taps, :taps] - taps // 2
    envelope = np.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    bank = []
    for angle in angles:
        wave = np.exp(2j * np.pi / wavelength * (columns * np.cos(angle) + rows * np.sin(angle)))
        mean = (envelope * wave).sum() / envelope.sum()
        bank.append(envelope * (wave - mean) / envelope.sum())
    return np.stack(bank)[:, None].astype(np.complex64)


def filtered(photo, filters):
    """The results (K, H, W) of a picture (H, W) and filters (K, 1, R, S).

    Beyond its edge the picture continues as its mirror image.
    """
    return cuconv.conv(photo[None], filters, padding="same", padding_mode="symmetric")


def difference(one, other):
    """How many degrees lie between directions, which are the same again after half a turn."""
    between = abs(one - other) % np.pi
    return np.degrees(np.minimum(between, np.pi - between))


def draw(path, photo, strength, directions, angles, bank, responses, agreement):
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(3.35, 1.55, 3.4))
    strong = np.clip(strength / np.quantile(strength, 0.99), 0, 1)
    above = (
        (photo, "photograph"),
        (strong, "Sobel: strength"),
        (by_colour(directions[0], strong), "Sobel: direction, by colour"),
        (by_colour(directions[1], strong), f"Gabor: direction, {agreement:.1f}° off"),
    )
    for axis, (picture, title) in zip(top.subplots(1, 4), above, strict=True):
        axis.imshow(picture, cmap="gray")
        axis.set_title(title, fontsize=11)
    middle.suptitle(
        "Gabor filters, real part; below each, its direction in the colour that it has above", fontsize=11
    )
    for axis, angle, wave in zip(middle.subplots(1, len(bank)), angles, bank[:, 0].real, strict=True):
        axis.imshow(wave, cmap="gray")
        axis.set_xlabel(f"{np.degrees(angle):.4g}°", color=hsv_to_rgb((angle / np.pi, 1, 0.75)), fontsize=11)
    bottom.suptitle("Responses |r| of four of them", fontsize=11)
    for axis, k in zip(bottom.subplots(1, 4), range(0, len(bank), len(bank) // 4), strict=True):
        axis.imshow(responses[k], cmap="magma", vmax=np.quantile(responses, 0.995))
        axis.set_xlabel(f"{np.degrees(angles[k]):.4g}°", fontsize=11)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=70)
    # Of 256 colours, which takes fewer bytes.
    Image.open(path).convert("RGB").quantize(256, kmeans=2000).save(path, optimize=True)


def by_colour(direction, strong):
    return hsv_to_rgb(np.stack([direction / np.pi, np.ones_like(strong), strong], axis=-1))


def main():
    options = parse()
    grey = load_sample_image("flower.jpg")[60:372, 160:472].mean(axis=2, dtype=np.float32) / 255
    if options.quick:
        grey = grey[:128, :192]
    xp = options.xp
    photo = xp.asarray(grey)

    gx, gy = filtered(photo, xp.asarray(sobel_filters()))
    strength, direction = xp.hypot(gx, gy), xp.arctan2(gy, gx) % np.pi

    angles = np.arange(8) * np.pi / 8
    bank = gabor_filters(angles)
    responses = abs(filtered(photo.astype(bank.dtype), xp.asarray(bank)))
    turns = xp.asarray(np.exp(2j * angles).astype(np.complex64))[:, None, None]
    wave_direction = xp.angle((responses * turns).sum(axis=0)) / 2 % np.pi

    strength, direction, wave_direction, responses = map(
        options.host, (strength, direction, wave_direction, responses)
    )
    strongest = strength > np.quantile(strength, 0.95)
    agreement = np.median(difference(direction, wave_direction)[strongest])
    draw(options.out, grey, strength, (direction, wave_direction), angles, bank, responses, agreement)
    print(f"on the strongest 5 % of edges the directions agree to {agreement:.1f} degrees (goal: {GOAL})")
    print(f"picture: {options.out}")
    return int(agreement > GOAL)


def parse():
    """Options; as `xp` the library of the arrays, as `host` what makes NumPy's of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default="edges.png", help="the picture's file (default: edges.png)"
    )
    parser.add_argument("--quick", action="store_true", help="a part of the photograph only")
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
