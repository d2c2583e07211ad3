"""Ranks that mpiexec starts: they learn what one process learns, and they end together."""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import ModuleType, SimpleNamespace

import emulator
import numpy as np
import pytest
from strict import strict, syncs
from test_device import answering
from test_parallel import go, gone, masks, sums, train
from test_training import contents, new_trainer

import sample
from minigpt.engine import device
from minigpt.training import checkpoint, mpi
from minigpt.training.processes import run
from minigpt.training.ranks import Alone, started_by_mpi

ROOT = Path(__file__).resolve().parents[1]
BESIDE = Path(sys.executable).with_name("mpiexec")  # pip's mpich lies in the environment
MPIEXEC = str(BESIDE) if BESIDE.exists() else which("mpiexec")
with_mpi = pytest.mark.skipif(
    not (MPIEXEC and find_spec("mpi4py")), reason="needs mpiexec and mpi4py: the extra dev"
)
TINY = "--data text.txt --n-layer 1 --n-embd 16 --n-head 2 --block-size 32 --eval-every 5"


# What ranks run in these tests: mpiexec -n N python tests/test_mpi.py NAME ARGUMENTS


def learned(ranks, folder, cases):
    """What train() of test_parallel.py has after four steps, for each case of type and options."""
    return [train(ranks, Path(folder), dtype, options) for dtype, options in cases]


def gathered(ranks):
    return sums(ranks)


def dropped(ranks, folder):
    return masks(ranks, Path(folder))


def resumed(ranks, folder, stop):
    """go() of test_parallel.py; a run that is stopped ends with exit code 3."""
    go(ranks, Path(folder), stop, dtype=np.float64, dropout=0.0)
    return ranks.all_gather(None) if stop > 90 else sys.exit(3)


def failing(ranks, rank):
    """One rank fails in a step, and the others wait for it."""
    ranks.barrier()
    if ranks.rank == rank:
        raise MemoryError("no room for 7 GB")
    ranks.all_reduce(np.zeros(7, np.float32))


def lead(end):
    """On rank 0: run the program that the command line names, and print what comes back."""
    name, *args = sys.argv[1:]
    print(json.dumps(mpi.run(("cpu", "float32"), globals()[name], *map(json.loads, args))))


if __name__ == "__main__":
    mpi.together(lead)


# The tests


def command(n, *words):
    """The command that starts n ranks of train.py, or of this file if a program is named."""
    script = str(ROOT / "train.py")
    if words[0] in globals():
        script, words = __file__, [words[0], *map(json.dumps, words[1:])]
    return [MPIEXEC, "-n", str(n), sys.executable, "-W", "error", script, *words]


