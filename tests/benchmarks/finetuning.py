"""What pretraining is worth: the same minute of training from nothing, and from the manual's model.

Three kinds of data: a small text, answers that are language, and answers that are a skill. The
models have one shape, and all are validated every 25 steps, so that none is stopped late.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks import measure
from tests.benchmarks.families import SEEDS, run

WAYS = {  # to begin; {} is the folder of the manual's model
    "from nothing": "--n-layer 2 --n-head 4 --n-embd 128 --eval-every 25",
    "from the manual's model": "--init {}",
    "the same at a rate of 0.004": "--init {} --learning-rate 4e-3",
}
SCORES = {  # what a run prints of what was held out
    "nats per character": r"whole split: ([\d.]+)",
    "nats per token of the answers": r"validation part: ([\d.]+)",
    "exact, %": r"exact match ([\d.]+)%",
}


def finetuning(data, seconds):
    """The scores of SEEDS after so many seconds on each text, for each way to begin."""
    rows = {}
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        origin = folder / "manual"
        said, _ = run("--overwrite", out=origin)
        print(re.search(r"whole split: [\d.]+", said)[0], flush=True)
        minutes = ["--minutes", str(seconds / 60)]
        for title, file, score in texts(folder, Path(data)):
            rows[title] = {"score": score} | {way: [] for way in WAYS}
            for seed in SEEDS:
                words = ["--data", str(file), *minutes, "--seed", str(seed)]
                for way, more in WAYS.items():
                    said, _ = run(*words, *more.format(origin).split())
                    rows[title][way].append(float(re.search(SCORES[score], said)[1]))
            print(title, rows[title], flush=True)
    return {"data": str(data).split("/")[-1], "seconds": seconds, "rows": rows}


def texts(folder, data):
    """Yield (title, file, its score): the beginning of a text, and pairs of two kinds."""
    small = folder / "small.txt"
    small.write_text(data.read_text(encoding="utf-8")[:50_000], encoding="utf-8")
    yield "50,000 characters", small, "nats per character"
    exec(block("numpy.tsv"), {"folder": folder})
    yield "what NumPy's functions do", folder / "numpy.tsv", "nats per token of the answers"
    phrases = folder / "phrases.tsv"
    phrases.write_text("".join(f"{short}\t{whole}\n" for short, whole in shortened()))
    yield "phrases without their vowels", phrases, "exact, %"


def block(word):
    """The block of Python in the tour that names this file, which it writes into `folder`."""
    tour = (measure.ROOT / "minigpt" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", tour, re.S)
    [found] = [code for code in blocks if f'"{word}"' in code]
    return found.replace(f'"{word}"', f'folder / "{word}"')


def shortened():
    """Phrases of three words from the part of the manual that is held out -> [(short, whole)]"""
    from minigpt.datasets import text

    held_out = text.split(text.manual(measure.ROOT / "data"), 1)[1]
    phrases = re.findall(r"\b[a-z]{3,} [a-z]{3,} [a-z]{3,}\b", " ".join(held_out.split()))
    return [(re.sub("[aeiou]", "", phrase), phrase) for phrase in dict.fromkeys(phrases)]
