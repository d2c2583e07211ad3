"""The benchmarks by name; each is a function of the number of rounds that returns its figures."""

import json
import subprocess
import sys
import time
from functools import partial
from statistics import median

from tests.benchmarks import measure
from tests.benchmarks.measure import in_turns, ratio, running, spread

SMALL = {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
LARGE = {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}
GPT2 = {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}
LSTM = {"vocab_size": 65, "block_size": 64, "n_embd": 128, "n_hidden": 256}
CNN = {"vocab_size": 10, "block_size": 784}
RUNGS = {  # what each way to train adds to the code
    "minigpt, definitions": ["minigpt/engine/functional.py"],
    "minigpt, pairs": ["minigpt/engine/fast_numpy.py"],
    "minigpt, workers": ["minigpt/training/parallel.py", "minigpt/training/processes.py"],
}
TORCH, FLOOR, HUGGING_FACE = "PyTorch eager", "matrix products alone", "Hugging Face"


def training(kinds, shape, batch, steps, rounds):
    """Training steps, `steps` in a turn; every loss is compared with PyTorch's."""
    work = {"shape": shape, "batch": batch}
    how = {"definitions": {"definitions": True}, "workers": {"workers": measure.cores()}}
    commands = {f"minigpt, {k}": ("mini_gpt", "train", work | how.get(k, {})) for k in kinds}
    commands |= {TORCH: ("torch_gpt", "train", work), FLOOR: ("products", "train", work)}
    with running(commands) as competitors:
        ms, losses = in_turns(competitors, rounds, steps)
    rows = {n: {"ms": spread(sum(ms[n], [])), "ratio": ratio(ms[n], ms[TORCH])} for n in commands}
    for name, row in rows.items():
        row["tokens_per_s"] = 1000 * batch * shape["block_size"] / row["ms"][0]
        texts = [(measure.ROOT / file).read_text() for file in RUNGS.get(name, [])]
        row["lines"] = sum(len(text.splitlines()) for text in texts) or None
        row["mb"] = None if name == FLOOR else measure.peak_mb(commands[name], 2 * steps)
    theirs, others = sum(losses[TORCH], []), (sum(losses[n], []) for n in rows if n != FLOOR)
    apart = max(abs(a - b) for ours in others for a, b in zip(ours, theirs, strict=True))
    return {"rows": rows, "steps": len(theirs), "loss_difference": apart}


def stack(form, shape, batch, steps, rounds):
    """Training steps of a plain LSTM or CNN, one process and one per core, and PyTorch's."""
    work = {"shape": shape, "batch": batch, "form": form}
    commands = {
        "minigpt, pairs": ("mini_stack", "train", work),
        "minigpt, workers": ("mini_stack", "train", work | {"workers": measure.cores()}),
        TORCH: ("torch_stack", "train", work),
    }
    with running(commands) as competitors:
        ms, losses = in_turns(competitors, rounds, steps)
    rows = {n: {"ms": spread(sum(ms[n], [])), "ratio": ratio(ms[n], ms[TORCH])} for n in commands}
    theirs, others = sum(losses[TORCH], []), (sum(losses[n], []) for n in rows)
    apart = max(abs(a - b) for ours in others for a, b in zip(ours, theirs, strict=True))
    return {"rows": rows, "steps": len(theirs), "loss_difference": apart}


def pairs(rounds):
    """The step of GPT-2's form without each of its fast pairs, and how much longer it takes;
    cross-entropy also for the vocabulary of a Chinese text; the pairs that only `--model gpt` uses;
    and a sampled token without those that it uses."""
    pairs, step = ["linear", "layer_norm", "gelu", "attention"], {"shape": SMALL, "batch": 12}
    default = ["attention", "relu2", "rotary", "token_shift"]
    chinese = step | {"shape": SMALL | {"vocab_size": 4000}}
    text = {"shape": SMALL | {"block_size": 512}, "prompt": 1}
    recipe = {"shape": SMALL | {"block_size": 256, "n_layer": 2}, "batch": 8, "form": "gpt"}
    rows = {}
    for title, task, options, left_out, arguments, units in (
        ("a step", "train", step, [*pairs, "cross_entropy", "keep_pages"], [10], 1),
        ("a step, V 4,000", "train", chinese, ["cross_entropy"], [10], 1),
        ("a step of gpt", "train", recipe, default, [10], 1),
        ("a sampled token", "sample", text, pairs, [1, 500, False], 500),
    ):
        commands = {n: ("mini_gpt", task, options | {"without": n}) for n in ("", *left_out)}
        with running(commands) as competitors:
            ms, _ = in_turns(competitors, rounds, *arguments)
        for name, turns in ms.items():
            row = {"ms": spread([took / units for took in sum(turns, [])])}
            rows[f"{title} without {name}" if name else title] = row | {
                "ratio": ratio(turns, ms[""])
            }
    return {"rows": rows}


def sampling(rounds):
    """500 tokens in a context of 64 and of 512; then 128 tokens of more and more texts at once."""
    short, long = ({"shape": SMALL | {"block_size": T}, "prompt": 1} for T in (64, 512))
    mine, theirs = "minigpt, T 512", f"{HUGGING_FACE}, T 512"
    commands = {
        "minigpt, T 64": ("mini_gpt", "sample", short),
        "nanoGPT, T 64": ("torch_gpt", "uncached", short),
        mine: ("mini_gpt", "sample", long),
        "nanoGPT, T 512": ("torch_gpt", "uncached", long),
        theirs: ("torch_gpt", "cached", long),
    }
    with running(commands) as competitors:
        result, batches = writing(competitors, 500, rounds, mine, theirs), []
        for B in (1, 2, 4, 8, 16, 32, 64):
            two = {name: competitors[name] for name in (mine, theirs)}
            ms, _ = in_turns(two, rounds, B, 128, False)
            batches.append([B, *(median(sum(turns, [])) / 128 for turns in ms.values())])
    return result | {"batches": batches}


def gpt2(rounds):
    """64 tokens after 32 in the shape of GPT-2 124M."""
    work = {"shape": GPT2, "prompt": 32}
    mine, theirs = ("mini_gpt", "sample", work), ("torch_gpt", "cached", work)
    with running({"minigpt": mine, HUGGING_FACE: theirs}) as competitors:
        return writing(competitors, 64, rounds, *competitors)


def writing(competitors, tokens, rounds, mine, theirs):
    """tokens/s of one text, and the ratio to the fastest that is not minigpt; how many of the first
    greedy ids of the two that are named agree."""
    ms, _ = in_turns(competitors, rounds, 1, tokens, False)
    others = [name for name in competitors if not name.startswith("minigpt")]
    best = min(others, key=lambda name: median(sum(ms[name], [])))
    rows = {}
    for name, turns in ms.items():
        rates = [1000 * tokens / took for took in sum(turns, [])]
        rows[name] = {"tokens_per_s": spread(rates), "ratio": ratio(ms[best], turns)}
    greedy = [competitors[name].ask(1, tokens, True)[1][0] for name in (mine, theirs)]
    agree = [*(a == b for a, b in zip(*greedy, strict=True)), False].index(False)
    return {"rows": rows, "best": best, "tokens": tokens, "agree": agree}


def imports(rounds):
    """What an import adds to the start of Python, in s: the fastest of each."""

    def start(code):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=measure.ROOT, check=True)
        return time.perf_counter() - begin

    codes = ("", "import minigpt", "import torch")
    bare, ours, theirs = (min(start(code) for _ in range(rounds)) for code in codes)
    return {"seconds": {"minigpt": ours - bare, "torch": theirs - bare}}