def ranks(n, *words, cwd=ROOT, **options):
    """Run them to their end -> exit code, standard output, standard error."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options
    done = subprocess.run(
        command(n, *words), cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over a lazy dog " * 90)
    return tmp_path


@with_mpi
def test_every_rank_gets_the_sum_and_the_values_of_all():
    code, out, err = ranks(3, "gathered")
    got = json.loads(out)
    assert (code, err) == (0, "")
    assert [row[1] for row in got] == [[0 + 1 + 2] * 7] * 3
    assert [row[2:4] for row in got] == [[0, 3], [1, 3], [2, 3]]
    assert all(row[0] == got[0][0] for row in got)  # to the last bit


CASES = [
    ("float32", {}), ("float32", {"plain": True}), ("float64", {"optimizer": "adamw"}),
    ("float64", {"accumulate": 2, "optimizer": "sgd"}),
]  # fmt: skip


@with_mpi
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_learn_what_one_process_learns(tmp_path, size):
    """Ten windows among four ranks do not come out even."""
    common = {"dropout": 0.0, "batch_size": 10, "learning_rate": 1e-3}
    cases = [(dtype, common | options) for dtype, options in CASES]
    (tmp_path / "alone").mkdir()
    alone = run(1, learned, tmp_path / "alone", cases)
    code, out, err = ranks(size, "learned", str(tmp_path), cases)
    assert (code, err) == (0, "")
    for every, [expected], (dtype, _) in zip(json.loads(out), alone, cases, strict=True):
        assert len(every) == size and all(one == every[0] for one in every)  # to the last bit
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        for got, value in zip(every[0], expected, strict=True):
            np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance)


@with_mpi
def test_ranks_drop_different_units(tmp_path):
    first, second = json.loads(ranks(2, "dropped", str(tmp_path))[1])
    assert first != second


@with_mpi
def test_a_run_of_two_ranks_goes_on_with_four_and_ends_with_one(tmp_path):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    run(1, resumed, tmp_path / "whole", 99)
    for size, stop in ((2, 3), (4, 5)):
        code, _, err = ranks(size, "resumed", str(tmp_path / "parts"), stop)
        assert (code, err) == (3, "")
    run(1, resumed, tmp_path / "parts", 99)
    ends = [new_trainer(tmp_path / f, dropout=0.0).out for f in ("whole", "parts")]
    (expected, about), (got, of) = (checkpoint.load(end / "last.safetensors") for end in ends)
    assert about["state"]["step"] == of["state"]["step"] == 8
    assert about["state"]["stream"] == of["state"]["stream"]
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-10, atol=1e-12)


@with_mpi
def test_a_command_says_and_writes_what_it_does_in_one_process(text):
    words = f"{TINY} --steps 15 --optimizer adamw --out run".split()
    found = []
    for size in (1, 2, 4):
        code, out, err = ranks(size, *words, cwd=text)
        assert (code, err) == (0, "")
        found.append((out.splitlines(), contents(text / "run")))
        for file in (text / "run").iterdir():
            file.unlink()
    (said, expected), *others = found
    for lines, files in others:
        assert [line[:15] for line in lines] == [line[:15] for line in said]
        assert files.keys() == expected.keys()
        losses = [np.loadtxt(f["log.csv"].decode().splitlines()[1:], delimiter=",")[:, :4]
                  for f in (files, expected)]  # fmt: skip
        np.testing.assert_allclose(*losses, atol=2e-4)


@with_mpi
def test_ranks_begin_with_what_another_run_has_learned(text):
    found = []
    words = f"{TINY} --steps 4 --optimizer adamw"
    assert ranks(1, *f"{words} --out origin".split(), cwd=text)[0] == 0
    for size in (1, 2):
        command = "--data text.txt --init origin --batch-size 4 --steps 2 --eval-every 2 --out run"
        code, out, err = ranks(size, *command.split(), "--overwrite", cwd=text)
        assert (code, err) == (0, "") and "weights of origin; first loss" in out
        found.append(np.loadtxt(text / "run/log.csv", delimiter=",", skiprows=1)[:3])
    np.testing.assert_allclose(*found, rtol=1e-5)  # float32, another order of sums


@with_mpi
def test_what_is_reported_at_the_end_is_of_the_trained_model(tmp_path):
    _, out, _ = ranks(2, *"--data tumours --steps 60 --out run".split(), cwd=tmp_path)
    [said] = re.findall("held out: (.*)", out)
    report = subprocess.run(
        [sys.executable, ROOT / "sample.py", "run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert report.stdout.splitlines()[0] == said


@with_mpi
def test_a_rank_that_sees_neither_data_nor_folder_trains_and_writes_nothing(text):
    """As on another machine: rank 1 runs in another folder, also when the run goes on."""
    other = text / "elsewhere" / "run" / "best.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another file of this name")
    for words in (f"{TINY} --steps 5 --out run", "--resume --steps 10 --out run"):
        here = command(1, *words.split())
        there = [MPIEXEC, "-n", "1", "-wdir", str(text / "elsewhere"), *here[3:]]
        done = subprocess.run([*here, ":", *there[1:]], cwd=text, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"") and b", 2 workers" in done.stdout
    assert contents(other.parent) == {other.name: b"another file of this name"}
    assert [*(text / "elsewhere").iterdir()] == [other.parent]


@with_mpi
def test_a_command_goes_on_with_another_number_of_ranks(text):
    start = f"{TINY} --steps 10 --out run".split()
    assert ranks(2, *start, cwd=text)[0] == 0
    code, out, err = ranks(4, *"--resume --steps 20 --out run".split(), cwd=text)
    assert (code, err) == (0, "") and "continues after step 10 of 20, 4 workers" in out
    code, out, err = ranks(1, *"--resume --steps 25 --out run".split(), cwd=text)
    assert (code, err) == (0, "") and "continues after step 20 of 25\n" in out


def pids_of(label):
    """{rank: process id} of the ranks whose environment bears this label."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            rank = [line.split("=")[1] for line in lines if re.match(r"(PMI|OMPI_.*)_RANK=", line)]
            if f"MINIGPT_TEST={label}" in lines and rank:
                found[int(rank[0])] = int(pid)
    return found


