"""Plans: which algorithm does a request, and why. Made once per request, then looked up and run."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from . import arrays, cpu, prepared, processor, tuning
from .arrays import Array, Operands
from .cuda import algorithms as cuda_algorithms
from .cuda import device as devices
from .cuda import jit, launch
from .cuda.device import Device
from .dtypes import DTYPES
from .options import one_of, shown
from .problem import Request
from .processor import Processor
from .table import Algorithm, Schedule, Table

INPUTS = {"fprop": ("x", "w"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy"), "bgrad": ("dy",)}
RESULT = {"fprop": "y", "dgrad": "dx", "wgrad": "dw", "bgrad": "db"}

_ARRAYS = {"cpu": "arrays on the CPU", "cuda": "arrays on a GPU"}

TABLES: dict[str, Table] = {"cpu": cpu.TABLE, "cuda": cuda_algorithms.TABLE}


@dataclass(frozen=True)
class Plan(Schedule):
    """A chosen algorithm, as plain data: print it, compare it, keep it, call it.

    `plan` makes it. To run it, call it with arrays of the shapes and the dtype that it was made for: x
    and w for "fprop", dy and w for "dgrad", x and dy for "wgrad", or dy for "bgrad".

    Attributes
    ----------
    workspace_bytes : int
        Scratch memory beyond the operands and the result.
    launches : tuple
        What is run in order by the backend; printing the plan shows each.
    request : Request
        The op, its `ConvProblem` (``request.problem``), the dtype, and what is fused with it.
    backend : {"cpu", "cuda"}
        Whether it takes NumPy's or CuPy's arrays.
    arch : str or None
        The architecture of the GPU that it is for, None where there is no GPU; for "cpu" the number of
        threads that it runs in.
    algorithm : str
        The algorithm's name.
    why : str
        How the choice was made, in words.

    See Also
    --------
    plan : Makes one.

    Examples
    --------
    >>> plan = cuconv.plan("dgrad", (1, 1, 3), (1, 1, 2), "float64", algorithm="gemm")
    >>> plan.algorithm, plan.why
    ('gemm', 'asked for by name')
    >>> plan(np.ones((1, 1, 2)), np.ones((1, 1, 2)))
    array([[[1., 2., 1.]]])
    """

    request: Request
    backend: str
    arch: str | None
    algorithm: str
    why: str

    def __call__(self, *inputs: Array, bias: Array | None = None, out: Array | None = None) -> Array:
        """Run it.

        Parameters
        ----------
        *inputs : array
            x and w for fprop, dy and w for dgrad, x and dy for wgrad, dy for bgrad, of the shapes and the
            dtype that the plan was made for.
        bias : array, optional
            The bias, if and only if one was announced to `plan`.
        out : array, optional
            The array that the result is written or, as the plan says, added to.

        Returns
        -------
        result : array
            The result, or `out` where it is given.
        """
        return prepared.run(self._called, inputs, dict(bias=bias, out=out))

    def _called(self, *inputs: Array, bias: Array | None, out: Array | None) -> Planned:
        names = INPUTS[self.request.op]
        if len(inputs) != len(names):
            raise TypeError(f"a plan of {self.request.op} takes {', '.join(names)}, got {len(inputs)} arrays")
        request = self.request
        out_dtype = request.dtype if request.inputs else None
        operands = arrays.adopt(out_dtype, **dict(zip(names, inputs, strict=True)), bias=bias, out=out)
        made_for = (self.backend, request.inputs or request.dtype)
        given = (operands.owner.backend, operands.inputs or operands.dtype)
        if given != made_for:
            raise TypeError("the plan was made for {}, got {}".format(*map(_of_dtype, (made_for, given))))
        if (bias is not None) != self.request.bias:
            raise ValueError(f"bias was {'' if self.request.bias else 'not '}announced to plan()")
        return Planned(Call(self.request, operands, names), self)

    @property
    def entry(self) -> Algorithm:
        """The entry of the table that made it."""
        return next(entry for entry in TABLES[self.backend][self.request.op] if entry.name == self.algorithm)

    def without_workspace(self) -> list[str]:
        """The algorithms of `auto` that do the same in no more memory than the operands' and the result's.

        Returns
        -------
        names : list of str
            What `algorithm` may be to need no workspace; empty where there is none.
        """
        arch, entries = self.arch, exact_candidates(self.request, self.backend, self.arch)
        plans = [make_plan(self.request, entry.name, self.backend, arch) for entry in entries]
        return [plan.algorithm for plan in plans if not plan.workspace_bytes]

    def __str__(self) -> str:
        problem, op, dtype = self.request.problem, self.request.op, self.request.dtype
        place = f"cpu with {self.arch}" if self.backend == "cpu" else self.arch or self.backend
        proof = self.entry.proof
        lines = [
            str(self.request),
            f"  algorithm  {self.algorithm} on {place}: {self.why}" + (f"; {proof}" if proof else ""),
            f"  work       {problem.flops(op, dtype):,} FLOP, at least {self.request.bytes:,} bytes",
            f"  workspace  {self.workspace_bytes:,} bytes",
        ]
        return "\n".join([*lines, *(f"  launch     {launch}" for launch in self.launches)])


def _of_dtype(kind: tuple[str, str | tuple[str, str]]) -> str:
    """A backend's arrays and their dtype, or those of x and w, in words."""
    backend, dtype = kind
    return f"{_ARRAYS[backend]} of dtype {dtype if isinstance(dtype, str) else ' and '.join(dtype)}"


