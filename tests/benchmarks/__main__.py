"""python -m tests.benchmarks: a training step of minigpt against the same model in PyTorch eager.

Both run in processes of their own, in turns of a few steps with a pause between (idle BLAS threads
spin for a while), with the same weights and batches; the losses of every step are compared. Run it
on an idle machine: the ratio of the medians is the figure, milliseconds differ between machines.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.worker import BATCH, SHAPE

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that trains one of the two, on command."""

    def __init__(self, kind, weights, plain=False):
        command = [sys.executable, "-m", f"tests.benchmarks.{kind}_gpt", weights]
        command += ["--plain"] if plain else []
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ms, self.losses, self.answer = [], [], {}

    def run(self, steps):
        print(steps, file=self.process.stdin, flush=True)
        self.answer = json.loads(self.process.stdout.readline())
        self.ms += self.answer["ms"]
        self.losses += self.answer["losses"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def weights_file(folder):
    """Weights that both start from, under transformers' names."""
    from minigpt.nn.gpt import GPT, GPTConfig, hugging_face_name

    model = GPT(GPTConfig(**SHAPE), np.random.default_rng(0))
    arrays = {hugging_face_name(name): a for name, a in model.state_dict().items()}
    np.savez(folder + "/weights.npz", **arrays)
    return folder + "/weights.npz"


def main():
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=12, help="turns of 10 steps each (default 12)"
    )
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = weights_file(folder)
        workers = {
            "minigpt, pairs": Worker("mini", weights),
            "PyTorch eager": Worker("torch", weights),
            "minigpt, definitions": Worker("mini", weights, plain=True),
        }
        for turn in range(args.rounds + 1):
            for worker in workers.values():
                worker.run(10)
                time.sleep(0.4)
                if turn == 0:  # warm-up
                    worker.ms.clear()
        for worker in workers.values():
            worker.close()
    report(workers, args.json)


def import_seconds(package):
    """What `import package` adds to the start of Python; the smallest of five."""

    def start(code):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        return time.perf_counter() - begin

    return min(start(f"import {package}") for _ in range(5)) - min(start("") for _ in range(5))


def report(workers, path):
    """Print the table; each figure also as a ratio to PyTorch's."""
    yardstick, figures = workers["PyTorch eager"], {}
    for name, w in workers.items():
        ms, low, high = (float(np.percentile(w.ms, p)) for p in (50, 10, 90))
        grown = w.answer["peak_mb"] - w.answer["imported_mb"]
        loss = float(np.abs(np.subtract(w.losses, yardstick.losses)).max())
        figures[name] = {"ms": ms, "p10": low, "p90": high, "loss_difference": loss}
        figures[name] |= {"peak_mb": w.answer["peak_mb"], "grown_mb": grown}
    base = figures["PyTorch eager"]
    print("| | ms a step (10 to 90 %) | tokens/s | ratio | peak RSS (over imports), MB | ratio |")
    print("|---|---|---|---|---|---|")
    for name, f in figures.items():
        tokens = BATCH * SHAPE["block_size"] / f["ms"] * 1000
        speed = f"{f['ms']:.1f} ({f['p10']:.1f} to {f['p90']:.1f}) | {tokens:,.0f}"
        memory = f"{f['peak_mb']:.0f} ({f['grown_mb']:.0f})"
        ratios = [f[key] / base[key] for key in ("ms", "peak_mb", "grown_mb")]
        print(
            f"| {name} | {speed} | {ratios[0]:.2f} | {memory} | {ratios[1]:.2f} ({ratios[2]:.2f}) |"
        )
    worst = max(f["loss_difference"] for f in figures.values())
    print(f"largest difference of a loss over {len(yardstick.losses)} steps: {worst:.1e}")
    figures["import"] = {name: import_seconds(name) for name in ("minigpt", "torch")}
    print("import: " + ", ".join(f"{n} {s:.2f} s" for n, s in figures["import"].items()))
    if path:
        Path(path).write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