@pytest.fixture
def training(text):
    """mpiexec -n 3 python train.py after its first checkpoint -> it, and its ranks' processes."""
    words = f"{TINY} --steps 100000 --out {text / 'run'}".split()
    process = subprocess.Popen(
        command(3, *words), cwd=text, start_new_session=True, text=True,
        env=os.environ | {"MINIGPT_TEST": str(text)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (text / "run" / "log.csv").exists() and time.monotonic() < end:
        time.sleep(0.02)
    found = pids_of(text)
    yield process, found
    if process.poll() is None:
        process.kill()
    process.communicate()


@with_mpi
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at Linux's /proc")
class TestTheirEnd:
    @pytest.mark.parametrize("rank", [0, 2])
    def test_a_killed_rank_ends_all_within_seconds(self, training, rank):
        process, found = training
        assert [*sorted(found)] == [0, 1, 2]
        os.kill(found[rank], signal.SIGKILL)
        process.communicate(timeout=20)
        assert process.returncode != 0 and gone(found.values())

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_all_after_the_step_and_saves(self, training, number):
        process, found = training
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 128 + number and "Traceback" not in err
        assert "continue: python train.py --resume --out" in out.splitlines()[-1]
        assert gone(found.values())

    def test_when_mpiexec_is_killed_no_rank_stays(self, training):
        process, found = training
        process.kill()
        process.communicate(timeout=20)
        assert len(found) == 3 and gone(found.values())


@with_mpi
@pytest.mark.parametrize(
    "words, expected",
    [
        (["failing", 1], ["rank 1", "no room for 7 GB", "--resume"]),
        ("--steps 9 --learning-rate 1e30 --optimizer sgd --out run", ["is not finite"]),
        ("--steps 9 --workers 2 --out run", ["--workers", "mpiexec -n 2"]),
        ("--stepz 9", ["did you mean --steps?"]),
    ],
)
def test_an_error_of_any_rank_is_one_line(text, words, expected):
    words = f"{TINY} {words}".split() if isinstance(words, str) else words
    code, _, err = ranks(2, *words, cwd=text)
    assert code == 2 and err.count("\n") == 1 and all(part in err for part in expected), err


@with_mpi
def test_more_ranks_than_windows_are_refused(text):
    words = f"{TINY} --steps 9 --batch-size 4 --accumulate 2 --out run".split()
    code, _, err = ranks(3, *words, cwd=text)
    assert code == 2 and err.count("\n") == 1
    assert "mpiexec -n: expected at most 2, --batch-size / --accumulate, got 3" in err


@with_mpi
def test_a_mistake_of_the_program_is_shown_once_and_ends_all():
    code, out, err = ranks(2, "failing", 0)
    assert code == 1 and err.count("MemoryError: no room for 7 GB") == 1
    assert err.count("Traceback") == 1 and out == ""


def test_sample_is_not_for_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(SystemExit):
        sample.main(["--prompt", "a"])
    err = capsys.readouterr().err
    assert "mpiexec: expected one process, got several" in err and err.count("\n") == 1


def test_without_mpi4py_one_line_says_so(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError(\"No module named 'mpi4py'\")")
    said = []
    for rank in ("0", "1"):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PMI_SIZE": "2", "PMI_RANK": rank}
        words = [sys.executable, str(ROOT / "train.py"), "--out", "run"]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stdout == ""
        said.append((done.returncode, done.stderr))
    (code, line), quiet = said
    assert code == 2 and quiet == (0, "") and line.count("\n") == 1
    assert "No module named 'mpi4py'" in line and "pip install -e '.[mpi]'" in line


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a job that has not called mpiexec
    ],
)
def test_mpi_is_known_by_its_own_variables(variables, expected, monkeypatch):
    for name in [name for name in os.environ if name.endswith(("_RANK", "_SIZE"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started_by_mpi() == expected


# Several GPUs, on stand-ins


class Meeting:
    """What a communicator and NCCL do, among threads of one process.

    NCCL gets addresses. `queued` has its calls, one list for each rank.
    """

    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM, available = 7, 8, 0, True
    TYPES = {7: ctypes.c_float, 8: ctypes.c_double}

    def __init__(self, size):
        self.size, self.all_here, self.places = size, threading.Barrier(size), [None] * size
        self.queued = [[] for _ in range(size)]

    def get_unique_id(self):
        return (1, 2, 3)

    def comm(self, rank):
        def bcast(value):
            if rank == 0:
                self.sent = value
            self.all_here.wait()
            return self.sent

        return SimpleNamespace(rank=rank, size=self.size, bcast=bcast)

    def NcclCommunicator(self, size, key, rank):
        assert size == self.size and key == (1, 2, 3)

        def all_reduce(source, target, count, kind, op, stream):
            self.queued[rank].append((source, target, count, kind, op, stream))
            self.places[rank] = np.ctypeslib.as_array(
                (self.TYPES[kind] * count).from_address(source)
            )
            self.all_here.wait()
            total = sum(self.places)
            self.all_here.wait()
            np.ctypeslib.as_array((self.TYPES[kind] * count).from_address(target))[:] = total

        return SimpleNamespace(allReduce=all_reduce)


def on_gpu(array):
    """An array as RankOnGPU looks at it."""
    data = SimpleNamespace(ptr=array.ctypes.data)
    return SimpleNamespace(data=data, size=array.size, dtype=array.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1000,), ()])  # the gradient, the loss
def test_nccl_adds_up_in_place_on_the_stream_in_which_the_kernels_run(dtype, shape, monkeypatch):
    meeting, size = Meeting(3), 3
    monkeypatch.setattr(device, "nccl", lambda: meeting)
    stream = SimpleNamespace(ptr=77)
    cupy = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: stream))
    arrays = [np.array(np.arange(1, 1 + np.prod(shape)).reshape(shape) * 10**rank, dtype)
              for rank in range(size)]  # fmt: skip
    expected = sum(a.copy() for a in arrays)

    def rank_of(rank):
        mpi.RankOnGPU(meeting.comm(rank), cupy).all_reduce(on_gpu(arrays[rank]))

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for array, [call] in zip(arrays, meeting.queued, strict=True):
        np.testing.assert_array_equal(array, expected)
        kind = {np.float32: 7, np.float64: 8}[dtype]
        assert call == (array.ctypes.data, array.ctypes.data, array.size, kind, 0, 77)