@dataclass(frozen=True)
class Call:
    """A request and its arrays; making one checks every shape and the place for the result.

    `inputs` and `out` are the names that the operands have in the caller's words.
    """

    request: Request
    operands: Operands
    inputs: tuple[str, ...]
    out: str = "out"

    def __post_init__(self) -> None:
        request = self.request
        for name, role in zip(self.inputs, INPUTS[request.op], strict=True):
            expect_shape(request, role, name, self.operands)
        bias = self.operands["bias"]
        channels = request.problem.c if request.op == "dgrad" else request.problem.k
        if bias is not None and tuple(bias.shape) != (channels,):
            raise ValueError(
                f"bias must have shape {(channels,)}, one per channel of the result, got {tuple(bias.shape)}"
            )
        if self.operands[self.out] is not None:
            self.operands.check_out(self.out, request.shapes[RESULT[request.op]])
        elif request.accumulate:
            raise ValueError(f"accumulate=True adds to {self.out}, but {self.out} is None")

    def planned(self, algorithm: str) -> Planned:
        """This call with its plan, `algorithm` being `auto`, `tune` or a name."""
        if isinstance(algorithm, str) and algorithm == "tune":
            return Planned(self, self._tuned())
        owner = self.operands.owner
        return Planned(self, make_plan(self.request, algorithm, owner.backend, owner.arch))

    def _tuned(self) -> Plan:
        """The plan that is fastest on these operands: timed once and remembered (see `tuning`)."""
        owner = self.operands.owner
        key = (self.request, owner.backend, owner.arch)
        winner = _winners.get(key)
        if winner is None:
            with _tuning:
                winner = _winners.get(key)  # another thread may have tuned the same
                if winner is None:
                    winner = self._fastest(owner.backend, owner.arch)
                    if len(_winners) >= _MOST_WINNERS:
                        _winners.popitem(last=False)
                    _winners[key] = winner
        return winner

    def _fastest(self, backend: str, arch: str | None) -> Plan:
        """The plan that won in an earlier process, or wins now.

        Each candidate runs twice, into an array of its own, and its better time counts.
        """
        request = self.request
        names = [entry.name for entry in exact_candidates(request, backend, arch)]
        plans = {name: make_plan(request, name, backend, arch) for name in names}
        winner = tuning.remembered(request, backend, names)
        if winner is not None:
            return replace(plans[winner], why="fastest when timed by an earlier process")
        try:
            scratch = self.new_result()
        except MemoryError as error:
            prepared.explain(error, self.operands.owner, [(plans[names[0]], self.result_bytes)])
            raise
        scratch[...] = 0
        times = {name: min(self._seconds(plan, scratch) for _ in range(2)) for name, plan in plans.items()}
        winner = min(times, key=times.__getitem__)
        tuning.remember(request, backend, names, winner)
        return replace(plans[winner], why="fastest when timed")

    def _seconds(self, plan: Plan, out: Array) -> float:
        self.operands.owner.wait()
        start = time.perf_counter()
        prepared.run_unprepared((Planned(self, plan, out),))
        self.operands.owner.wait()
        return time.perf_counter() - start

    @property
    def result_bytes(self) -> int:
        """What the result takes."""
        request = self.request
        return math.prod(request.shape(RESULT[request.op])) * DTYPES[request.dtype].itemsize

    def new_result(self) -> Array:
        """Memory for the result, uninitialised."""
        return self.operands.empty(self.request.shapes[RESULT[self.request.op]])


