"""How fast a GPU is: python -m tests.benchmarks.gpu [PART ...]

Every part is a process of its own, with a limit of time: what fails or hangs says so, and the next
one runs. Each result is a line of JSON, written at once, to $OUT/gpu.jsonl as well if OUT is set.
Tables follow. --emulate runs it to its end without a GPU, tiny, on the stand-in of tests/emulator.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer

from tests.benchmarks import tables
from tests.benchmarks.measure import ROOT

PARTS = {  # functions of gpu_parts.py: the title of their table, the most seconds
    "machine": ("the machine", 30),
    "launches": ("what a launch costs", 30),
    "products": ("products of GPT-2 124M", 50),
    "kernels": ("kernels, at the sizes of GPT-2 124M", 60),
    "formulas": ("elementwise formulas, at the sizes of GPT-2 124M", 50),
    "124m-definitions": ("a step of GPT-2 124M, 1,024 tokens", 60),
    "124m-pairs": ("a step of GPT-2 124M, 1,024 tokens", 45),
    "124m-tf32": ("a step of GPT-2 124M, 1,024 tokens", 45),
    "124m-pytorch": ("a step of GPT-2 124M, 1,024 tokens", 120),
    "6x384-definitions": ("a step of 6 layers of 384, 256 tokens", 30),
    "6x384-pairs": ("a step of 6 layers of 384, 256 tokens", 30),
    "6x384-tf32": ("a step of 6 layers of 384, 256 tokens", 30),
    "6x384-recipe": ("a step of 6 layers of 384, 256 tokens", 45),
    "6x384-pytorch": ("a step of 6 layers of 384, 256 tokens", 75),
    "sampling": ("writing", 60),
    "text": ("a whole run on a text", 140),
}
LIMIT = 570  # s in all, by default
TWICE = "6x384-pytorch"  # tiny, it is the same as 124m's; to import PyTorch takes seconds
LEAST = 5  # s that a part needs at least


EMULATED = {"MINIGPT_GPU": "emulated", "OMP_NUM_THREADS": "1"}  # tiny work needs no threads


class Failed(RuntimeError):
    """How a command has ended, if not well."""


def limited(command, seconds, environment):
    """Yield the lines of a command as they come. It ends after so many seconds, with all that it
    has started.  Raises Failed if it was stopped or has ended with an error."""
    how = {"cwd": ROOT, "env": os.environ | environment, "start_new_session": True}
    how |= {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
    begin = time.monotonic()
    with TemporaryFile("w+") as errors, subprocess.Popen(command, stderr=errors, **how) as process:
        timer = Timer(max(0.0, seconds), stop, [process])
        timer.start()
        try:
            yield from process.stdout
            code = process.wait()
        finally:
            timer.cancel()
            stop(process)  # what it may have left running
        if code and time.monotonic() - begin >= seconds:
            raise Failed(f"stopped after {seconds:.0f} s")
        if code:
            errors.seek(0)
            raise Failed("\n".join(errors.read().strip().splitlines()[-12:]) or f"exit {code}")


def stop(process):
    """End a process and all that it has started."""
    with suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)


def measured(names, seconds, data=None, emulate=False):
    """Yield {"part", "table", "name", figures} of each result, in so many seconds in all. Without
    a GPU `machine` fails, and what was to follow is left out."""
    environment = EMULATED if emulate else {}
    end = time.monotonic() + seconds
    for part in names:
        if part == "text" and not data or part == TWICE and emulate:
            continue
        title, limit = PARTS[part]
        limit, about = min(limit, end - time.monotonic()), {"part": part, "table": title}
        if limit < LEAST:
            yield about | {"name": part, "error": "no time was left"}
            continue
        command = [sys.executable, "-m", "tests.benchmarks.gpu_parts", part, str(data or "")]
        try:
            for line in limited(command, limit, environment):
                if line.startswith("{"):
                    yield about | json.loads(line)
        except Failed as error:
            yield about | {"name": part, "error": str(error)}
            if part == "machine":
                return


def kept(lines):
    """The lines as a list, each printed and written to $OUT/gpu.jsonl as soon as it is there."""
    found = []
    for line in lines:
        found.append(line)
        text = json.dumps(line, ensure_ascii=False)
        print(text, flush=True)
        if folder := os.environ.get("OUT"):
            with open(Path(folder) / "gpu.jsonl", "a") as file:
                file.write(f"{text}\n")
    return found


def benchmark(data=None):
    """All parts -> {"lines"}.  Exits in one line if no GPU answers."""
    lines = kept(measured(PARTS, LIMIT, data and Path(data).resolve()))
    if "error" in lines[0]:
        sys.exit(f"gpu: {lines[0]['error'].splitlines()[-1]}")
    return {"lines": lines}


def main():
    form = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m tests.benchmarks.gpu", **form)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=LIMIT, help="in all (default 570)")
    parser.add_argument("--data", help="a text to train on; without one, `text` is left out")
    parser.add_argument("--emulate", action="store_true", help="tiny, without a GPU")
    args = parser.parse_args()
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"expected {', '.join(PARTS)}, got {unknown[0]}")
    data = args.data and Path(args.data).resolve()
    lines = kept(measured(args.parts or PARTS, args.seconds, data, args.emulate))
    print(f"\n{tables.render('gpu', {'lines': lines})}")
    sys.exit(any("error" in line for line in lines))


if __name__ == "__main__":
    main()