class Twin(Alone):
    """A rank beside one that has the same share of every batch, so that all sums are double."""

    def all_reduce(self, vector):
        vector += vector

    def all_gather(self, value):
        return [value] * 2


@pytest.mark.skipif(not emulator.COMPILER, reason="the emulator needs g++")
def test_a_step_on_a_gpu_adds_up_gradient_and_loss_without_waiting(tmp_path):
    from emulator.standin import emulated

    ends, options = [], {"dtype": np.float64, "ranks": Twin(), "dropout": 0.0, "optimizer": "adamw"}
    alone = new_trainer(tmp_path, **options)
    losses = [alone.train_step() for _ in range(3)]
    assert losses[0] > 1.9 * np.log(11)  # twice the loss of an untrained model
    ends.append((alone.flat.data, alone.recent))
    with emulated():
        run = new_trainer(tmp_path, xp=strict, **options)
        for _ in range(3):
            run.train_step()
        assert not syncs
        ends.append((run.flat.data._array, run.queued.read()[0]))
    for expected, got in zip(*ends, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def fake_cupy(monkeypatch, **cuda):
    """CuPy with these parts of cupy.cuda and a GPU that fails at the first product."""

    def ones(*_):
        raise RuntimeError("as far as this")

    cupy, module = ModuleType("cupy"), ModuleType("cupy.cuda")
    vars(module).update(cuda)
    cupy.cuda, cupy.ones = module, ones
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", module)


@pytest.mark.parametrize("rank, expected", [(0, []), (1, [1]), (3, [3])])
def test_each_rank_of_a_machine_takes_a_gpu_of_its_own(rank, expected, monkeypatch):
    used = []
    runtime = SimpleNamespace(getDeviceCount=lambda: 4)
    of = lambda number: SimpleNamespace(use=lambda: used.append(number))  # noqa: E731
    fake_cupy(monkeypatch, runtime=runtime, Device=of)
    device.select("auto", rank=rank)
    assert used == expected


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    cupy = answering(monkeypatch, "90")
    cupy.cuda.runtime = SimpleNamespace(getDeviceCount=lambda: 4)
    with pytest.raises(ValueError, match="at most 4 ranks on this machine"):
        device.select("gpu", rank=4)


@pytest.mark.parametrize("cuda", [{}, {"nccl": SimpleNamespace(available=False)}])
def test_without_nccl_several_gpus_are_refused(cuda, monkeypatch):
    fake_cupy(monkeypatch, **cuda)
    with pytest.raises(ValueError, match="expected NCCL .*; use --device cpu"):
        device.nccl()


def test_the_best_weights_reach_every_rank_from_rank_0(tmp_path):
    """validate() on ranks of which only rank 0 sees the folder."""
    losses, weights = run(2, validated, tmp_path)
    assert losses[0] == losses[1] and weights[0] == weights[1]


def validated(ranks, folder):
    trainer = new_trainer(folder, ranks=ranks)
    trainer.run()
    if ranks.rank:
        trainer.out = folder / "elsewhere"
    loss = trainer.validate()
    assert not trainer.flat.grad.any()
    return [*zip(*ranks.all_gather((loss, trainer.flat.data.tolist())), strict=True)]