@dataclass(frozen=True)
class Planned:
    """A call and its plan, to be run."""

    call: Call
    plan: Plan
    into: Array | None = None

    @property
    def place(self) -> Array | None:
        """The array for the result: `into`, the operand `out`, or none yet."""
        return self.call.operands[self.call.out] if self.into is None else self.into

    @property
    def new_bytes(self) -> int:
        """What the result takes beside the arrays that are there."""
        return self.call.result_bytes if self.place is None else 0

    def result(self) -> Array:
        """The result's array, of the backend's library, a new one where there is no place for it."""
        return self.call.new_result() if self.place is None else self.place

    def work(self, result: Array) -> prepared.Work:
        """What the backend makes ready for the operands and the result, and these arrays by their roles."""
        arrays, ready = self._by_role(result), READY[self.plan.backend]
        if self.plan.backend == "cpu" and 0 in result.shape:
            ready = _nothing_to_do
        return ready(self.call.request, self.plan, arrays), tuple(arrays.values())

    def _by_role(self, result: Array) -> dict[str, Array]:
        """The arrays that the backend takes: the inputs, the result, and the bias if there is one."""
        op, operands = self.call.request.op, self.call.operands
        inputs = {role: operands[name] for role, name in zip(INPUTS[op], self.call.inputs, strict=True)}
        bias = {} if operands["bias"] is None else {"bias": operands["bias"]}
        return {**inputs, RESULT[op]: result, **bias}

    def give_back(self, result: Array) -> Array:
        """The result in the caller's own library."""
        return self.call.operands.give_back(self.call.out, result)


def expect_shape(request: Request, role: str, name: str, operands: Operands) -> None:
    """Raise unless the operand of that name has the shape of its role in the request."""
    expected, shape = request.shapes[role], operands.shape(name)
    if shape != expected:
        raise ValueError(f"{name} must have shape {expected} in {request.problem}, got {shape}")


def _nothing_to_do(*arguments: Any) -> Callable[[tuple[Array, ...]], None]:
    """Ready for an empty result, as of images without channels, of which there may be any number."""
    return lambda arrays: None


READY: dict[str, Callable[..., Any]] = {"cpu": cpu.ready, "cuda": launch.ready}
"""By backend what makes a request and its schedule ready for arrays by role, for `prepared` to run."""

_winners: OrderedDict[tuple[Request, str, str | None], Plan] = OrderedDict()
"""The winning plan for each request, backend and architecture that was tuned, in the order of tuning."""

_MOST_WINNERS = 4096

_tuning = threading.RLock()
"""Held while candidates are timed: at once with others, each would be timed in the others' way."""


def _after_fork() -> None:
    """A forked child does not have the thread that held the lock."""
    global _tuning
    _tuning = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def make_plan(request: Request, algorithm: str, backend: str, arch: str | None = None) -> Plan:
    """The plan for a request, `algorithm` being `auto` or a name from the backend's table.

    `arch` is the architecture of the GPU that will run it, sm_90 and the like, or the CPU's number of
    threads; by default what is here.
    """
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a string, got {shown(algorithm)}")
    if backend == "cpu" and arch is None:
        arch = processor.current_arch()
    return _make_plan(request, algorithm, backend, arch)


