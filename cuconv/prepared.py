"""Calls that are made again: what follows from shapes and options is found out once, then looked up.

A public function checks its arguments and says what is to be run, and by which plan: the long way, which
alone makes errors. What was run is kept by all that it follows from: the function, the GPU or the CPU's
threads, shape, strides, dtype and device of each array, value and type of each option. The same call again is
one look-up, memory for the results, and the launches; where it would write what it must not (memory that
other arguments may share, a read-only array) it goes the long way again, to its error.

Plans that `algorithm="tune"` found are kept like others. Environment variables count when a call is first
made.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from . import processor
from .arrays import OWNERS, Array, Owner, given_back, may_overlap_at, owner_of, view_of
from .cuda import jit, launch
from .options import checked_keywords

Work = tuple[Any, tuple[Array, ...]]
"""What a backend has made ready, and the arrays that it is to be run on."""


class Planned(Protocol):
    """What is to be run: a call and its plan."""

    @property
    def call(self) -> Any: ...
    @property
    def plan(self) -> Any: ...
    @property
    def new_bytes(self) -> int: ...
    def result(self) -> Array: ...
    def work(self, result: Array) -> Work: ...
    def give_back(self, result: Array) -> Array: ...


_MOST = 4096
_kept: dict[tuple[Any, ...], _Prepared] = {}

_OFTEN = frozenset((int, str, bool, type(None), type))
_SELDOM = (np.integer, np.bool_, np.dtype)
"""Options of these types, the ones or the others, mean the same wherever type and value are the same."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def repeatable(function: _Function) -> _Function:
    """Make a function that says what is to be run, a `Planned` or a tuple of some and None, run it."""
    describe = checked_keywords(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return run(describe, args, kwargs)

    return cast(_Function, call)


def run(describe: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The results of what `describe` says of these arguments, or has said of others like them."""
    parts: list[Any] = [describe, *kwargs]
    given: list[Array] = []
    views: list[Array] = []
    try:
        _look((*args, *kwargs.values()), parts, given, views)
        key = (_place(views[0]), *parts)
        known = _kept.get(key)
    except Exception:  # whatever odd values raise on being looked at: what to say of them, `describe` knows
        key, known = (), None
    if known is not None and (not known.apart or known.may_write(views)):  # not asked in vain, for time
        return known.run(given, views)
    described = describe(*args, **kwargs)
    planned = described if isinstance(described, tuple) else (described,)
    results, work = run_unprepared(planned)
    if key and known is None:
        known = _prepared(planned, results, work, given, views)
        if known is not None:
            if len(_kept) >= _MOST:
                _kept.clear()
            _kept[key] = known
    back = tuple(each and each.give_back(result) for each, result in zip(planned, results, strict=True))
    return back if described is planned else back[0]


def run_unprepared(planned: Sequence[Planned | None]) -> tuple[list[Any], list[Any]]:
    """Run calls the long way. Their results, all had before one is written, and what was run."""
    every = [each for each in planned if each]
    try:
        results = [each and each.result() for each in planned]
        work = [each and each.work(result) for each, result in zip(planned, results, strict=True)]
        if every:
            _runner(every[0].call.operands.owner)([each for each in work if each])
    except MemoryError as error:
        explain(error, every[0].call.operands.owner, [(each.plan, each.new_bytes) for each in every])
        raise
    return results, work


def _runner(owner: Owner) -> Callable[[Sequence[Work]], None]:
    """What runs an owner's work, in order; on a GPU all of it or, where memory is short, nothing."""
    return launch.run if owner.on_gpu else _one_by_one


def _one_by_one(work: Sequence[Work]) -> None:
    for ready, arrays in work:
        ready(arrays)


def explain(error: MemoryError, owner: Owner, needs: Sequence[tuple[Any, int]]) -> None:
    """Have an error of CuPy's say what plans and new results, of so many bytes, need, and what helps.

    It stays CuPy's own error, with another text: who catches its OutOfMemoryError catches this one too.
    """
    if owner.on_gpu:  # NumPy's says what it could not have
        with contextlib.suppress(Exception):  # where a GPU is lost its memory cannot be asked for
            error.args = (f"{error} {_needed(owner, needs)}".strip(),)


def _needed(owner: Owner, needs: Sequence[tuple[Any, int]]) -> str:
    """What plans and new results need, what there is, and what helps."""
    results = sum(new for _, new in needs)
    workspace = max(plan.workspace_bytes for plan, _ in needs)
    free, _ = owner.namespace.cuda.runtime.memGetInfo()
    unused = owner.namespace.get_default_memory_pool().free_bytes()
    ways = ["a smaller batch"]
    # A name goes for all gradients but that of the bias, which has one algorithm.
    named = [plan for plan, _ in needs if plan.request.op != "bgrad"]
    needing = any(plan.workspace_bytes for plan in named)
    without = [plan.without_workspace() for plan in named] if needing else []
    names = [name for name in without[0] if all(name in others for others in without)] if without else []
    ways += [f"algorithm={name!r}, which takes no workspace" for name in names[:1]]
    if unused:
        ways.append("cupy.get_default_memory_pool().free_all_blocks()")
    return (
        f"The call takes {results:,} bytes for results and {workspace:,} bytes of workspace, beside copies "
        f"of inputs that no kernel reads as they lie; the GPU has {free:,} bytes free, and CuPy's pool holds "
        f"{unused:,} bytes unused. What helps: {', or '.join(ways)}"
    )


def forget() -> None:
    """Let every call go the long way again."""
    _kept.clear()


def _look(values: Iterable[Any], parts: list[Any], given: list[Array], views: list[Array]) -> None:
    """Add values to the parts of a key, the arrays among them to those given, and what is computed with.

    Raises an exception of some kind where one is neither an array nor of a type that options usually have.
    """
    for value in values:
        kind, view = type(value), value
        parts.append(kind)
        if kind in _OFTEN:
            parts.append(value)
            continue
        if kind not in OWNERS:
            if isinstance(value, (tuple, list)):
                kinds = tuple(map(type, value))
                if _OFTEN.issuperset(kinds):
                    parts += kinds, tuple(value)
                else:
                    parts.append(len(value))
                    _look(value, parts, given, views)
                continue
            if isinstance(value, _SELDOM):
                parts.append(value)
                continue
            owner = owner_of("", value)
            if owner.device is not None:
                parts.append(owner.device)
            view = view_of("", value, owner)
        parts += view.shape, view.strides, view.dtype
        given.append(value)
        views.append(view)


def _place(view: Array) -> int | str:
    """What a plan and its launches are made for: the current GPU, or the CPU's threads."""
    if isinstance(view, np.ndarray):
        return processor.current_arch()
    device: int = jit.require_cupy().cuda.runtime.getDevice()
    return device


@dataclass(frozen=True)
class _Step:
    """What makes one result, and which of a call's arrays it takes, the result being the last of them.

    `out` is the place of the array that is given for the result, otherwise one is made.
    """

    launches: Any
    taken: Callable[[tuple[Array, ...]], tuple[Array, ...]]
    out: int | None
    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class _Prepared:
    """A call that is ready to be made again, with arrays of the same shapes, strides and dtypes.

    `apart` has, for each array that is written and each other one, their places among the call's arrays, and
    the distances of the other's address between which they may overlap.
    """

    owner: Owner
    namespace: Any
    steps: tuple[_Step | None, ...]
    apart: tuple[tuple[int, int, int, int], ...]
    runner: Callable[[Sequence[Work]], None]
    needs: tuple[tuple[Any, int], ...]

    def may_write(self, views: Sequence[Array]) -> bool:
        """Whether results can be written without a closer look."""
        for out, other, least, most in self.apart:
            if self.namespace is np:
                if not views[out].flags.writeable or np.may_share_memory(views[out], views[other]):
                    return False
            elif least < views[other].data.ptr - views[out].data.ptr < most:
                return False
        return True

    def run(self, given: Sequence[Array], views: Sequence[Array]) -> Any:
        """The call's results, or its only one, in the arrays given for them or in new ones."""
        results: list[Array | None] = []
        work: list[Work] = []
        try:
            for step in self.steps:
                if step is None:
                    results.append(None)
                    continue
                if step.out is None:
                    result = self.namespace.ndarray(step.shape, step.dtype)
                else:
                    result = views[step.out]
                results.append(result)
                work.append((step.launches, step.taken((*views, result))))
            self.runner(work)
        except MemoryError as error:
            explain(error, self.owner, self.needs)
            raise
        if self.owner.library != "cupy":  # whose arrays are given back as they are
            for index, step in enumerate(self.steps):
                if step is not None:
                    place = None if step.out is None else given[step.out]
                    results[index] = given_back(results[index], self.owner, place)
        return tuple(results) if len(results) > 1 else results[0]


def _prepared(
    planned: Sequence[Planned | None],
    results: Sequence[Array | None],
    work: Sequence[Work | None],
    given: Sequence[Array],
    views: Sequence[Array],
) -> _Prepared | None:
    """What was run with these arrays; None for nothing, and where they are not clearly one operand each."""
    operands = next((each.call.operands for each in planned if each), None)
    place_of = {id(array): place for place, array in enumerate(given)}
    if operands is None or not len(place_of) == len(given) == len(operands.given) == len(operands.views):
        return None
    places = {name: place_of.get(id(array), -1) for name, array in operands.given.items()}
    if -1 in places.values():
        return None
    steps = tuple(
        _step(each, ran[0], result, places) if each and ran else None
        for each, ran, result in zip(planned, work, results, strict=True)
    )
    apart = [
        (step.out, other, *may_overlap_at(views[step.out], views[other]))
        for step in steps
        if step and step.out is not None
        for other in range(len(views))
        if other != step.out
    ]
    owner, needs = operands.owner, tuple((each.plan, each.new_bytes) for each in planned if each)
    return _Prepared(owner, owner.namespace, steps, tuple(apart), _runner(owner), needs)


def _step(planned: Planned, launches: Any, result: Array, places: Mapping[str, int]) -> _Step:
    """What made a result, given the operands' places among the call's arrays."""
    taken = [*(places[name] for name in planned.call.inputs), -1]
    if "bias" in places:
        taken.append(places["bias"])
    out = places.get(planned.call.out)
    return _Step(launches, itemgetter(*taken), out, result.shape, result.dtype)