def launches(rounds):
    """Training steps on a GPU, counted without one; in another process, as it needs NumPy."""
    command = [sys.executable, "-m", "tests.benchmarks.launches"]
    return json.loads(subprocess.check_output(command, cwd=measure.ROOT))


BENCHMARKS = {  # name: function of the number of rounds, and their usual number
    "gpt": (partial(training, ("definitions", "pairs", "workers"), SMALL, 12, 10), 12),
    "large": (partial(training, ("workers",), LARGE, 16, 3), 10),
    "long": (partial(training, ("pairs",), SMALL | {"block_size": 1024}, 1, 10), 6),
    "pairs": (pairs, 12),
    "sampling": (sampling, 7),
    "gpt2": (gpt2, 5),
    "import": (imports, 5),
    "launches": (launches, 1),
    "lstm": (partial(stack, "lstm", LSTM, 32, 10), 12),
    "cnn": (partial(stack, "cnn", CNN, 64, 10), 12),
}
UNTIMED = ["readme", "launches", "gpu"]  # what needs no other library, and no idle CPU
LEARNING = {
    "budgets": 66,
    "ablation": 66,
    "scale": 40,
    "families": 180,
    "applications": 0,  # their default commands
    "tasks": 0,  # likewise
    "folds": 5,  # repeats
    "finetuning": 60,
}  # functions of learning.py and families.py: usual seconds of each run