@lru_cache(maxsize=4096)
def _make_plan(request: Request, algorithm: str, backend: str, arch: str | None) -> Plan:
    table = TABLES[backend][request.op]
    names = [entry.name for entry in table]
    for other in TABLES.keys() - {backend}:
        if algorithm not in names and algorithm in [entry.name for entry in TABLES[other][request.op]]:
            raise ValueError(
                f"algorithm={algorithm!r} is for {_ARRAYS[other]}, and these are {_ARRAYS[backend]}: "
                f"choose from 'auto', 'tune', {', '.join(map(repr, names))}"
            )
    ops = [op for op, entries in TABLES[backend].items() if algorithm in [entry.name for entry in entries]]
    if ops and request.op not in ops:
        raise ValueError(
            f"algorithm={algorithm!r} does {' and '.join(ops)}, not {request.op}: choose from 'auto', "
            f"'tune', {', '.join(map(repr, names))}"
        )
    if one_of("algorithm", algorithm, ("auto", "tune", *names)) == "tune":
        raise ValueError("algorithm='tune' times a call's arrays; a plan is made without any")
    device = device_of(backend, arch)
    if algorithm == "auto":
        candidates = exact_candidates(request, backend, arch)
        chosen = min(candidates, key=lambda entry: entry.estimate(request, device))
        others = [entry.name for entry in candidates if entry is not chosen]
        why = (
            f"least estimated time, before {', '.join(others)}"
            if others
            else "the only exact one that applies"
        )
        if left_out := [name for name in names if name in avoided()]:
            why += f"; {AVOID} leaves out {', '.join(left_out)}"
    else:
        chosen = table[names.index(algorithm)]
        why = "asked for by name"
        reason = chosen.applies(request, device)
        if reason is not None:
            raise ValueError(f"algorithm={algorithm!r} cannot do {request}: {reason}")
    schedule = chosen.plan(request, device)
    return Plan(schedule.workspace_bytes, schedule.launches, request, backend, arch, chosen.name, why)


def exact_candidates(request: Request, backend: str, arch: str | None = None) -> list[Algorithm]:
    """The entries that `auto` and `tune` choose from, in the table's order; ValueError where none is left."""
    device = device_of(backend, arch)
    exact = [
        entry
        for entry in TABLES[backend][request.op]
        if entry.by_name_only(request) is None and entry.applies(request, device) is None
    ]
    candidates = [entry for entry in exact if entry.name not in avoided()]
    if not candidates:
        names = ", ".join(entry.name for entry in exact)
        raise ValueError(
            f"{AVOID} leaves nothing that does {request}, of {names}: take one of these out of it, or name "
            f"one in the call, as algorithm={exact[-1].name!r}"
        )
    return candidates


AVOID = "CUCONV_AVOID"
"""The variable that names algorithms, with commas between, which `auto` and `tune` leave out."""


@cache
def avoided() -> tuple[str, ...]:
    """What the environment says to leave out, on either backend.

    It is read once, when the first plan is made: a call is to look nothing up that does not change.
    """
    known = sorted({entry.name for table in TABLES.values() for of_op in table.values() for entry in of_op})
    names = [name.strip() for name in os.environ.get(AVOID, "").split(",")]
    return tuple(one_of(f"each name in {AVOID}", name, known) for name in names if name)


TF32 = "CUPY_TF32"
"""The variable by which CuPy's products of float32 are done in TF32, where it is 1."""


@cache
def tf32_permitted() -> bool:
    """Whether CuPy's products of float32 are done in TF32; read once, when first needed, as by CuPy."""
    value = os.environ.get(TF32, "0")
    try:
        return int(value) > 0
    except ValueError:
        raise ValueError(f"{TF32} must be an int, in the environment, got {shown(value)}") from None


def permitted(precision: str | None, dtype: str, backend: str) -> str | None:
    """The precision of a call's request: on a GPU, where the call names none, that of CuPy's own products."""
    if precision is None and dtype == "float32" and backend == "cuda" and tf32_permitted():
        return "tf32"
    return precision


def device_of(backend: str, arch: str | None) -> Device | Processor:
    """What a plan is made for."""
    if backend == "cpu":
        return processor.processor(arch or processor.current_arch())
    return devices.device(devices.DEFAULT if arch is None else arch)


def forget() -> None:
    """Forget what was planned, tuned and prepared: by what is here now, the next call finds it out again."""
    avoided.cache_clear()
    tf32_permitted.cache_clear()
    _make_plan.cache_clear()
    _winners.clear()
    prepared.forget()


def current_arch(backend: str) -> str | None:
    """The architecture of the GPU at hand, if there is one that the backend can use; the CPU's threads."""
    if backend == "cpu":
        return processor.current_arch()
    return jit.current_arch() if jit.usable_cupy() else None
