"""A training step at full size, launch by launch, on arrays without contents: no GPU is needed.

python -m tests.benchmarks.launches prints the result as JSON; tests/shapes/ has the rules.
"""

import gc
import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np

from minigpt.nn import model_class
from minigpt.nn.gpt import GPTConfig
from minigpt.nn.module import Flat
from minigpt.nn.presets import SIZES
from minigpt.training import optimizer_class
from minigpt.training.config import Config
from minigpt.training.trainer import Trainer
from tests.shapes.arrays import BATCHED, PRODUCT, fresh, ledger
from tests.shapes.library import registered, shapes

# The bars that the project has set itself: at most so many launches, (bytes read + written) / A and
# GB at the peak. A is the size of the residual stream, B T C numbers of 4 bytes.
BARS = {"GPT-2 124M": (900, 4500, 28), "6 x 384, recipe": (1000, None, None)}
STEPS = {  # name: model, vocabulary, (n_layer, n_head, n_embd, block_size), batch, optimizer
    "GPT-2 124M": ("gpt2", 50304, SIZES["gpt2"], 16, "adamw"),
    "6 x 384, GPT-2's form": ("gpt2", 65, (6, 6, 384, 256), 64, "adamw"),
    "6 x 384, recipe": ("gpt", 65, (6, 6, 384, 256), 64, "muon"),
}
# An H100 (SXM), for the predictions: what its memory delivers of 3.35 TB/s, FLOP/s of products in
# float32 and in TF32; and the time of the CPU, with CuPy, for a launch of CuPy's and of ours.
BANDWIDTH, RATES = 0.85 * 3.35e12, {"float32": 50e12, "tf32": 270e12}
CUPYS, OURS = 12e-6, 6e-6  # s


class Undrawn:
    """A random generator whose numbers are not drawn: weights without contents need none."""

    bit_generator = SimpleNamespace(state=None)

    def standard_normal(self, shape, dtype):
        return fresh(shape, dtype)

    def integers(self, n):
        return 0


def trainer(name, vocabulary, size, batch, optimizer, **options):
    """A Trainer of a model without contents. Its every batch is the same."""
    n_layer, n_head, n_embd, block_size = size
    shape = GPTConfig(vocabulary, block_size, n_layer, n_head, n_embd)
    model = model_class(name)(shape, Undrawn()).to(shapes)
    config = Config(batch_size=batch, block_size=block_size, steps=100, **options)
    x = np.zeros((batch, block_size), int)
    stream = SimpleNamespace(batch=lambda n: (x, x), scale=1.0, block_size=block_size)
    weights = optimizer_class(optimizer)(Flat(model), config.weight_decay)
    return Trainer(model, weights, stream, (x, x), config, Undrawn(), "", {}, None)


def count(name, vocabulary, size, batch, optimizer, pairs=None, **options):
    """What one step asks of a GPU, after a first one that leaves the gradients as all others do.

    -> {"kinds": {kind: [launches, bytes read, bytes written]}, "unit": A in bytes, "peak" in bytes,
    "waits", "uploads": bytes of each, "predicted": {precision: ms}, "tokens"}
    """
    gc.collect()
    before = ledger.live
    with registered(pairs):
        training = trainer(name, vocabulary, size, batch, optimizer, **options)
        training.train_step()
        ledger.reset()
        training.train_step()
        kinds = defaultdict(lambda: [0, 0, 0])
        for launch in ledger.launches:
            for i, n in enumerate(launch[1:4]):
                kinds[launch.kind][i] += n
        tokens = batch * size[3]
        return {
            "kinds": dict(kinds),
            "unit": 4 * tokens * size[2],
            "peak": ledger.peak - before,
            "waits": dict(ledger.waits),
            "uploads": ledger.uploads,
            "predicted": {name: predicted(ledger.launches, rate) for name, rate in RATES.items()},
            "tokens": tokens,
        }


def predicted(launches, rate):
    """The ms of a step, no measurement: the sum of what each launch takes at the GPU's peak, or the
    time that the CPU needs to ask for them all, if that is longer. rate: FLOP/s of products."""
    gpu = cpu = 0.0
    for launch in launches:
        gpu += max((launch.read + launch.written) / BANDWIDTH, launch.flops / rate)
        ours = launch.kind in (PRODUCT, BATCHED) or launch.kind.startswith("kernel")
        cpu += launch.count * (OURS if ours else CUPYS)
    return 1000 * max(gpu, cpu)


def launches():
    """The counts of all steps, with their bars."""
    rows = {name: count(*step) | {"bars": BARS.get(name)} for name, step in STEPS.items()}
    hardware = {"bandwidth": BANDWIDTH, "rates": RATES, "cupys": CUPYS, "ours": OURS}
    return {"rows": rows, "hardware": hardware}


if __name__ == "__main__":
    print(json.dumps(launches()))
