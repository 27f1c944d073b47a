"""Trainings over cuconv.torch, by one process on whole batches or by several, each on its part of them.

`python -m tests.data_parallel RANK PROCESSES FILE OUT` is one of several: they find each other through FILE,
and each writes what it found to OUT. `trained` does the same in the process that calls it.

A loss is a mean over the elements of its images, of which each process has as many as the others, and
DistributedDataParallel takes the mean of the processes' gradients: together the mean over the whole batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch

import cuconv.torch as ours

functional = torch.nn.functional
BATCH = 8


class Net(torch.nn.Module):
    """A convolution by the function and one by its module, and over their sum a transposed one.

    With `more` there is one beside them that nothing uses.
    """

    def __init__(self, activation: Callable[[Any], Any], more: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.empty(8, 4, 3, 3))
        self.side = torch.nn.Conv2d(4, 8, 2, stride=2)
        self.up = torch.nn.ConvTranspose2d(8, 2, 4, stride=2, padding=1)
        self.more = torch.nn.Conv2d(4, 4, 3) if more else None

    def hidden(self, x: Any) -> Any:
        return ours.conv2d(x, self.weight, stride=2, padding=1) + self.side(x)

    def forward(self, x: Any) -> Any:
        return self.up(self.activation(self.hidden(x)))


def correlation(y: Any, target: Any) -> Any:
    """A loss whose gradients have no more bits than the parameters: it is linear in y."""
    return (y * target).mean()


@dataclass(frozen=True)
class Training:
    """What is learned from which numbers, and how fast."""

    activation: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    draw: Callable[..., Any]
    steps: int
    rate: float
    momentum: float

    def model(self, seed: int, more: bool = False) -> Net:
        model = Net(self.activation, more).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(self.draw(parameter.shape, generator) / 4)
        return model

    def batches(self) -> list[tuple[Any, Any]]:
        generator = torch.Generator().manual_seed(1)
        shapes = (BATCH, 4, 8, 8), (BATCH, 2, 8, 8)
        return [tuple(self.draw(shape, generator) for shape in shapes) for _ in range(self.steps)]


def integers(shape: Any, generator: Any) -> Any:
    return 4 * torch.randint(-2, 3, shape, generator=generator).double()


def normal(shape: Any, generator: Any) -> Any:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


TRAININGS = {
    # Every number is an integer times a power of two, and remains so: each sum is exact in any order.
    "exact": Training(torch.relu, correlation, integers, steps=4, rate=0.25, momentum=0.5),
    "smooth": Training(functional.silu, functional.mse_loss, normal, steps=20, rate=0.125, momentum=0.875),
}


@dataclass(frozen=True)
class Way:
    """How processes share the work."""

    parts: int = 1  # of a process's part of the batch, whose gradients are added up without the others'
    replaced_later: bool = False  # the modules, within the wrapper
    options: dict[str, Any] = field(default_factory=dict)  # of DistributedDataParallel
    more: bool = False  # a convolution that nothing uses


WAYS = {
    "plain": Way(),
    "buckets": Way(options=dict(bucket_cap_mb=0.001)),
    "accumulated": Way(parts=2),
    "unused": Way(options=dict(find_unused_parameters=True), more=True),
    "replaced later": Way(replaced_later=True),
}


def trained(
    training: Training,
    way: Way,
    rank: int = 0,
    processes: int = 1,
    see: Callable[..., None] = lambda *state: None,
    beside: float = 0.0,
) -> dict[str, Any]:
    """The parameters, momenta and losses after a training; a gradient before it was shared; the buckets.

    `see` is called with the model, its optimizer and the batch when gradients are there. Parameters begin
    by so much `beside` what they otherwise do.
    """
    # Other numbers in each process: those of the first are handed to all.
    model: Any = training.model(seed=rank, more=way.more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += beside
    if not way.replaced_later:
        ours.replace_convs(model)
    own = model
    if processes > 1:
        model = torch.nn.parallel.DistributedDataParallel(model, **way.options)
    ours.replace_convs(model)
    assert type(own.side) is ours.Conv2d
    assert type(own.up) is ours.ConvTranspose2d
    optimizer = torch.optim.SGD(own.parameters(), lr=training.rate, momentum=training.momentum)
    losses, alone = [], None
    for batch in training.batches():
        x, target = (tensor.chunk(processes)[rank] for tensor in batch)
        optimizer.zero_grad()
        total = 0.0
        for part, (x_part, target_part) in enumerate(
            zip(x.chunk(way.parts), target.chunk(way.parts), strict=True)
        ):
            last = part == way.parts - 1
            with nullcontext() if last or processes == 1 else model.no_sync():
                loss = training.loss(model(x_part), target_part) / way.parts
                loss.backward()
            total += loss.item()
            if alone is None:
                alone = own.weight.grad.clone()
        see(own, optimizer, batch)
        optimizer.step()
        losses.append(total)
    momenta = [optimizer.state[p]["momentum_buffer"] for p in own.parameters() if optimizer.state[p]]
    return dict(
        parameters={name: value.detach().clone() for name, value in own.named_parameters()},
        momenta=momenta,
        losses=losses,
        alone=alone,
        buckets=model._get_ddp_logging_data()["num_buckets_reduced"] if processes > 1 else 0,
    )


def main(rank: str, processes: str, file: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{file}",
        rank=int(rank),
        world_size=int(processes),
        timeout=timedelta(seconds=60),
    )
    found = {
        (of, name): trained(training, way, int(rank), int(processes))
        for of, training in TRAININGS.items()
        for name, way in WAYS.items()
    }
    torch.save(found, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
