"""The public functions on NumPy arrays by way of Dask: cut by chance, computed, joined again."""

import dataclasses
import functools

import numpy as np

from . import cases


def cut(array, rng):
    """An array in chunks of any sizes, along some of its axes."""
    import dask.array as da

    chunks = []
    for extent in array.shape:
        cuts = rng.integers(0, extent + 1, rng.integers(1, 4)) if rng.random() < 0.6 else ()
        chunks.append(tuple(np.diff(sorted([0, *cuts, extent])).tolist()))
    return da.from_array(np.asarray(array), chunks=tuple(chunks))


def run(rng, op, *operands, **options):
    """What the public function of an op returns, whose blocks must be what they are announced to be."""
    import cuconv.dask

    operands = [cut(each, rng) if isinstance(each, np.ndarray) else each for each in operands]
    if options.get("bias") is not None:
        options["bias"] = cut(options["bias"], rng)
    result = getattr(cuconv.dask, cases.PUBLIC[op].__name__)(*operands, **options)
    blocks = computed(result.to_delayed())
    for at, block in np.ndenumerate(blocks):
        expected = tuple(sizes[number] for sizes, number in zip(result.chunks, at, strict=True))
        assert (block.shape, block.dtype) == (expected, result.dtype), (op, at, block.shape, expected)
    return np.block(blocks.tolist()) if blocks.size > 1 else blocks.item()


def computed(blocks):
    """An array of arrays from one of what is delayed."""
    import dask

    found = np.empty(blocks.shape, object)
    for place, block in zip(
        np.ndindex(blocks.shape), dask.compute(*blocks.flat, scheduler="sync"), strict=True
    ):
        found[place] = block
    return found


def check(case):
    """`cases.check` of a generated case on Dask arrays, which are not written to."""
    rng = np.random.default_rng(case.seed)
    cases.check(dataclasses.replace(case, accumulate=False), "auto", functools.partial(run, rng))
