"""Run every kernel of minigpt/engine/ as it stands, without a GPU, and say which are right.

python -m tests.emulator            all
python -m tests.emulator NAME ...   these kernels

Delete a __syncthreads() in minigpt/engine/kernels.cu, or let a loop run one number too far, and run
it again: it names the threads that meet, and where.
"""

import argparse
import sys

from .standin import emulated  # first: it makes tests/ known to Python

# isort: split
import emulator

from .trials import TRIALS, tried

ORDERS = {0: "ascending", 1: "descending", 5: "shuffled"}  # of the threads


def main(words=None):
    parser = argparse.ArgumentParser("python -m tests.emulator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="kernels, by default all")
    names = parser.parse_args(words).names or [*TRIALS]
    if unknown := [name for name in names if name not in TRIALS]:
        parser.error(f"expected {', '.join(TRIALS)}, got {unknown[0]}")
    try:
        said = [report(name) for name in names]
    except emulator.NotCompiled as error:
        sys.exit(str(error))
    sys.exit(any(said))


def report(name):
    """Print a line about a kernel -> what is wrong with it, or None."""
    for order, word in ORDERS.items():
        with emulated(order):
            said = tried(name)
        if said:
            said += f" (threads in {word} order)" if order else ""
            break
    print(f"{name:<24} {said or 'ok'}", flush=True)
    return said


if __name__ == "__main__":
    main()
