"""Filters a volume that is larger than the memory it is given, and learns the filter back from the result.

    python examples/volume.py --size 512 --memory 256

The volume and what becomes of it are files that are mapped into memory. `cuconv.dask` cuts every pass over
them into blocks, and Dask computes these, two at a time, each with the planes that its neighbours lend it. To
be believed, the process sets itself a limit: more than `--memory` megabytes the system refuses.
"""

import argparse
import os
import resource
import tempfile
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Dask has threads of its own; set before NumPy is imported

import dask
import dask.array as da
import numpy as np
from dask.diagnostics import ProgressBar

import cuconv.dask

PLANES = 8
"""Of a block. In slabs, which have two neighbours, fewer blocks wait in memory for others than in cubes."""


def limit_memory(megabytes):
    """Have the system refuse more than so much beyond what the process has now; mapped files do not count."""
    with open("/proc/self/status") as status:
        (now,) = (int(line.split()[1]) for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now * 1024 + megabytes * 10**6,) * 2)


class Volume:
    """A file of float32 as an array (N, C, D, H, W), mapped where it is read or written.

    Of a NumPy array, and of one that is mapped too, Dask would make a copy first.
    """

    ndim, dtype = 5, np.dtype(np.float32)

    def __init__(self, path, size):
        self.path, self.shape = path, (1, 1, size, size, size)
        self.size = size**3
        np.memmap(path, self.dtype, "w+", shape=self.shape)

    def __getitem__(self, cells):
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)[cells]

    def __setitem__(self, cells, values):
        np.memmap(self.path, self.dtype, "r+", shape=self.shape)[cells] = values

    def in_blocks(self):
        return da.from_array(self, chunks=(1, 1, PLANES, -1, -1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="cells along each axis (default: 512)")
    parser.add_argument("--memory", type=int, default=256, help="megabytes (default: 256)")
    parser.add_argument("--steps", type=int, default=4, help="of gradient descent (default: 4)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(num_workers=2), ProgressBar(minimum=0.5):
        limit_memory(options.memory)
        volume, filtered = (Volume(Path(folder) / name, options.size) for name in ("volume", "filtered"))
        print(f"{4 * volume.size / 1e6:.0f} MB of noise, in {options.memory} MB of memory", flush=True)
        for plane in range(options.size):
            volume[0, 0, plane] = rng.standard_normal(volume.shape[3:], np.float32)

        secret = rng.standard_normal((1, 1, 3, 3, 3), np.float32)
        x = volume.in_blocks()
        da.store(cuconv.dask.conv(x, secret, padding="same"), filtered, lock=False)

        # Of the loss |conv(x, w) - y|^2 / 2 per cell; noise of variance 1 makes its curvature about 1.
        w, y = np.zeros_like(secret), filtered.in_blocks()
        for step in range(options.steps):
            residual = cuconv.dask.conv(x, w, padding="same") - y
            dw = cuconv.dask.conv_weight_grad(x, residual, w.shape, padding="same")
            loss, dw = dask.compute((residual**2).sum() / (2 * x.size), dw / x.size)
            w -= dw
            error = abs(w - secret).max()
            print(f"step {step + 1}: loss {loss:.2e}, largest error of the filter {error:.2e}", flush=True)


if __name__ == "__main__":
    main()
