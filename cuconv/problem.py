"""The geometry of a convolution: extents, validation, costs, and the one-line notation.

Letters follow cuDNN and CUTLASS: batch N, input channels C, output channels K, input extents D H W,
filter extents T R S, output extents Z P Q. This module imports no array library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from .dtypes import INTEGERS, described, holds
from .options import LIMIT, entries, flag, integer, integers, is_one, one_of, per_axis, shown

OPS = ("fprop", "dgrad", "wgrad", "bgrad")
LAYOUTS = ("channels_first", "channels_last")
_LAYOUTS_ELSEWHERE = {
    letters: ("cuDNN's", layout)
    for layout, words in zip(LAYOUTS, ("ncw nchw ncdhw", "nwc nhwc ndhwc"), strict=True)
    for letters in words.split()
}
PADDING_MODES = ("zeros", "circular", "reflect", "replicate", "symmetric")
MODES_ELSEWHERE = {
    "constant": ("NumPy's and SciPy's", "zeros"),
    "fill": ("SciPy's", "zeros"),
    "grid-constant": ("SciPy's", "zeros"),
    "wrap": ("NumPy's and SciPy's", "circular"),
    "grid-wrap": ("SciPy's", "circular"),
    "mirror": ("SciPy's", "reflect"),
    "edge": ("NumPy's", "replicate"),
    "nearest": ("SciPy's", "replicate"),
    "symm": ("SciPy's", "symmetric"),
    "grid-mirror": ("SciPy's", "symmetric"),
}
"""Words that other libraries have for padding modes: whose they are, and the name here."""

PADDING_NAMES = ("valid", "same", "same_lower", "full")
ACTIVATIONS = (None, "relu", "sigmoid", "tanh", "silu", "gelu")
PRECISIONS = (None, "tf32")

# One letter per spatial axis of a volume; a problem of rank 1 or 2 uses the last ones.
_INPUT_LETTERS, _FILTER_LETTERS, _OUTPUT_LETTERS = "dhw", "trs", "zpq"

# What a problem has one of per spatial axis beside the padding, and the least it may be.
_SPATIAL = {"input": 0, "filter": 1, "stride": 1, "dilation": 1}

Pairs = tuple[tuple[int, int], ...]
T = TypeVar("T")


class Derived(Generic[T]):
    """A property that is computed once and kept in the instance.

    `functools.cached_property` has a lock before Python 3.12, one for all instances: a process forked while
    another thread held it would wait for ever. Here two threads may compute the same value instead.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]  # as a class's property
        value = instance.__dict__[self.compute.__name__] = self.compute(instance)
        return value


