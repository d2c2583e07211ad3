"""All that is to be done with a GPU, in one call of at most ten minutes: python -m tests.gpu_call

First `pytest -m gpu`, then the benchmark, then NVIDIA's sanitizer if it is there and time is left.
Each has a limit of time and goes on without the others. In $OUT, or in out/gpu, lie tests.txt,
gpu.jsonl with every figure as soon as it was measured, gpu.md with the tables, and sanitizer.txt.
--emulate runs it to its end without a GPU, tiny, on the stand-in of tests/emulator.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from tests.benchmarks import gpu, tables
from tests.benchmarks.gpu import Failed, limited

LIMIT, TESTS, SANITIZER = 590, 200, 120  # s in all; at most of the two
REHEARSED = "layer_norm and not classifier or tf32 or greedy"  # of the tests, a second's worth


def main(words=None):
    form = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m tests.gpu_call", **form)
    parser.add_argument("--data", help="a text to train on, such as tiny Shakespeare")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="in all (default 590)")
    parser.add_argument("--emulate", action="store_true", help="tiny, without a GPU")
    args = parser.parse_args(words)
    end = time.monotonic() + args.seconds
    folder = Path(os.environ.setdefault("OUT", "out/gpu")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OUT"] = str(folder)
    environment = gpu.EMULATED if args.emulate else {}

    chosen = REHEARSED if args.emulate else "not sanitizer"
    failed = [tested(folder / "tests.txt", chosen, min(TESTS, args.seconds), environment)]
    data = args.data and Path(args.data).resolve()
    lines = gpu.kept(gpu.measured(gpu.PARTS, end - time.monotonic(), data, args.emulate))
    text = tables.render("gpu", {"lines": lines})
    (folder / "gpu.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}", flush=True)
    failed += ["error" in line for line in lines]
    left = min(SANITIZER, end - time.monotonic())
    if left > gpu.LEAST and not args.emulate:  # the emulator has none
        failed += [tested(folder / "sanitizer.txt", "sanitizer", left, environment)]
    sys.exit(any(failed))


def tested(path, chosen, seconds, environment):
    """Run the tests for a GPU whose names have this, as pytest's -k; write what pytest says to a
    file as it comes, and print its end -> whether they failed or were stopped."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-k", chosen]
    command += ["-vv", "-rs", "--tb=short", "--durations=10", "-p", "no:cacheprovider"]
    lines, wrong = [], None
    with open(path, "w", encoding="utf-8") as file:
        try:
            for line in limited(command, seconds, environment):
                lines.append(line)
                file.write(line)
                file.flush()
        except Failed as error:
            wrong = str(error)
            file.write(f"{wrong}\n")
    print("".join(lines[-40:] if wrong else lines[-15:]), wrong or "", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    main()
