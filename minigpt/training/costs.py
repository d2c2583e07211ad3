"""What training costs: memory, time, energy and CO2."""

import math
import os
import pickle
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minigpt.engine.functional import cross_entropy
from minigpt.messages import look_up
from minigpt.training import OPTIMIZERS

# Brown et al. 2020, the paper of GPT-3
TOKENS = 300e9  # how many tokens each of its models was trained on: table 2.1
FLOPS = 3.14e23  # its figure for 175B, without attention over the context: appendix D

# Patterson et al. 2021, arXiv 2104.10350, table 4
PUE = 1.10  # W that a data centre draws per W that its computers draw: the rest is mostly cooling
CARBON = 0.429  # kg of CO2 (and of other gases, as CO2 that warms as much) per kWh

CORE = 5e10  # FLOP/s that one core of a CPU really computes, roughly


class Machines(NamedTuple):
    """`count` accelerators, each of which really computes `rate` FLOP/s and draws `watts` W."""

    name: str
    count: int
    rate: float
    watts: float


V100 = Machines("V100", 10_000, 24.6e12, 330)  # measured with GPT-3: Patterson et al., table 4
A100 = Machines("A100", 1024, 0.4 * 312e12, 400)  # 40 % of the data sheet's rate, and its watts


def training(flops, machines):
    """What so many FLOPs take on these machines -> s, MWh, t of CO2e

    time = FLOPs / (count rate), energy = time count watts PUE.  Source: Patterson et al. 2021.
    """
    seconds = flops / (machines.count * machines.rate)
    energy = seconds * machines.count * machines.watts * PUE / 3.6e9  # J in a MWh
    return seconds, energy, energy * CARBON  # a t per MWh is a kg per kWh


def memory(count, hidden, optimizer):
    """The memory to train `count` weights in float32, activations aside -> {what: bytes}

    hidden: how many of them lie in matrices of the blocks, of which Muon remembers less.
    """
    of_hidden, of_others = look_up(OPTIMIZERS, optimizer, "--optimizer").kept
    moments = of_hidden * hidden + of_others * (count - hidden)
    return {"weights": 4 * count, "gradients": 4 * count, f"moments of {optimizer}": 4 * moments}


PYTHON = 45e6  # bytes of Python, NumPy and this program; every process has its own
TRIED = 1024  # tokens of the forward pass that is run to see what a step keeps


def activations(model, x, y):
    """Bytes that a step keeps from its forward to its backward pass, for each of the examples x, y.

    The forward pass of a few is run, with history, and what NumPy asks memory for is added up.
    """
    few = min(len(x), max(1, TRIED * len(x) // y.size))
    tracemalloc.start()
    loss = cross_entropy(model(x[:few]), y[:few])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del loss  # only now: it holds the history, and so all that is kept
    return peak / few


def of_all(processes, each):
    """Bytes of a run if each process needs `each`; the first one may have needed more before."""
    return max(each, most_so_far()) + (processes - 1) * each


def most_so_far():
    """The most bytes that this process has had until now; 0 if the system is not Linux.

    (resource.getrusage would also count what the parent had when it started this process.)
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # "high water mark"
                return 1024 * int(line.split()[1])
    return 0


def size_of(data):
    """Bytes of the arrays of an object, as other processes get them."""
    buffers = []
    text = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    return len(text) + sum(buffer.raw().nbytes for buffer in buffers)


def room():
    """Bytes of memory in this machine; infinite if it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # AttributeError: Windows has no sysconf
        return math.inf
