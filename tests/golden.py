"""Print the golden path: how many lines of minigpt/ the canonical commands run, file by file.

python -m tests.golden            the canonical commands: GPT-2's form, AdamW, definitions alone
python -m tests.golden --check    also hold the project to its bounds, as .ci/run does

The commands train a tiny GPT-2 for four steps in one process, on definitions alone, and sample from
it, on definitions too; a large one runs the same lines. A line counts once, however often it runs;
imports and the heads of functions count as well.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minigpt"
# The path was to run at most 1,250 lines. What it runs of train.py's former 400 lines, now in
# applications/ and training/, and steps that were one line and are several, made it longer.
# An error about shapes that names the operation and both shapes takes ten more, and fifty what
# keeps a wrong value from passing without a word: types of operands, long sums, gradients that do
# not fit. That files are written whole, and two runs told apart, takes thirty.
# What draws the curve of a run is no part of it: nothing is learned from it about a GPT. Nor is
# what formulas and a run's folder refuse: one reads it when one is refused.
# All files were to have at most 7,000 lines; embeddings of n-grams, a shift before every mixer and
# minutes that keep their word take 150 more. tiny.py, the two pages that show gradients and
# attention, and the pictures take 750: explaining is not bloat. Guards against wrong values
# take 200, and what keeps a run's folder whole and a stranger's file out 400. The GPU takes 750:
# 250 of CUDA, pairs, formulas, and a step that waits for nothing. A step that may end on a GPU,
# and a checkpoint that is written array by array, make the path 25 longer. A tensor's habits, and
# texts that are drawn together, take 30. Files of one's own, large texts, other people's models and
# several machines take 1,300, and 75 of the path: where it looks whether it is one of them. What
# Windows and macOS do otherwise takes 160, fine-tuning 200, files and operands that were read
# wrongly without a word 250; each 20 of the path.
ASIDE = ["drawing.py", "engine/guards.py", "training/costs.py", "applications/plan.py"]
ASIDE += ["datasets/large.py", "datasets/encodings.py"]
ASIDE += [f"training/{name}.py" for name in ("folder", "stopping", "strangers")]
PATH_BOUND, TOTAL_BOUND = 1845, 12200

TRACE = """
import collections, io, json, sys
from contextlib import redirect_stdout
package, lines = sys.argv[1], collections.defaultdict(set)

def line(frame, event, arg):
    if event == "line":
        lines[frame.f_code.co_filename].add(frame.f_lineno)
    return line

def call(frame, event, arg):
    return line(frame, event, arg) if frame.f_code.co_filename.startswith(package) else None

sys.settrace(call)
import sample, train
from minigpt.engine.autograd import plain
from minigpt.training import trainer
trainer.CLIP = 0.01  # each Python has a text of its own: clip every step, whichever it is
train.CACHE = train.Path("cache")  # the text is read and counted anew
with redirect_stdout(io.StringIO()):
    train.main(sys.argv[2].split())
    with plain():
        sample.main("--tokens 200 --device cpu --prompt The".split())
sys.settrace(None)
print(json.dumps({name: sorted(found) for name, found in lines.items()}))
"""
SIZE = "--steps 4 --eval-every 2 --n-layer 1 --n-embd 16 --n-head 2"
CANONICAL = (
    f"--model gpt2-mini --optimizer adamw --batch-size 12 --plain --workers 1 --device cpu {SIZE}"
)


def golden(words):
    """{file of minigpt/: the numbers of the lines that run} for train.py with these words."""
    import json

    with TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "error", "-c", TRACE, str(PACKAGE), words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    lines = json.loads(done.stdout)
    found = {str(Path(name).relative_to(PACKAGE)): numbers for name, numbers in lines.items()}
    return {name: numbers for name, numbers in found.items() if name not in ASIDE}


def count(*places):
    """How many lines these files, or the Python and CUDA files in these folders, have together."""
    files = []
    for place in places:
        files += [place] if place.is_file() else [*place.rglob("*.py"), *place.rglob("*.cu")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def chapters():
    """{chapter: minutes} from the table of contents, in reading order."""
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return {name: int(n) for name, n in re.findall(r"^(\S+\.py) +(\d+)  ", text, re.M)}


def main():
    parser = argparse.ArgumentParser("python -m tests.golden", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="fail if a bound does not hold")
    check = parser.parse_args().check
    found, order = golden(CANONICAL), chapters()
    for name in sorted(found, key=lambda name: [*order, name].index(name)):
        n, of = len(found[name]), count(PACKAGE / name)
        minutes = f"{order[name]:>4} minutes" if name in order else ""
        print(f"{name:<30} {n:>4} of {of:>4} lines {minutes}")
    path, package = sum(map(len, found.values())), count(PACKAGE)
    total = package + count(ROOT / "train.py", ROOT / "sample.py")
    print(f"the golden path: {path:,} lines (at most {PATH_BOUND:,})")
    print(f"minigpt/: {package:,} lines; with train.py and sample.py {total:,} ", end="")
    print(f"(at most {TOTAL_BOUND:,})")
    if check:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        claims = [f"minigpt/ has {package:,} lines", f"runs {path:,} of them"]
        missing = [claim for claim in claims if claim not in " ".join(readme.split())]
        for claim in missing:
            print(f"README.md does not say: {claim}")
        if path > PATH_BOUND or total > TOTAL_BOUND or missing:
            sys.exit(1)


if __name__ == "__main__":
    main()
