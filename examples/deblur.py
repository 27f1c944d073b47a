"""Takes the blur of a moving camera out of a photograph, by gradient descent.

    python examples/deblur.py

The blurred picture y is the sharp one, x, convolved with the path h that the camera took, and some noise. h
is known, x is sought: it minimises

    loss(x) = |h * x - y|^2 / 2  +  strength sum of sqrt(|d x|^2 + epsilon^2)

The second term is large where neighbouring pixels differ, by the differences d of a picture along its two
axes: without it the noise would be sharpened too. The gradient is put together from the calls that take a
convolution back to its input,

    conv_input_grad(h * x - y, h)  +  strength conv_input_grad(d x / sqrt(|d x|^2 + epsilon^2), d)

and the steps have Nesterov's momentum. Of x there is more than of y, since light from beyond the frame is
blurred into it: no guess is made about edges. Needs the extra `demo`.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from tqdm import tqdm

import cuconv

GOAL = 6.0
"""Decibels that the restored picture has to be nearer to the sharp one than the blurred one is."""

NOISE = 0.004
STRENGTH, EPSILON = 0.0001, 0.01


def camera_path(taps=15):
    """A bent stroke (taps, taps) whose sum is 1, drawn as points that are shared among neighbouring cells."""
    t = np.linspace(-1, 1, 400)
    rows = (taps - 3) / 2 * (0.55 * t + 0.35 * t**2 - 0.1) + taps // 2
    columns = (taps - 3) / 2 * t + taps // 2
    cells = np.arange(taps)
    near_row, near_column = (np.maximum(0, 1 - abs(cells[:, None] - at)) for at in (rows, columns))
    path = np.einsum("rt,ct->rc", near_row, near_column)
    return (path / path.sum()).astype(np.float32)


def differences():
    """The difference to the next pixel along the columns and along the rows, (2, 1, 2, 2)."""
    return np.array([[[[-1, 1], [0, 0]]], [[[-1, 0], [1, 0]]]], np.float32)


def blurred(x, h):
    """Of colours (3, 1, H, W) what the camera sees of them: h is turned, as in a convolution."""
    return cuconv.conv(x, h, flip=True)


def loss_and_gradient(x, y, h, d, strength=STRENGTH, epsilon=EPSILON):
    """The loss of x and its gradient, of the shape of x."""
    residual = blurred(x, h) - y
    slopes = cuconv.conv(x, d)
    length = (slopes[:, :1] ** 2 + slopes[:, 1:] ** 2 + epsilon**2) ** 0.5
    loss = (residual**2).sum() / 2 + strength * length.sum()
    gradient = cuconv.conv_input_grad(residual, h, x.shape, flip=True)
    gradient += strength * cuconv.conv_input_grad(slopes / length, d, x.shape)
    return loss, gradient


def restore(x, y, h, d, steps, after_step):
    """Minimise the loss from x on. The step is one over the gradient's largest slope, as h sums to 1."""
    rate = 1 / (1 + 8 * STRENGTH / EPSILON)
    ahead = x
    for step in tqdm(range(steps), desc="deblurring"):
        loss, gradient = loss_and_gradient(ahead, y, h, d)
        before, x = x, ahead - rate * gradient
        ahead = x + step / (step + 3) * (x - before)
        after_step(x, loss)
    return x


def psnr(picture, truth):
    """Peak signal to noise ratio in decibels, of pictures whose largest value is 1."""
    return float(-10 * np.log10(((picture - truth) ** 2).mean()))


def as_picture(colours):
    """(3, 1, H, W) as (H, W, 3), clipped to what can be shown."""
    return np.clip(np.moveaxis(colours[:, 0], 0, -1), 0, 1)


def draw(path, sharp, blurry, restored, h, curve, before):
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    axes = figure.subplot_mosaic([["blurred", "restored"], ["sharp", "curve"]])
    for name, picture, title in (
        ("blurred", blurry, f"blurred by the path in its corner, and noise: {before:.1f} dB"),
        ("restored", restored, f"restored in {len(curve)} steps: {curve[-1]:.1f} dB"),
        ("sharp", sharp, "the photograph itself"),
    ):
        axes[name].imshow(picture)
        axes[name].set_title(title, fontsize=11)
        axes[name].set(xticks=[], yticks=[])
    corner = axes["blurred"].inset_axes((0.01, 0.02, 0.2, 0.3))
    corner.imshow(h, cmap="gray")
    corner.set(xticks=[], yticks=[])
    axes["curve"].plot(range(1, len(curve) + 1), curve, label="restored")
    axes["curve"].axhline(before, color="C1", label="blurred")
    axes["curve"].set(xlabel="step", ylabel="PSNR in dB")
    axes["curve"].set_title("likeness to the photograph", fontsize=11)
    axes["curve"].legend(loc="center right")
    axes["curve"].margins(y=0.1)
    figure.savefig(path, dpi=80)
    # Of 256 colours, which takes fewer bytes.
    Image.open(path).convert("RGB").quantize(256, kmeans=2000).save(path, optimize=True)


def main():
    options = parse()
    xp, host = options.xp, options.host
    photo = load_sample_image("china.jpg")[10:290, 60:460]
    if options.quick:
        photo = photo[60:188, 130:290]
    sharp = np.ascontiguousarray(np.moveaxis(photo, -1, 0)[:, None], np.float32) / 255
    h, d = xp.asarray(camera_path()[None, None]), xp.asarray(differences())

    y = host(blurred(xp.asarray(sharp), h))
    y = y + NOISE * np.random.default_rng(0).standard_normal(y.shape, np.float32)
    margin = h.shape[-1] // 2
    seen = (..., slice(margin, -margin), slice(margin, -margin))
    start = np.pad(y, [(0, 0), (0, 0), (margin, margin), (margin, margin)], "edge")

    curve = []
    x = restore(
        xp.asarray(start),
        xp.asarray(y),
        h,
        d,
        100 if options.quick else 150,
        lambda x, loss: curve.append(psnr(host(x)[seen], sharp[seen])),
    )
    before = psnr(y, sharp[seen])
    pictures = (as_picture(colours) for colours in (sharp[seen], y, host(x)[seen]))
    draw(options.out, *pictures, host(h)[0, 0], curve, before)
    gain, goal = curve[-1] - before, GOAL
    print(f"PSNR {before:.1f} dB blurred, {curve[-1]:.1f} dB restored: {gain:.1f} dB gained (goal: {goal})")
    print(f"picture: {options.out}")
    return int(gain < goal)


def parse():
    """Options; as `xp` the library of the arrays, as `host` what makes NumPy's of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default="deblur.png", help="the picture's file (default: deblur.png)"
    )
    parser.add_argument("--quick", action="store_true", help="a part of the photograph, and fewer steps")
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
