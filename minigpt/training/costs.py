"""What training costs: memory, time, energy and CO2."""

import math
import os
from typing import NamedTuple

TOKENS = 300e9  # on which every model of GPT-3's paper was trained: Brown et al. 2020, table 2.1
FLOPS = 3.14e23  # its figure for 175B, without attention over the context: appendix D
PUE, CARBON = 1.10, 0.429  # W drawn per W that computes, kg CO2e per kWh: source as V100


class Machines(NamedTuple):
    """So many accelerators, each of which really computes `rate` FLOP/s and takes so many W."""

    name: str
    count: int
    rate: float
    watts: float


V100 = Machines("V100", 10_000, 24.6e12, 330)  # Patterson et al. 2021, arXiv 2104.10350, table 4
A100 = Machines("A100", 1024, 0.4 * 312e12, 400)  # 40 % of the data sheet's bfloat16, its watts
CORE = 5e10  # FLOP/s of a CPU's core, about


def training(flops, machines):
    """-> s, MWh, t CO2e.  time = FLOPs / (count rate), energy = time count watts PUE

    Source: Patterson et al. 2021, arXiv 2104.10350.
    """
    seconds = flops / (machines.count * machines.rate)
    energy = seconds * machines.count * machines.watts * PUE / 3.6e9  # J in a MWh
    return seconds, energy, energy * CARBON


def memory(count, hidden, optimizer):
    """{what: bytes} for `count` weights, `hidden` of them in matrices of the blocks; float32

    AdamW keeps two moments, 16 bytes a weight in all, SGD one, Muon one of hidden matrices.
    """
    moments = {"sgd": count, "adamw": 2 * count, "muon": 2 * count - hidden}[optimizer]
    return {"weights": 4 * count, "gradients": 4 * count, f"moments of {optimizer}": 4 * moments}


def room():
    """Bytes of memory in this machine; infinite if it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf
