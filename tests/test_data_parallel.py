"""Data-parallel training over cuconv.torch: two processes beside one, to the bit where sums are exact."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no torch.distributed with gloo", allow_module_level=True)
from . import data_parallel  # noqa: E402
from .data_parallel import TRAININGS, WAYS, trained  # noqa: E402

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("one_thread_of_torch")]
ROOT = Path(__file__).parents[1]
SECONDS = 120  # what takes ten of them on two cores


def together(commands, folder, seconds=SECONDS):
    """What commands print that run at once; an error as soon as one fails, or when time is over.

    None of them, nor of what they started, is left behind.
    """
    # Without a network a name of this machine may have no address; the loopback always has.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = dict(
        os.environ, GLOO_SOCKET_IFNAME=loopback, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), TMPDIR=str(folder)
    )
    outputs = [folder / f"output {number}" for number in range(len(commands))]
    runs = []
    try:
        for command, output in zip(commands, outputs, strict=True):
            with output.open("w") as stream:
                options = dict(stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
                runs.append(subprocess.Popen([sys.executable, *command], start_new_session=True, **options))
        deadline = time.monotonic() + seconds
        while None in (codes := [run.poll() for run in runs]) and not any(codes):
            assert time.monotonic() < deadline, ("still running", *(o.read_text() for o in outputs))
            time.sleep(0.05)
    finally:
        # PyTorch's launcher ends its processes when it is asked to end, and only then.
        for run in runs:
            run.terminate()
        for run in runs:
            with suppress(subprocess.TimeoutExpired):
                run.wait(timeout=45)
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    texts = [output.read_text() for output in outputs]
    assert not any(codes), (codes, *texts)
    return texts


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All trainings in all ways, by each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    outs = [folder / f"rank {rank}" for rank in range(2)]
    together(
        [
            ["-m", data_parallel.__name__, str(rank), "2", str(folder / "meeting"), str(out)]
            for rank, out in enumerate(outs)
        ],
        folder,
    )
    return [torch.load(out) for out in outs]


# -- two processes beside one -----------------------------------------------------------------------------


def bits(*factors, terms):
    """How many bits a sum of so many products has at the most, from the least bit of any term on."""
    total = math.ceil(math.log2(terms))
    for factor in factors:
        mantissas, exponents = torch.frexp(factor[factor != 0])
        whole = (mantissas * 2**53).long()
        least = exponents - 53 + (whole & -whole).double().log2().int()
        total += int(exponents.max() - least.min())
    return total


def sums(model, optimizer, batch):
    """The bits of the sums in a step of the exact training, before its parameters change and in doing so."""
    x, target = batch
    with torch.no_grad():
        hidden = model.activation(model.hidden(x))
        dy = target / target.numel()
        d_hidden = torch.nn.functional.conv2d(dy, model.up.weight, stride=2, padding=1)
    filters = torch.cat([model.weight.detach().flatten(), model.side.weight.detach().flatten()])
    pixels = hidden[:, 0].numel()
    yield bits(x, filters, terms=4 * (3 * 3 + 2 * 2) + 2)
    yield bits(dy, model.up.weight.detach(), terms=2 * 4 * 4)
    yield bits(x, d_hidden, terms=pixels)
    yield bits(hidden, dy, terms=pixels)
    for parameter in model.parameters():
        state = [value for value in optimizer.state[parameter].values() if value is not None]
        yield from (bits(tensor, terms=4) for tensor in (parameter.detach(), parameter.grad, *state))


def test_every_sum_of_the_exact_training_is_exact():
    """Its numbers have room in float64 to the last step, and its parameters do change."""
    largest = []
    trained(TRAININGS["exact"], WAYS["plain"], see=lambda *state: largest.append(max(sums(*state))))
    assert largest == sorted(largest)
    assert largest[-1] <= 53


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_to_the_bit(found, way):
    """Parameters, momenta and the mean of the losses are those of one process on whole batches."""
    one = trained(TRAININGS["exact"], WAYS["plain"])
    for rank in range(2):
        two = found[rank]["exact", way]
        assert [name for name in two["parameters"] if name.startswith("more.")] == (
            ["more.weight", "more.bias"] if WAYS[way].more else []
        )
        for name, expected in one["parameters"].items():
            assert torch.equal(two["parameters"][name], expected), (rank, name)
        for ours, expected in zip(two["momenta"], one["momenta"], strict=True):
            assert torch.equal(ours, expected), rank
    shared = zip(*(found[rank]["exact", way]["losses"] for rank in range(2)), strict=True)
    assert [sum(pair) / 2 for pair in shared] == pytest.approx(one["losses"], rel=1e-12)


def test_the_exact_training_learns():
    """From other parameters than those it ends with, in each of them."""
    training = TRAININGS["exact"]
    first, one = training.model(0), trained(training, WAYS["plain"])
    for name, parameter in first.named_parameters():
        assert (one["parameters"][name] != parameter).any(), name
    assert one["losses"][-1] < one["losses"][0]


def magnitude(training, model, batch):
    """At least the sum of the magnitudes of the terms of any gradient, by Cauchy and Schwarz."""
    x, target = batch
    hidden = model.hidden(x).detach().requires_grad_()
    active = model.activation(hidden)
    y = model.up(active)
    d_hidden, dy = torch.autograd.grad(training.loss(y, target), [hidden, y])

    def norm(tensor):
        """The largest of a channel."""
        return tensor.detach().transpose(0, 1).flatten(1).norm(dim=1).max().item()

    return max(norm(x) * norm(d_hidden), norm(active) * norm(dy))


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_to_rounding(found, way):
    """Both ways add the same numbers up in another order.

    A sum of n terms is off by n eps times the sum of their magnitudes at the most; n counts all sums that a
    gradient goes through, one after the other. A step hands on as much of it to a parameter as the rate lets
    it in this and all later steps: rate / (1 - momentum). By how much such a difference grows until the end
    is seen in a training that begins a little beside.
    """
    training = TRAININGS["smooth"]
    magnitudes = []
    one = trained(
        training,
        WAYS["plain"],
        see=lambda model, _, batch: magnitudes.append(magnitude(training, model, batch)),
    )
    beside = trained(training, WAYS["plain"], beside=2.0**-20)
    grown = max(
        (parameter - beside["parameters"][name]).abs().max().item() * 2**20
        for name, parameter in one["parameters"].items()
    )
    x, target = training.batches()[0]
    hidden = training.model(0).hidden(x)
    # hidden, y, and back from y: a filter's length each; then the pixels of all images.
    terms = (
        4 * (3 * 3 + 2 * 2) + 2 + 8 * 4 * 4 + 1 + 2 * 4 * 4 + max(hidden[:, 0].numel(), target[:, 0].numel())
    )
    eps = torch.finfo(torch.float64).eps
    bound = max(grown, 1) * terms * eps * training.rate / (1 - training.momentum) * sum(magnitudes)
    assert bound < 1e-9
    for rank in range(2):
        for name, expected in one["parameters"].items():
            difference = (found[rank]["smooth", way]["parameters"][name] - expected).abs().max().item()
            assert difference <= bound, (rank, name, difference, bound)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("way", WAYS)
def test_both_processes_hold_the_same_bits(found, training, way):
    first, second = (found[rank][training, way] for rank in range(2))
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name
    assert first["losses"] != second["losses"]  # of other images


@pytest.mark.parametrize("training", TRAININGS)
def test_gradients_are_shared_in_buckets_and_when_asked(found, training):
    """One bucket or several; what no_sync leaves with a process, and that it does."""
    for rank in range(2):
        of = {way: found[rank][training, way] for way in WAYS}
        assert of["plain"]["buckets"] == 1
        assert of["buckets"]["buckets"] > 1
    batch = [tensor.chunk(4) for tensor in TRAININGS[training].batches()[0]]
    for rank in range(2):
        model = TRAININGS[training].model(0)
        x, target = (parts[2 * rank] for parts in batch)
        (TRAININGS[training].loss(model(x), target) / 2).backward()
        alone = found[rank][training, "accumulated"]["alone"]
        torch.testing.assert_close(alone, model.weight.grad, rtol=1e-12, atol=1e-12)
    assert not torch.equal(*(found[rank][training, "accumulated"]["alone"] for rank in range(2)))
    assert torch.equal(*(found[rank][training, "plain"]["alone"] for rank in range(2)))


def test_what_nothing_uses_stays_as_it_was(found):
    for training in TRAININGS:
        expected = TRAININGS[training].model(0, more=True).state_dict()
        for rank in range(2):
            parameters = found[rank][training, "unused"]["parameters"]
            for name in ("more.weight", "more.bias"):
                assert torch.equal(parameters[name], expected[name])


# -- processes that go wrong ------------------------------------------------------------------------------


def test_a_process_that_fails_ends_the_others(tmp_path):
    """Those of PyTorch's launcher too, which are in sessions of their own."""
    waits, fails = tmp_path / "waits.py", tmp_path / "fails.py"
    waits.write_text(
        "import os, sys, time\nopen(f'{sys.argv[1]}/pid {os.getpid()}', 'w').close()\ntime.sleep(600)\n"
    )
    fails.write_text(
        "import glob, sys, time\nwhile len(glob.glob(f'{sys.argv[1]}/pid *')) < 2:\n    time.sleep(0.05)\n"
        "raise SystemExit('this one failed')\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    commands = [[*launcher, "--nproc-per-node", "2", waits], [fails]]
    with pytest.raises(AssertionError, match="this one failed"):
        together([[*command, tmp_path] for command in commands], tmp_path)
    for path in tmp_path.glob("pid *"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name[4:]), 0)


def test_processes_that_wait_are_ended_when_time_is_over(tmp_path):
    begun = time.monotonic()
    with pytest.raises(AssertionError, match="still running"):
        together([["-c", "import time; time.sleep(600)"]], tmp_path, seconds=0.2)
    assert time.monotonic() - begun < 60


# -- the example ------------------------------------------------------------------------------------------


def test_the_example_is_started_as_it_says(tmp_path):
    """By two processes or one, with the same losses, which one of them prints; the page says so too."""
    program = ROOT / "examples" / "data_parallel.py"
    command, page = (
        re.search(r"^ *torchrun (.*)$", path.read_text(), re.MULTILINE)[1].split()
        for path in (program, ROOT / "docs" / "torch.md")
    )
    assert command == page
    (two,) = together([["-m", "torch.distributed.run", *command]], tmp_path)
    (one,) = together([[str(program)]], tmp_path)
    curves = [
        [float(loss) for loss in re.findall(r"^epoch \d+: loss (.*)$", text, re.M)] for text in (two, one)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)
    assert len(curves[0]) == 6
    assert curves[0][-1] < 1e-6 * curves[0][0]
    assert [len(re.findall("the filter is off by", text)) for text in (two, one)] == [1, 1]
