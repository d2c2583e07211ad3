"""How much memory a run says that it will need, and how much it takes."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_cli import ROOT

from minigpt.nn.layers import Linear
from minigpt.training import costs


def test_activations_are_what_the_history_of_a_step_holds():
    model, x = Linear(1000, 10, np.random.default_rng(0)), np.ones((500, 1000), np.float32)
    costs.activations(model, x, np.zeros(500, int))  # the first time, modules are imported
    kept = costs.activations(model, x, np.zeros(500, int))
    # z, and p = softmax(z), whose shifted copy has the same size: 10 numbers each, and few others
    assert 2 * 40 <= kept <= 4 * 40


def test_each_further_process_needs_its_own_and_the_first_one_what_it_had_at_most():
    most = costs.most_so_far()
    assert most > 10e6  # Python and NumPy
    assert costs.of_all(1, 5.0) == most and costs.of_all(3, 5.0) == most + 10.0
    assert costs.of_all(3, 2.0 * most) == 6 * most


def test_the_size_of_data_is_that_of_its_arrays():
    arrays = [np.zeros(1000), {"a": np.zeros((50, 2), np.int32)}]
    assert 8400 <= costs.size_of(arrays) <= 8400 + 1000


def memory_of(pid):
    """Bytes of a process and of its children; what several share is divided among them."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return 0
    own = 1024 * int(re.search(r"^Pss: +([0-9]+)", text, re.M)[1])
    return own + sum(map(memory_of, children))


def told_and_taken(command, folder):
    """How many bytes step 2 of a run says that it will need, and how many it takes at most."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder, text=True) as run:
        most = 0
        while run.poll() is None:
            most = max(most, memory_of(run.pid))
            time.sleep(0.02)
        said = re.search(r"about ([0-9.,]+) (MB|GB) of memory", run.stdout.read())
    assert run.returncode == 0
    return float(said[1].replace(",", "")) * {"MB": 1e6, "GB": 1e9}[said[2]], most


WIDE = "--model gpt2 --n-layer 4 --n-head 4 --n-embd 256 --block-size 256 --batch-size 16"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("words", [
    f"{WIDE} --workers 1", f"{WIDE} --workers 2", "--model conv --data digits --workers 1",
    "--model lstm --n-embd 512 --batch-size 32 --workers 1",
])  # fmt: skip
def test_the_memory_of_a_run_is_told_within_30_percent(tmp_path, words):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n * n * 31 % 9973} times and again.\n" for n in range(20_000)))
    data = [] if "--data" in words else ["--data", str(text)]
    command = [sys.executable, ROOT / "train.py", *words.split(), *data, "--steps", "3"]
    told, most = told_and_taken([*command, "--out", "run"], tmp_path)
    assert abs(told / most - 1) < 0.3, (told, most)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_train_on_200_mb_of_text_within_1_5_gb(tmp_path):
    part = "".join(f"{n * n * 31 % 9973} times and again.\n" for n in range(40_000))
    with open(tmp_path / "text.txt", "w") as file:
        for _ in range(200_000_000 // len(part) + 1):
            file.write(part)
    words = "--data text.txt --workers 2 --n-layer 1 --n-embd 16 --n-head 2 --block-size 64 "
    words += "--batch-size 256 --steps 30 --eval-every 15 --out run"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train; "
    code += f"train.CACHE = train.Path('cache'); train.main({words.split()})"
    told, most = told_and_taken([sys.executable, "-c", code], tmp_path)
    ids = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.ids"))
    assert most < 1.5e9 and 360e6 < ids < 380e6
    assert 0.7 * told < most < 1.3 * (told + ids), (told, most)