@dataclass(frozen=True)
class ConvProblem:
    """One convolution, as numbers: what fprop, dgrad and wgrad all share.

    On each spatial axis, with stride s, dilation d, a cells of padding before and b after, H cells of
    the input, R of the filter and P of the output::

        y[n, k, p] = sum over c, r of  x[n, c, p s - a + r d] w[k, c, r]

        P = floor((H + a + b - d (R - 1) - 1) / s) + 1

    where x outside 0..H-1 is given by `padding_mode`, and c runs over the C/groups channels of k's
    group. `from_shapes` makes one from what `conv` is given, `parse` from one line of text.

    Parameters
    ----------
    n, c, k : int
        The number of images, of channels and of filters.
    input, filter : tuple of int
        Their extents, one per spatial axis, of which there are 1 to 3.
    stride, dilation : tuple of int
        One per spatial axis.
    padding : tuple of pairs of int
        One (before, after) pair per spatial axis. Negative padding crops.
    groups : int, default 1
        Channels and filters are divided into so many groups.
    padding_mode : {"zeros", "circular", "reflect", "replicate", "symmetric"}
        What the padding holds: see `conv`.

    Raises
    ------
    ValueError
        For numbers that do not go together, or too large ones.
    TypeError
        For values of a wrong type, such as floats.

    See Also
    --------
    conv : What computes y.
    plan : How a call will be done.

    Notes
    -----
    Lengths are in elements. Every number, every extent that follows, and the number of elements of x, w
    and y are below 2^62.

    ``str()`` gives the one-line notation and `parse` reads it:
    ``n32c64h56w56 k64r3s3 g2 sh2sw2 dh1dw2 ph1:0pw1 circular``. Groups, stride, dilation, padding and
    padding mode are left out where they are 1, 1, 1, 0 and zeros; ``p1`` pads every axis by 1.

    Examples
    --------
    >>> problem = cuconv.ConvProblem.parse("n8c3h32w32 k16r5s5 p2")
    >>> problem.y_shape()
    (8, 16, 32, 32)
    >>> problem.padding
    ((2, 2), (2, 2))
    >>> print(cuconv.ConvProblem.from_shapes((8, 3, 32, 32), (16, 3, 5, 5), stride=2))
    n8c3h32w32 k16r5s5 sh2sw2
    """

    n: int
    c: int
    k: int
    input: tuple[int, ...]
    filter: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pairs
    groups: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        normal: dict[str, Any] = {name: integer(name, getattr(self, name), 0) for name in ("n", "c", "k")}
        normal["groups"] = integer("groups", self.groups, 1)
        for name, minimum in _SPATIAL.items():
            normal[name] = integers(name, getattr(self, name), minimum)
        rank = len(normal["input"])
        if not 1 <= rank <= 3:
            raise ValueError(f"input must have 1 to 3 spatial axes, got {rank}")
        for name in _SPATIAL:
            if len(normal[name]) != rank:
                raise ValueError(f"{name} must have one entry per spatial axis ({rank}), got {normal[name]}")
        if isinstance(self.padding, str):
            raise TypeError(f"padding must be (before, after) pairs, got {shown(self.padding)}")
        normal["padding"] = padding_pairs(self.padding, *(normal[name] for name in _SPATIAL))
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        one_of("padding_mode", self.padding_mode, PADDING_MODES, MODES_ELSEWHERE)
        for name in ("c", "k"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"groups={self.groups} does not divide {name.upper()}={getattr(self, name)} ({self})"
                )
        for axis in range(rank):
            self._check_axis(axis)
        for name, shape in (("x", self.x_shape()), ("w", self.w_shape()), ("y", self.y_shape())):
            if math.prod(shape) >= LIMIT:
                raise ValueError(f"{name} of shape {shape} must have less than 2^62 elements ({self})")

    def _check_axis(self, axis: int) -> None:
        letter = _letters(_INPUT_LETTERS, self.rank)[axis]
        padded = self.padded[axis]
        if padded >= LIMIT:
            raise ValueError(
                f"padding must leave axis {letter} below 2^62 cells: input {self.input[axis]} with padding "
                f"{self.padding[axis]} is {padded} long ({self})"
            )
        if self.output[axis] < 1:
            raise ValueError(
                f"axis {letter} gives no output: input {self.input[axis]} with padding "
                f"{self.padding[axis]} is {padded} long, but the filter reaches over "
                f"{self.reach[axis]} (extent {self.filter[axis]}, dilation {self.dilation[axis]}) ({self})"
            )
        if self.padding_mode != "zeros" and self.input[axis] == 0:
            raise ValueError(
                f"padding_mode={self.padding_mode!r} needs input to repeat, but axis {letter} is "
                f"empty ({self})"
            )

    # -- made from shapes ---------------------------------------------------------------------------

    @classmethod
    def from_shapes(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        *,
        names: tuple[str, ...] = ("x_shape", "w_shape"),
    ) -> ConvProblem:
        """The problem that maps an input of `x_shape` through filters of `w_shape`.

        Parameters
        ----------
        x_shape, w_shape : sequence of int
            The shapes of x and w, as in `conv`.
        stride, padding, dilation, groups, padding_mode, layout : optional
            As in `conv`.
        names : tuple of str, optional
            The caller's words for the two shapes, for error messages.

        Returns
        -------
        problem : ConvProblem
            The same for both layouts.

        Examples
        --------
        >>> cuconv.ConvProblem.from_shapes((3, 32, 32), (16, 3, 5, 5), padding="same").padding
        ((2, 2), (2, 2))
        """
        k, per_group, filter = split_filters(names, x_shape, w_shape, layout)
        rank = len(filter)
        n, c, input = split_volume(names[0], x_shape, rank, layout)
        stride, dilation, groups = _normal(rank, stride, dilation, groups)
        if c != per_group * groups:
            raise ValueError(
                f"{names[0]} has {c} channels in {tuple(x_shape)}, but {names[1]} {tuple(w_shape)} with "
                f"groups={groups} expects {per_group} x {groups} = {per_group * groups} "
                f"(layout={layout!r}){_turned(x_shape, per_group * groups, layout)}"
            )
        pairs = padding_pairs(padding, input, filter, stride, dilation)
        return cls(n, c, k, input, filter, stride, dilation, pairs, groups, padding_mode)

    @classmethod
    def transposed(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        *,
        names: tuple[str, ...] = ("x_shape", "w_shape"),
    ) -> ConvProblem:
        """The problem whose dgrad is the transposed convolution of x with w.

        x plays dy, so its channels are the problem's K, and the result has the input's extents::

            H = (P - 1) s - a - b + d (R - 1) + output_padding + 1

        Parameters
        ----------
        x_shape, w_shape : sequence of int
            The shapes of x and w, as in `conv_transpose`.
        stride, padding, output_padding, groups, dilation, padding_mode, layout : optional
            As in `conv_transpose`.
        names : tuple of str, optional
            The caller's words for the two shapes, for error messages.

        Returns
        -------
        problem : ConvProblem
            Its `x_shape` is that of `conv_transpose`'s result, its `y_shape` that of x.

        Notes
        -----
        Output padding adds cells at the end only: b of the convolution that is transposed is less by as
        many. So its own output has exactly P cells, also where output_padding reaches the stride.

        Examples
        --------
        >>> cuconv.ConvProblem.transposed((8, 16, 14, 14), (16, 3, 5, 5), stride=2).x_shape()
        (8, 3, 31, 31)
        """
        k, per_group, filter = split_filters(names, x_shape, w_shape, layout)
        rank = len(filter)
        n, x_channels, output = split_volume(names[0], x_shape, rank, layout)
        stride, dilation, groups = _normal(rank, stride, dilation, groups)
        if x_channels != k:
            raise ValueError(
                f"{names[0]} has {x_channels} channels in {tuple(x_shape)}, but {names[1]} {tuple(w_shape)} "
                f"expects {k}: a transposed convolution reads along the filters' first axis "
                f"(layout={layout!r})"
            )
        extra = per_axis("output_padding", output_padding, rank, 0)
        for axis in range(rank):
            limit = max(stride[axis], dilation[axis])
            if extra[axis] >= limit:
                raise ValueError(
                    f"output_padding must be below the stride or the dilation, here {limit} on axis "
                    f"{axis}, got {shown(output_padding)}"
                )
            if output[axis] < 1:
                raise ValueError(f"{names[0]} must not be empty along its spatial axes, got {tuple(x_shape)}")
        # "same" makes the result stride times as large as x: the transpose of a "same" convolution.
        scaled = tuple(o * s for o, s in zip(output, stride, strict=True))
        pairs = padding_pairs(padding, scaled, filter, stride, dilation)
        reach = tuple(d * (r - 1) + 1 for r, d in zip(filter, dilation, strict=True))
        if isinstance(padding, str) and padding.startswith("same"):
            # Where the stride is longer than the reach it steps over the last cells: b crops them.
            pairs = tuple((pair[0], r - s - pair[0]) for pair, r, s in zip(pairs, reach, stride, strict=True))
        pairs = tuple((before, after - e) for (before, after), e in zip(pairs, extra, strict=True))
        input = tuple((output[a] - 1) * stride[a] + reach[a] - sum(pairs[a]) for a in range(rank))
        for letter, extent, pair in zip(_letters(_INPUT_LETTERS, rank), input, pairs, strict=True):
            if extent < 1:
                raise ValueError(
                    f"axis {letter} gives no output: padding {shown(padding)} crops a result of "
                    f"{extent + sum(pair)} to {extent}"
                )
            if extent >= LIMIT:
                raise ValueError(
                    f"stride must leave axis {letter} of the result below 2^62 cells, got {extent}"
                )
        c = integer("C/groups times groups", per_group * groups)
        return cls(n, c, k, input, filter, stride, dilation, pairs, groups, padding_mode)

    # -- derived extents ----------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """The number of spatial axes, 1 to 3."""
        return len(self.input)

    @Derived
    def reach(self) -> tuple[int, ...]:
        """How many input cells a filter spans on each axis: d (R - 1) + 1."""
        return tuple(d * (r - 1) + 1 for r, d in zip(self.filter, self.dilation, strict=True))

    @Derived
    def padded(self) -> tuple[int, ...]:
        """The input's extents with the padding on (or the cropped cells off)."""
        return tuple(extent + sum(pair) for extent, pair in zip(self.input, self.padding, strict=True))

    @Derived
    def output(self) -> tuple[int, ...]:
        """The output's extents Z P Q."""
        axes = zip(self.padded, self.reach, self.stride, strict=True)
        return tuple((padded - reach) // stride + 1 for padded, reach, stride in axes)

    @Derived
    def volumetric(self) -> ConvProblem:
        """The same problem with three spatial axes: leading unit axes are put in front."""
        lead = 3 - self.rank
        ones = (1,) * lead
        return replace(
            self,
            input=ones + self.input,
            filter=ones + self.filter,
            stride=ones + self.stride,
            dilation=ones + self.dilation,
            padding=((0, 0),) * lead + self.padding,
        )

    def x_shape(self, layout: str = "channels_first") -> tuple[int, ...]:
        """The shape of x, and of its gradient dx.

        Parameters
        ----------
        layout : {"channels_first", "channels_last"}
            Where the axis of the channels is.

        Returns
        -------
        shape : tuple of int
            ``(N, C, *input)``, or ``(N, *input, C)`` for channels_last.
        """
        return _shape(self.n, self.c, self.input, layout)

    def w_shape(self, layout: str = "channels_first") -> tuple[int, ...]:
        """The shape of w, and of its gradient dw.

        Parameters
        ----------
        layout : {"channels_first", "channels_last"}
            Where the axis of the channels is.

        Returns
        -------
        shape : tuple of int
            ``(K, C/groups, *filter)``, or ``(K, *filter, C/groups)`` for channels_last.
        """
        return _shape(self.k, self.c // self.groups, self.filter, layout)

    def y_shape(self, layout: str = "channels_first") -> tuple[int, ...]:
        """The shape of y, and of its gradient dy.

        Parameters
        ----------
        layout : {"channels_first", "channels_last"}
            Where the axis of the channels is.

        Returns
        -------
        shape : tuple of int
            ``(N, K, *output)``, or ``(N, *output, K)`` for channels_last.
        """
        return _shape(self.n, self.k, self.output, layout)

    def options(self) -> dict[str, Any]:
        """The keyword arguments by which the public functions do this problem.

        Returns
        -------
        options : dict
            stride, padding, dilation, groups and padding_mode.

        Examples
        --------
        >>> problem = cuconv.ConvProblem.parse("c1w4 k1s2 p1")
        >>> cuconv.conv(np.ones((1, 1, 4)), np.ones((1, 1, 2)), **problem.options())
        array([[[1., 2., 2., 2., 1.]]])
        """
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(self, name) for name in names}

    # -- costs --------------------------------------------------------------------------------------

    @property
    def macs(self) -> int:
        """Multiply-adds of fprop, and of dgrad and wgrad alike: N K Z P Q (C/groups) T R S."""
        return (
            self.n * self.k * math.prod(self.output)
            * (self.c // self.groups) * math.prod(self.filter)
        )  # fmt: skip

    def flops(self, op: str, dtype: str = "float32") -> int:
        """Floating-point operations of one op: two per real multiply-add, eight per complex one.

        Parameters
        ----------
        op : {"fprop", "dgrad", "wgrad", "bgrad"}
            Which op, by the names that `plan` has.
        dtype : str, default "float32"
            Of all arrays.

        Returns
        -------
        flops : int
            The gradient of the bias counts one addition per number, two per complex one.

        Examples
        --------
        >>> cuconv.ConvProblem.parse("n8c3h32w32 k16r5s5 p2").flops("fprop")
        19660800
        """
        one_of("op", op, OPS)
        of_complex = described(dtype).kind == "c"
        if op == "bgrad":
            return self.n * self.k * math.prod(self.output) * (2 if of_complex else 1)
        return self.macs * (8 if of_complex else 2)

    def bytes(self, op: str, dtype: str) -> int:
        """Bytes that one op must move at the least: each operand read once, each result written once.

        Parameters
        ----------
        op : {"fprop", "dgrad", "wgrad", "bgrad"}
            Which op, by the names that `plan` has.
        dtype : str
            Of all arrays.

        Returns
        -------
        bytes : int
            The bytes of x, w and y or their gradients; for the gradient of the bias those of dy and db.

        Examples
        --------
        >>> cuconv.ConvProblem.parse("n8c3h32w32 k16r5s5 p2").bytes("fprop", "float32")
        627392
        """
        x, w, y = (math.prod(shape) for shape in (self.x_shape(), self.w_shape(), self.y_shape()))
        elements = y + self.k if one_of("op", op, OPS) == "bgrad" else x + w + y
        return elements * described(dtype).itemsize

    def gemm(self, op: str) -> tuple[int, int, int]:
        """The sizes of one group's implicit matrix product.

        Parameters
        ----------
        op : {"fprop", "dgrad", "wgrad"}
            Which op, by the names that `plan` has.

        Returns
        -------
        gemm_m, gemm_n, gemm_k : int
            Rows and columns of the product, and how many products are summed up for each of its elements.
            For dgrad gemm_k counts every tap; with a stride, each cell of dx sees only some of them.

        Examples
        --------
        >>> cuconv.ConvProblem.parse("n8c3h32w32 k16r5s5 p2").gemm("fprop")
        (8192, 16, 75)
        """
        pixels = self.n * math.prod(self.output)
        c, k, taps = self.c // self.groups, self.k // self.groups, math.prod(self.filter)
        sizes = {
            "fprop": (pixels, k, taps * c),
            "dgrad": (self.n * math.prod(self.input), c, taps * k),
            "wgrad": (k, taps * c, pixels),
        }
        return sizes[one_of("op", op, sizes)]

    # -- the one-line notation ----------------------------------------------------------------------

    def __str__(self) -> str:
        def letters(prefix: str, values: Sequence[Any], default: Any) -> str:
            if all(value == default for value in values):
                return ""
            axes = _letters(_INPUT_LETTERS, self.rank)
            return " " + "".join(f"{prefix}{a}{_colon(v)}" for a, v in zip(axes, values, strict=True))

        def extents(alphabet: str, values: Sequence[int]) -> str:
            return "".join(f"{a}{v}" for a, v in zip(_letters(alphabet, self.rank), values, strict=True))

        text = f"n{self.n}c{self.c}{extents(_INPUT_LETTERS, self.input)}"
        text += f" k{self.k}{extents(_FILTER_LETTERS, self.filter)}"
        text += f" g{self.groups}" if self.groups != 1 else ""
        text += letters("s", self.stride, 1) + letters("d", self.dilation, 1)
        if len(set(self.padding)) == 1 and self.padding[0] != (0, 0):
            text += f" p{_colon(self.padding[0])}"
        else:
            text += letters("p", self.padding, (0, 0))
        return text + (f" {self.padding_mode}" if self.padding_mode != "zeros" else "")

    @classmethod
    def parse(cls, text: str) -> ConvProblem:
        """Read the one-line notation: ``n32c64h56w56 k64r3s3 p1``.

        Parameters
        ----------
        text : str
            n, c and the extents of the input (w, h w or d h w); k and those of the filter (s, r s or t r s);
            then what is not the default, as in the class's notes. n defaults to 1; the extents present set
            the rank; axes not named have stride 1, dilation 1 and padding 0.

        Returns
        -------
        problem : ConvProblem
            The geometry; ``str(problem)`` is its line in one standard form.

        Examples
        --------
        >>> cuconv.ConvProblem.parse("c64h56w56 k64r3s3 sh2sw2 p1").output
        (28, 28)
        """
        values, mode = _tokens(text)

        def take(key: str, default: Any = None) -> Any:
            if key not in values and default is None:
                raise ValueError(f"{key!r} is missing in the problem {shown(text)}")
            pair = values.pop(key, (default, default))
            if pair[0] != pair[1]:
                raise ValueError(f"{key!r} takes one number, got a pair in the problem {shown(text)}")
            return pair[0]

        rank = next((3 - i for i, letter in enumerate("dhw") if letter in values), 0)
        if rank == 0:
            raise ValueError(f"no input extent (w, h w or d h w) in the problem {shown(text)}")
        axes = _letters(_INPUT_LETTERS, rank)
        every = values.pop("p", (0, 0))
        problem = dict(
            n=take("n", 1),
            c=take("c"),
            k=take("k"),
            input=tuple(take(a) for a in axes),
            filter=tuple(take(a) for a in _letters(_FILTER_LETTERS, rank)),
            groups=take("g", 1),
            stride=tuple(take("s" + a, 1) for a in axes),
            dilation=tuple(take("d" + a, 1) for a in axes),
            padding=tuple(values.pop("p" + a, every) for a in axes),
            padding_mode=mode,
        )
        if values:
            raise ValueError(
                f"{', '.join(map(repr, values))} does not belong to a problem of rank {rank}: {shown(text)}"
            )
        return cls(**problem)


@dataclass(frozen=True)
class Request:
    """What a backend is asked to do: an op on a problem, the dtype, and what is fused with it.

    `conjugate` conjugates the second factor: w in fprop and dgrad, x in wgrad; with `conjugate_sum`, which
    conjugates the sum of the products, it is the first one. The gradients of a complex convolution are its
    adjoint maps, so they ask for it, and so do those of the transposed one. `flip` turns the filters by 180
    degrees. Without `batched` the arrays have no batch axis. `inputs` are the dtypes of x and w where these
    are narrower integers than `dtype`.
    """

    op: str
    problem: ConvProblem
    dtype: str
    layout: str = "channels_first"
    batched: bool = True
    flip: bool = False
    bias: bool = False
    activation: str | None = None
    accumulate: bool = False
    conjugate: bool = False
    conjugate_sum: bool = False
    precision: str | None = None
    inputs: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        one_of("op", self.op, OPS)
        checked_layout(self.layout)
        check_activation(self.activation, self.dtype)
        one_of("precision", self.precision, PRECISIONS)
        for name in ("flip", "accumulate"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.precision is not None and self.dtype != "float32":
            raise TypeError(f"precision={self.precision!r} is for float32, got dtype {self.dtype}")
        for name, dtype in zip(("x", "w"), self.inputs or (), strict=False):
            if self.op != "fprop" or not holds(self.dtype, dtype):
                raise TypeError(f"{self.op} in {self.dtype} cannot be computed from {name} of {dtype}")

    @Derived
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The caller's shapes of x, w, y and of the gradients dx, dw, dy, db."""
        return {role: self.shape(role) for role in ("x", "w", "y", "dx", "dw", "dy", "db")}

    def shape(self, role: str) -> tuple[int, ...]:
        """The caller's shape of x, w or y, or of a gradient dx, dw, dy or db."""
        if role == "db":
            return (self.problem.k,)
        of = {"x": self.problem.x_shape, "w": self.problem.w_shape, "y": self.problem.y_shape}
        shape = of[role[-1]](self.layout)
        return shape if self.batched or role[-1] == "w" else shape[1:]

    @property
    def bytes(self) -> int:
        """Bytes that must be moved at the least: each operand read once, each result written once."""
        size, each = self.problem.bytes(self.op, self.dtype), described(self.dtype).itemsize
        for role, dtype in zip("xw", self.inputs or (), strict=False):
            size -= math.prod(self.shape(role)) * (each - INTEGERS[dtype].itemsize)
        return size

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        """Without what is derived: hashes differ from process to process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @Derived
    def _hash(self) -> int:
        """Computed once: plans are looked up by request."""
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __str__(self) -> str:
        fused = [] if self.batched else ["unbatched"]
        fused += [
            name
            for name in ("flip", "bias", "accumulate", "conjugate", "conjugate_sum")
            if getattr(self, name)
        ]
        extras = [f"activation={self.activation}"] if self.activation else []
        extras += [f"precision={self.precision}"] if self.precision else []
        extras += [f"x={self.inputs[0]} w={self.inputs[1]}"] if self.inputs else []
        return " ".join([self.op, self.dtype, self.layout, str(self.problem), *fused, *extras])


def check_activation(activation: Any, dtype: str) -> None:
    """Raise unless the activation is one, and is defined for numbers of the dtype."""
    one_of("activation", activation, ACTIVATIONS)
    kind = described(dtype).kind
    if activation is not None and kind != "f" and (activation, kind) != ("relu", "i"):
        raise TypeError(f"activation={activation!r} is not defined for dtype {dtype}")


def split_volume(name: str, shape: Sequence[int], rank: int, layout: str) -> tuple[int, int, tuple[int, ...]]:
    """(N, C, spatial) of an activation's shape; a missing batch axis counts as N = 1."""
    extents = integers(name, shape, 0)
    letters = ", ".join(_letters(_INPUT_LETTERS, rank).upper())
    axes = f"N, C, {letters}" if checked_layout(layout) == "channels_first" else f"N, {letters}, C"
    if len(extents) == rank + 1:
        extents = (1, *extents)
    if len(extents) != rank + 2:
        hint = f"; as one channel it is {_grown(name, extents, 1, layout)}" if len(extents) == rank else ""
        raise ValueError(
            f"{name} must have {rank + 2} axes ({axes}), or {rank + 1} without N, to go with filters of "
            f"{rank} spatial axes; got shape {tuple(shape)}{hint}"
        )
    if layout == "channels_first":
        return extents[0], extents[1], extents[2:]
    return extents[0], extents[-1], extents[1:-1]


def split_filters(
    names: tuple[str, ...], x_shape: Sequence[int], w_shape: Sequence[int], layout: str
) -> tuple[int, int, tuple[int, ...]]:
    """(K, C/groups, spatial) of the filters' shape; its length sets the rank.

    `names` are the caller's words for the two shapes; that of x is only read for the advice in an error.
    """
    extents = integers(names[1], w_shape, 0)
    checked_layout(layout)
    if not 3 <= len(extents) <= 5:
        raise ValueError(
            f"{names[1]} must have 3, 4 or 5 axes (K, C/groups and 1 to 3 spatial ones), got shape {extents}"
            "; " + (advice(names, x_shape, extents, layout) or "one filter for one channel has K = C = 1")
        )
    k, *rest = extents
    per_group, *filter = rest if layout == "channels_first" else (rest[-1], *rest[:-1])
    if 0 in filter:
        raise ValueError(f"{names[1]} must not be empty along its spatial axes, got shape {extents}")
    return k, per_group, tuple(filter)


def advice(names: tuple[str, ...], x_shape: Sequence[int], filter: tuple[int, ...], layout: str) -> str:
    """What to write for a filter given without K and C, or nothing where x leaves it open what is meant.

    `names` are the caller's words for x, w, and what else has the axes of x.
    """
    x, rank = integers(names[0], x_shape, 0), len(filter)
    first = checked_layout(layout) == "channels_first"
    if not 1 <= rank <= 3 or not rank <= len(x) <= rank + 2:
        return ""
    if len(x) == rank:
        parts = [_grown(names[0], x, 1, layout), _grown(names[1], filter, 2, layout)]
        parts[1:1] = [f"{name}[None]" if first else f"{name}[..., None]" for name in names[2:]]
        return f"for one channel and one filter pass {', '.join(parts[:-1])} and {parts[-1]}"
    if first and len(x) == rank + 1 and x[-1] <= 4 < x[0]:  # a picture, whose channels are its colours
        return advice(names, x_shape, filter, "channels_last")
    channels = x[-1 - rank] if first else x[-1]
    if channels == 0:
        return ""
    of = f"each of the {channels} channels" if channels > 1 else "the one channel"
    groups = f" with groups={channels}" if channels > 1 else ""
    return (
        f"one filter for {of} of {names[0]} {x} is {_grown(names[1], filter, 2, layout, channels)}{groups} "
        f"(layout={layout!r})"
    )


def _turned(x_shape: Sequence[int], channels: int, layout: str) -> str:
    """A hint for an array that has so many channels along its last axis, but not where the layout says."""
    if layout == "channels_last" or x_shape[-1] != channels:
        return ""
    filters = "(K, *filter, C/groups)"
    return f"; its last axis has {channels}: layout='channels_last' is for that, with filters {filters}"


def checked_layout(layout: Any) -> str:
    """A layout, or ValueError, which knows cuDNN's words."""
    found: str = one_of("layout", layout, LAYOUTS, _LAYOUTS_ELSEWHERE)
    return found


def _grown(name: str, shape: tuple[int, ...], axes: int, layout: str, k: int = 1) -> str:
    """How to add the missing axis C, or K and C, to an array or to a shape that has its name, and the result.

    A list of zeros repeats the filter along K: `repeat` is not the same function in all libraries.
    """
    before, after = ((k, 1)[:axes], ()) if layout == "channels_first" else ((k,)[: axes - 1], (1,))
    if name.endswith("_shape"):
        return f"({', '.join(map(str, (*before, '*' + name, *after)))}) = {(*before, *shape, *after)}"
    index = ", ".join(["None"] * len(before) + ["...", "None"] * len(after))
    repeated = f"[[0] * {k}]" if k > 1 else ""
    return f"{name}[{index}]{repeated} of shape {(*before, *shape, *after)}"


def padding_pairs(
    padding: Any,
    input: tuple[int, ...],
    filter: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Pairs:
    """One (before, after) pair per axis, from every form that `padding` may take.

    `"valid"` pads nothing; `"full"` pads d (R - 1) on both sides, so that every partial overlap gives
    an output; `"same"` pads so that P = ceil(H / s), the odd cell at the end, and `"same_lower"` puts
    the odd cell at the beginning.
    """
    rank = len(input)
    if isinstance(padding, str):
        _, mode = MODES_ELSEWHERE.get(padding.lower(), ("", padding.lower()))
        if mode in PADDING_MODES:
            raise ValueError(
                f"padding is how much to pad, in numbers or as one of {', '.join(map(repr, PADDING_NAMES))}; "
                f"got {padding!r}: did you mean padding_mode={mode!r}?"
            )
    spread = tuple(d * (r - 1) for r, d in zip(filter, dilation, strict=True))
    if max(spread) >= LIMIT - 1:
        raise ValueError(f"dilation {dilation} spreads a filter of {filter} over 2^62 cells or more")
    if isinstance(padding, str):
        one_of("padding", padding, PADDING_NAMES, {"same_upper": ("ONNX's", "same")})
        if padding == "valid":
            return ((0, 0),) * rank
        if padding == "full":
            return tuple((reach, reach) for reach in spread)
        totals = [
            max((-(-h // s) - 1) * s + reach + 1 - h, 0)
            for h, s, reach in zip(input, stride, spread, strict=True)
        ]
        small, large = zip(*((total // 2, total - total // 2) for total in totals), strict=True)
        return tuple(zip(*((small, large) if padding == "same" else (large, small)), strict=True))
    if is_one(padding):
        try:
            both = integer("padding", padding)
        except TypeError:
            raise TypeError(
                f"padding must be an int, ints or pairs per axis, or a name, got {shown(padding)}"
            ) from None
        return ((both, both),) * rank
    items = entries("padding", padding)
    if len(items) != rank:
        hint = f"; a pair for the one axis is written [{items}]" if rank == 1 and len(items) == 2 else ""
        raise ValueError(
            f"padding must be an int, {rank} ints or (before, after) pairs, one per spatial axis, or one "
            f"of {', '.join(map(repr, PADDING_NAMES))}; got {shown(padding)}{hint}"
        )
    pairs = []
    for item in items:
        pair = (integer("padding", item),) * 2 if is_one(item) else integers("padding", item)
        if len(pair) != 2:
            raise ValueError(f"padding takes (before, after) pairs, got {shown(item)} in {shown(padding)}")
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _normal(rank: int, stride: Any, dilation: Any, groups: Any) -> tuple[Any, Any, int]:
    return (
        per_axis("stride", stride, rank, 1),
        per_axis("dilation", dilation, rank, 1),
        integer("groups", groups, 1),
    )


def _letters(alphabet: str, rank: int) -> str:
    return alphabet[3 - rank :]


def _shape(outer: int, channels: int, spatial: tuple[int, ...], layout: str) -> tuple[int, ...]:
    if checked_layout(layout) == "channels_first":
        return (outer, channels, *spatial)
    return (outer, *spatial, channels)


def _colon(value: Any) -> str:
    """A padding pair as before:after, or as one number where both are the same."""
    if not isinstance(value, tuple):
        return str(value)
    before, after = value
    return str(before) if before == after else f"{before}:{after}"


_KEYS = ("n", "c", *"dhw", "k", *"trs", "g", "p", *(a + b for a in "sdp" for b in "dhw"))
_MOST_DIGITS = 1000  # of one item: far more than any number takes, and fewer than Python refuses to read
_ITEM = re.compile(r"([a-z]+)(-?[0-9]+)(?::(-?[0-9]+))?/?")


def _tokens(text: str) -> tuple[dict[str, tuple[int, int]], str]:
    """The numbers of a one-line problem by key, each as a pair, and its padding mode."""
    if not isinstance(text, str):
        raise TypeError(f"a problem is parsed from a string, the text, got {shown(text)}")
    values: dict[str, tuple[int, int]] = {}
    mode = "zeros"
    for token in text.split():
        if token.isalpha() or token in MODES_ELSEWHERE:
            if mode != "zeros" or token in _KEYS:
                raise ValueError(
                    f"{shown(token)} needs a number, or is too much, in the problem {shown(text)}"
                )
            mode = one_of(f"each word of the problem {shown(text)}", token, PADDING_MODES, MODES_ELSEWHERE)
            continue
        position = 0
        while position < len(token):
            match = _ITEM.match(token, position)
            if match is None:
                raise ValueError(f"cannot read {shown(token[position:])} in the problem {shown(text)}")
            key, before, after = match.groups()
            one_of(f"each key of the problem {shown(text)}", key, _KEYS)
            if key in values:
                raise ValueError(f"{key!r} stands twice in the problem {shown(text)}")
            if len(match.group()) > _MOST_DIGITS:
                raise ValueError(f"{key!r} must be below 2^62 in magnitude in the problem {shown(text)}")
            values[key] = (int(before), int(after if after is not None else before))
            position = match.end()
    return values, mode
