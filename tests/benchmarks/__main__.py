"""Measure minigpt against PyTorch: python -m tests.benchmarks [NAME ...]

gpt, large, long   a training step, beside the matrix products that it cannot do without
pairs              the step of gpt without each fast pair, and without the tuned allocator
sampling, gpt2     tokens/s of generated text, beside nanoGPT and Hugging Face
import             seconds
launches           a training step on a GPU, counted launch by launch without one: a second
budgets            the loss of the default after 13 s to 3 minutes: a quarter of an hour
ablation           what each part of the default brings, 66 s each: 45 minutes
scale              loss against size, for equal tokens and equal seconds; overfitting; scale.svg
lstm, cnn          a training step of a plain LSTM and of a CNN, beside PyTorch's
families           each family for 3 minutes on a text
applications       every application by every mechanism: their default commands
tasks              questions and translation by every mechanism: 45 minutes
finetuning         a minute from nothing, and from the manual's model: 20 minutes
folds              tables, repeated 5-fold, beside scikit-learn's models
gpu                a GPU's launches, products, kernels and steps: ten minutes; not by default
readme             measures nothing: puts the tables of results.json into the pages

All but readme and gpu by default. Run it on an idle machine: ratios are the figures, times differ
between machines. Needs PyTorch, transformers, matplotlib, scikit-learn.
"""

import argparse
from importlib.util import find_spec

from tests.benchmarks import gpu, tables
from tests.benchmarks.measure import machine
from tests.benchmarks.suite import BENCHMARKS, LEARNING, UNTIMED


def main():
    form = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m tests.benchmarks", **form)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    parser.add_argument("--rounds", type=int, help="turns of each competitor after the warm-up")
    parser.add_argument(
        "--seconds", type=float, help="of each run of ablation and scale; nanoGPT's time"
    )
    parser.add_argument("--data", default="manual", help="their text: manual (default) or a file")
    args = parser.parse_args()
    timed = not args.names or {*args.names} - {*UNTIMED}
    if timed and not all(map(find_spec, ("torch", "transformers", "matplotlib", "sklearn"))):
        parser.error(
            "needs PyTorch, transformers, matplotlib and scikit-learn: pip install -e '.[dev]'"
        )
    if args.rounds is not None and args.rounds < 2:
        parser.error("--rounds: a spread needs at least 2")
    for name in args.names:
        if name not in (known := [*BENCHMARKS, *LEARNING, "gpu", "readme"]):
            parser.error(f"expected one of {', '.join(known)}, got {name!r}")
    for name in args.names or [*BENCHMARKS, *LEARNING]:
        if name == "readme":
            for page in tables.PAGES:
                text = tables.fill(page.read_text(encoding="utf-8"), tables.load())
                page.write_text(text, encoding="utf-8")
            continue
        if name == "gpu":
            result = gpu.benchmark(None if args.data == "manual" else args.data)
        elif name in BENCHMARKS:
            benchmark, usual = BENCHMARKS[name]
            result = benchmark(args.rounds or usual)
        else:  # last, and here: from now on this process has NumPy, see measure.py
            from tests.benchmarks import families, finetuning, learning

            [benchmark] = [
                getattr(module, name)
                for module in (families, finetuning, learning)
                if hasattr(module, name)
            ]
            result = benchmark(args.data, args.seconds or LEARNING[name])
        tables.save(name, result if name in UNTIMED else result | {"machine": machine()})
        print(f"\n{name}\n\n{tables.render(name, tables.load()[name])}", flush=True)


if __name__ == "__main__":
    main()
