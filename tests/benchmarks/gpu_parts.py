"""The parts of the benchmark of a GPU: python -m tests.benchmarks.gpu_parts PART [TEXT]

Each is a function of the GPU, tests/card.py, that yields (name, figures) as soon as they are there.
"""

import gc
import itertools
import json
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np

from minigpt.engine import fast_cupy
from minigpt.engine.arrays import uniform
from minigpt.engine.autograd import plain
from minigpt.engine.fast_elementwise import run
from minigpt.generate import generate
from minigpt.nn.module import Flat
from minigpt.training.config import Config
from minigpt.training.muon import Muon
from minigpt.training.optim import AdamW
from minigpt.training.trainer import Trainer
from tests import card
from tests.benchmarks import gpu_torch, gpu_work
from tests.benchmarks.competitor import BETAS, DECAY, RATE
from tests.benchmarks.measure import ROOT
from tests.benchmarks.suite import GPT2, LARGE

TINY = {"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
SIZES = {"124m": (GPT2 | {"vocab_size": 50304}, 16), "6x384": (LARGE, 64)}
if card.EMULATED:
    SIZES = dict.fromkeys(SIZES, (TINY, 2))
WARM = 3  # steps that are not timed: kernels are compiled, the pool of memory is filled
EMPTY = 'extern "C" __global__ void empty(float* x) {}'


def machine(gpu):
    yield "GPU", gpu.about()


def tried(f):
    """What f returns, or the error: the other rows of a table go on."""
    try:
        return f()
    except Exception as error:  # whatever CUDA, CuPy or PyTorch raise
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def launches(gpu):
    """Small work, asked for again and again: what a call costs the CPU, and until all is done."""
    xp, calls = gpu.xp, 1 if card.EMULATED else 500
    x = xp.ones((4, 4), np.float32)
    many, y = xp.ones((2, 4, 4), np.float32), xp.empty(4, np.float32)
    empty = xp.RawModule(code=EMPTY).get_function("empty")
    for name, f in {
        "a kernel that does nothing": lambda: empty((1,), (32,), (x,)),
        "launch(), of kernels.cu": lambda: fast_cupy.launch(
            "column_sum", (1, 1), (32, 8), x, y, 4, 4
        ),
        "run(), of fast_elementwise.py": lambda: run("relu2_forward", x),
        "a function of CuPy's, x + x": lambda: x + x,
        "a product of two matrices, x @ x": lambda: x @ x,
        "product(), of two pairs of matrices": lambda: fast_cupy.product(many, many),
    }.items():
        yield name, tried(partial(costs, gpu, f, calls))


def costs(gpu, f, calls):
    f()
    gpu.finish()
    start = time.perf_counter()
    for _ in range(calls):
        f()
    asked = time.perf_counter()
    gpu.finish()
    done = time.perf_counter()
    scale = 1e6 / calls
    return {"µs until asked for": scale * (asked - start), "µs until done": scale * (done - start)}


def products(gpu):
    """Every product of a step of GPT-2 124M, forward and backward, by its shapes."""
    for precision in ("float32", "tf32"):
        for name, make in gpu_work.products(*SIZES["124m"]).items():
            yield f"{name}, {precision}", tried(partial(product, gpu, make, precision))


def product(gpu, make, precision):
    with gpu.precision(precision):
        f, flops = make(partial(random, gpu.xp))
        ms = gpu.ms(f)
    return {"ms": ms, "TFLOP/s": 1e-9 * flops / ms}


def random(xp, *shape):
    """Uniform numbers between -1 and 1: products of equal ones would draw less power."""
    return 2 * uniform(xp, shape, 0) - 1


def kernels(gpu):
    yield from memory(gpu, gpu_work.KERNELS, fast_cupy.launch)


def formulas(gpu):
    yield from memory(gpu, gpu_work.FORMULAS, run)


def memory(gpu, work, call):
    """What each must move, by the rules of tests/shapes, over the time; a copy is the yardstick."""
    N = gpu_work.rows(*SIZES["124m"])
    x = random(gpu.xp, N, 4 * SIZES["124m"][0]["n_embd"])
    yield "a copy, x.copy()", moved(gpu.ms(x.copy), 2 * x.nbytes)
    del x
    for name, make in work.items():
        yield name, tried(partial(timed, gpu, name, make, call))
        gpu.free()


def timed(gpu, name, make, call):
    make = partial(make, *SIZES["124m"])
    args = make(SimpleNamespace(new=partial(random, gpu.xp), put=gpu.xp.asarray))
    return moved(gpu.ms(lambda: call(name, *args)), gpu_work.counted(name, make, call))


def moved(ms, size):
    return {"ms": ms, "MB": size / 1e6, "GB/s": 1e-6 * size / ms}


# ---- training steps ----------------------------------------------------------------------------


def step(name, row, gpu, form="gpt2", optimizer=AdamW, precision="float32", definitions=False):
    """A training step; with half the batch, and half of that, if the GPU has no memory for it."""
    shape, batch = SIZES[name]
    while batch:
        try:
            with gpu.precision(precision), plain() if definitions else nullcontext():
                yield row, stepped(gpu, trainer(gpu, shape, batch, form, optimizer), shape, batch)
            return
        except MemoryError as error:
            yield f"{row}, batch {batch}", {"error": str(error).splitlines()[0]}
        batch //= 2
        gc.collect()
        gpu.free()


def trainer(gpu, shape, batch, form, optimizer):
    """A Trainer as train.py has it, whose texts lie ready, and whose rate is the competitors'."""
    gpu.free()
    model = gpu_work.model(shape, form).to(gpu.xp)
    flat = Flat(model)
    weights = optimizer(flat, DECAY) if optimizer is Muon else optimizer(flat, DECAY, BETAS)
    given = itertools.cycle(gpu_work.batches(shape, batch))
    stream = SimpleNamespace(
        batch=lambda n: next(given), scale=1.0, block_size=shape["block_size"], epochs=1
    )
    config = Config(
        batch_size=batch, block_size=shape["block_size"], steps=10**6, eval_every=10**6,
        learning_rate=RATE, warmup=0,
    )  # fmt: skip
    rng, held_out = np.random.default_rng(0), gpu_work.batches(shape, 1)[0]
    return Trainer(model, weights, stream, held_out, config, rng, "", {}, None)


def stepped(gpu, training, shape, batch, seconds=3.0):
    """Steps as in a run, with its looks at the loss, for about so many seconds."""

    def steps(number):
        start = time.perf_counter()
        for _ in range(number):
            training.train_step()
            training.look()
        gpu.finish()
        return (time.perf_counter() - start) / number

    steps(WARM)
    training.look(now=True)
    loss = training.recent
    one = steps(1)
    each = steps(1 if card.EMULATED else max(5, min(400, round(seconds / one))))
    tokens = batch * shape["block_size"]
    return {
        "batch": batch,
        "ms": 1e3 * each,
        "tokens/s": tokens / each,
        "peak GB": gpu.peak() / 1e9,
        f"mean of {WARM} losses": loss,
    }


def pytorch(name, gpu):
    """PyTorch's eager mode and its compiler, on the same weights and texts."""
    yield from gpu_torch.steps(*SIZES[name], WARM)


# ---- writing, and a whole run ------------------------------------------------------------------


def sampling(gpu):
    prompt, tokens = (2, 3) if card.EMULATED else (32, 128)
    for name, (shape, _) in SIZES.items():
        model = gpu_work.model(shape, "gpt2").to(gpu.xp)
        for texts in (1, 64):
            row = f"{name}, {texts} text{'s'[: texts - 1]}"
            yield row, tried(partial(written, gpu, model, texts, prompt, tokens))


def written(gpu, model, texts, prompt, tokens):
    """tokens/s of all texts together, the second time."""
    rng = np.random.default_rng(0)
    prompts = [*rng.integers(0, model.config.vocab_size, (texts, prompt))]
    for _ in range(2):
        start = time.perf_counter()
        for _ in generate(model, prompts, tokens, rng):
            pass
        seconds = time.perf_counter() - start
    return {"ms a token": 1e3 * seconds / tokens, "tokens/s": texts * tokens / seconds}


def text(gpu, data):
    """train.py for a minute and a half: nanoGPT's size on tiny Shakespeare is this one."""
    size = "--n-layer 6 --n-head 6 --n-embd 384 --batch-size 64 --dropout 0.2 --eval-every 250"
    words = f"{size} --minutes 1.5 --device gpu --precision {best(gpu)}"
    if card.EMULATED:
        words = "--n-layer 1 --n-embd 16 --block-size 16 --steps 2 --device cpu --workers 1"
    start = time.perf_counter()
    with TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "train.py"), "--data", data, "--out", out]
        done = subprocess.run([*command, *words.split()], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    steps, seconds = re.findall(r"step +(\d+) +(\d+) s", done.stdout)[-1]
    loss = float(re.search(r"whole split: ([\d.]+)", done.stdout)[1])
    figures = {"loss of the whole split": loss, "steps": int(steps), "s of steps": int(seconds)}
    yield words, figures | {"s in all": time.perf_counter() - start}


def best(gpu):
    """tf32 if the GPU has it."""
    try:
        with gpu.precision("tf32"):
            return "tf32"
    except ValueError:
        return "float32"


PARTS = {
    "machine": machine,
    "launches": launches,
    "products": products,
    "kernels": kernels,
    "formulas": formulas,
}
for _name in SIZES:
    for _rung, _title, _how in (
        ("definitions", "definitions, float32", {"definitions": True}),
        ("pairs", "pairs, float32", {}),
        ("tf32", "pairs, tf32", {"precision": "tf32"}),
    ):
        PARTS[f"{_name}-{_rung}"] = partial(step, _name, _title, **_how)
    PARTS[f"{_name}-pytorch"] = partial(pytorch, _name)
PARTS["6x384-recipe"] = partial(
    step, "6x384", "the recipe with Muon, float32", form="gpt", optimizer=Muon
)
PARTS |= {"sampling": sampling, "text": text}


def main(part, data=""):
    gpu = card.answering()
    given = (gpu, data) if part == "text" else (gpu,)
    for name, figures in PARTS[part](*given):
        print(json.dumps({"name": name, **figures}), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:  # no GPU, or none with tf32
        sys.exit(str(error))
