"""Data-parallel training over cuconv.torch: each process has its share of the images, all have one model.

    torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2 examples/data_parallel.py

starts two processes on this machine; without the launcher the program is one process. It learns a blur of
5 x 5 from random pictures and what the blur made of them. Every process computes the gradients of its own
pictures, DistributedDataParallel takes their mean over the processes, and so all of them make the step that
one process would make on the whole batch.
"""

import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import cuconv.torch

IMAGES, BATCH, EPOCHS = 64, 16, 6
processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))

if processes > 1:
    # With a GPU for each: "nccl", and the model and tensors on cuda:LOCAL_RANK.
    distributed.init_process_group("gloo")

# From one seed, so every process has the same pictures, of which it takes its own.
generator = torch.Generator().manual_seed(0)
pictures = torch.randn(IMAGES, 1, 24, 24, generator=generator)
blur = torch.outer(*2 * (torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16,))[None, None]
blurred = cuconv.torch.conv2d(pictures, blur, padding="same")

model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 5, padding="same", bias=False))
cuconv.torch.replace_convs(model)
torch.nn.init.zeros_(model[0].weight)
shared = DistributedDataParallel(model) if processes > 1 else model
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)

for epoch in range(EPOCHS):
    total = torch.zeros(())
    for begin in range(0, IMAGES, BATCH):
        mine = slice(begin + rank, begin + BATCH, processes)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(shared(pictures[mine]), blurred[mine])
        loss.backward()
        optimizer.step()
        total += loss.detach() * BATCH / IMAGES / processes
    if processes > 1:
        distributed.reduce(total, dst=0)
    if rank == 0:
        print(f"epoch {epoch + 1}: loss {total.item():.2e}")

if rank == 0:
    print(f"the filter is off by {(model[0].weight - blur).abs().max().item():.1e} at the most")
if processes > 1:
    distributed.destroy_process_group()
