"""Something goes wrong at any executed line of saving, validating and training: nothing is lost.

A kill, a signal, a full disk or no memory comes at a line of the code that keeps a run's files; see
tests/lines.py. LINES in the environment says how many of these faults are tried, "all" is possible:
each line in each of three situations with each fault, which takes half an hour.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from itertools import product

import pytest
from lines import FAULTS, ROOT, TRAINING
from test_folder import TEXT, TINY, bare

from minigpt.training import checkpoint, folder, strangers
from minigpt.training.checkpoint import read_about

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="copies a process by fork"),
]
RUN = ["--data", "text.txt", "--out", "run", *TINY, "--steps", "4", "--seed", "2"]
SITUATIONS = {"new": RUN, "replacing": [*RUN, "--overwrite"], "resuming": ["--resume", *RUN[2:4]]}
MANY = os.environ.get("LINES", "24")


class Runs:
    """Starts copies of one process that has imported everything; what tests/lines.py is for."""

    def __init__(self, place):
        self.place = place
        (place / "text.txt").write_text(TEXT)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.lines"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def __call__(self, words, fault=None, at=None):
        """Exit status, stdout, stderr of train.py with these words."""
        order = {"words": words, "folder": str(self.place), "fault": fault, "at": at}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        return status, *((self.place / f"{name}.txt").read_text() for name in ("out", "err"))

    def lines(self):
        """[file, line, how often it was reached] of the last run that came to its end."""
        return json.loads((self.place / "lines.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A working folder with an undisturbed run, and for each situation what it begins with."""
    runs = Runs(tmp_path_factory.mktemp("lines"))
    for name in ("whole", "old"):
        other = ["--seed", "1"] * (name == "old")
        assert runs([*RUN, "--out", name, *other])[0] == 0
    source = (TRAINING / "trainer.py").read_text("utf-8").splitlines()
    third = ["trainer.py", source.index("        self.step += 1") + 1, 3]
    assert runs([*RUN, "--out", "stopped"], "SIGTERM", third)[0] == -signal.SIGTERM
    assert read_about(runs.place / "stopped/last.safetensors")["state"]["step"] == 3
    yield runs
    runs.process.communicate("")


def prepare(runs, situation):
    shutil.rmtree(runs.place / "run", ignore_errors=True)
    if situation != "new":
        begun = {"replacing": "old", "resuming": "stopped"}[situation]
        shutil.copytree(runs.place / begun, runs.place / "run")


def mine(run):
    """Whether the last checkpoint there is one of RUN, and not of the run that it replaces."""
    last = run / "last.safetensors"
    return last.exists() and read_about(last)["config"]["seed"] == 2


def check_files(run, old):
    """Every checkpoint is whole, those two that count are of one run, and none was lost."""
    files = [file for file in run.glob("*") if not file.name.endswith(".part")]
    about = {f.name: checkpoint.load(f)[1] for f in files if ".safetensors" in f.name}
    if {"last.safetensors", "best.safetensors"} <= about.keys():
        strangers.same_run(run, about["best.safetensors"], about["last.safetensors"])
    if old and not mine(run):
        for file in old.iterdir():
            kept = [run / file.name, run / (file.name + folder.ASIDE)]
            assert file.read_bytes() in [f.read_bytes() for f in kept if f.exists()], file.name


def check_end(fault, status, out, err):
    """The process ended as it should, and said at most one line about it."""
    if fault == "SIGKILL":
        assert status == -signal.SIGKILL
    elif fault == "SIGTERM":
        assert status == -signal.SIGTERM and err == ""
    else:
        assert status in (0, 2) and err.count("\n") == (status == 2), (status, err)
        assert "Traceback" not in out + err


def go_on(runs):
    """What a user does: resume the run, or begin it again if nothing of it was saved."""
    run = runs.place / "run"
    more = ["--resume"] if mine(run) else ["--overwrite"] * run.exists()
    status, _, err = runs(RUN + more)
    assert (status, err) == (0, "")
    assert bare(run) == bare(runs.place / "whole")
    assert not [*run.glob("*.part"), *run.glob(f"*{folder.ASIDE}")]


def test_a_fault_at_any_line_loses_nothing_and_the_run_goes_on(runs):
    rng, tried, failed = random.Random(0), [], []
    for situation, words in SITUATIONS.items():
        prepare(runs, situation)
        assert runs(words)[0] == 0
        places = [[file, line, rng.randint(1, n)] for file, line, n in sorted(runs.lines())]
        tried += product([situation], FAULTS, places)
    if MANY != "all":
        tried = rng.sample(tried, int(MANY))
    for situation, fault, at in tried:
        prepare(runs, situation)
        old = runs.place / "old" if situation == "replacing" else None
        end = runs(SITUATIONS[situation], fault, at)
        try:
            assert situation != "resuming" or mine(runs.place / "run")
            check_end(fault, *end)
            check_files(runs.place / "run", old)
            go_on(runs)
        except (Exception, SystemExit) as error:
            failed.append((situation, fault, at, repr(error)[:300], end))
    assert not failed, "\n".join(map(str, failed))
