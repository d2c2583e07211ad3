"""Several processes that train one model: they agree, they clean up, and none is left behind."""

import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from test_training import IDS, files, new_trainer
from threadpoolctl import threadpool_info

from minigpt.engine.autograd import plain
from minigpt.nn import model_class
from minigpt.nn.gpt import GPTConfig
from minigpt.training import checkpoint, parallel, processes
from minigpt.training.config import Config
from minigpt.training.processes import run
from minigpt.training.ranks import Alone
from minigpt.training.trainer import mean_loss

ROOT = Path(__file__).resolve().parents[1]
SIZES = [1, 2, 3]


def sums(ranks):
    """What every rank ends up with: [(sum, gathered, BLAS threads, names in the folder)]"""
    if ranks.zeros:
        vector = ranks.zeros(7, np.float32)
    else:
        vector = np.zeros(7, np.float32)
    assert not vector.any()
    vector += np.float32([1e8, 1, -1e8])[ranks.rank]
    ranks.all_reduce(vector)
    first = vector.copy()
    vector[:] = ranks.rank
    ranks.all_reduce(vector)  # again, with the same memory
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ranks.all_gather((first.tolist(), vector.tolist(), ranks.rank, ranks.size, blas))


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_gets_the_sum_in_order_of_rank_and_leaves_no_file(size, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = set(Path("/dev/shm").glob("minigpt-*"))
    before = threadpool_info()
    got = run(size, sums)
    total = np.float32(1e8)
    for term in (1, -1e8)[: size - 1]:
        total = total + np.float32(term)  # 1e8 + 1 - 1e8 = 0, another order would give 1
    assert [row[0] for row in got] == [[total] * 7] * size
    assert [row[1] for row in got] == [[sum(range(size))] * 7] * size
    assert [row[2:4] for row in got] == [(rank, size) for rank in range(size)]
    if size > 1:
        share = max(1, processes.physical_cores() // size)
        assert all(n <= share for row in got for n in row[4])
    assert threadpool_info() == before  # the limit ends with the run
    assert not list(tmp_path.iterdir()) and set(Path("/dev/shm").glob("minigpt-*")) == shared


def train(ranks, folder, dtype, options):
    """Four steps; what every rank has then: weights, losses, validation loss."""
    trainer = new_trainer(folder, dtype=dtype, ranks=ranks, **options)
    with plain() if trainer.config.plain else contextlib.nullcontext():
        losses = [trainer.train_step() for _ in range(4)]
    loss = mean_loss(trainer.model, *trainer.validation, 3, ranks)
    return ranks.all_gather((trainer.flat.data.tolist(), losses, loss))


# Muon lifts the small directions of a gradient, and its rounding with them
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize("options", [{}, {"plain": True}, {"accumulate": 2, "optimizer": "sgd"}])
def test_ranks_learn_what_one_process_learns(tmp_path, options, dtype, tolerance):
    """Five windows among two or three ranks do not come out even."""
    options = {"dropout": 0.0, "batch_size": 10, "learning_rate": 1e-3, **options}
    alone = run(1, train, tmp_path, dtype, options)[0]
    for size in SIZES[1:]:
        every = run(size, train, tmp_path, dtype, options)
        assert all(one == every[0] for one in every)  # to the last bit
        for got, expected in zip(every[0], alone, strict=True):
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def masks(ranks, folder):
    """The gradient of one step whose gradient depends on what was dropped, before it is added up"""
    trainer = new_trainer(folder, ranks=ranks, dropout=0.5, batch_size=2)
    trainer.stream.batch = lambda n: (np.tile(IDS[:8], (n, 1)), np.tile(IDS[1:9], (n, 1)))
    own, trainer.ranks = ranks, Split(ranks)
    trainer.train_step()
    return own.all_gather(trainer.ranks.seen)


class Split(Alone):
    """Ranks as they are, that do not add up."""

    def __init__(self, ranks):
        self.rank, self.size = ranks.rank, ranks.size

    def all_reduce(self, vector):
        self.seen = vector.tolist()


def test_ranks_drop_different_units_the_same_every_time(tmp_path):
    first, second = run(2, masks, tmp_path), run(2, masks, tmp_path)
    assert first == second and first[0] != first[1]


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_of_two_ranks_is_the_undisturbed_one_bit_for_bit(tmp_path, stop):
    ends = []
    for folder, stops in (("whole", [99]), ("halves", [stop, 99])):
        (tmp_path / folder).mkdir()
        for at in stops:
            run(2, go, tmp_path / folder, at)
        ends.append(files(new_trainer(tmp_path / folder)))
    assert ends[0] == ends[1] and len(ends[0][0]) == 2


def go(ranks, folder, stop, **options):
    """A run that ends after step `stop` or at its end; it continues what is in the folder."""
    trainer = new_trainer(folder, ranks=ranks, **options)
    saved = trainer.out / "last.safetensors"
    ranks.barrier()
    if saved.exists():
        trainer.restore(*checkpoint.load(saved))
    ranks.barrier()
    step = trainer.train_step

    def stopping():
        step()
        trainer.stopped = ranks.rank == 0 and trainer.step == stop  # as Ctrl-C would, on rank 0

    trainer.train_step = stopping
    trainer.run()


def timed(ranks, folder):
    """A run of 3 s by a clock that is another one on each rank."""
    clock = itertools.count(0, 0.1 + ranks.rank)
    trainer = new_trainer(folder, ranks=ranks, steps=None, minutes=0.05)
    with mock.patch("minigpt.training.trainer.time.perf_counter", lambda: next(clock)):
        trainer.run()
    return ranks.all_gather((trainer.step, trainer.flat.data.tolist()))


def test_ranks_agree_on_how_many_steps_fit(tmp_path):
    first, second = run(2, timed, tmp_path)
    assert first == second and first[0] == 30  # by rank 0's clock


def waiting(ranks, folder):
    """A run that finds no new best once the rate has begun to fall."""
    trainer = new_trainer(
        folder, ranks=ranks, steps=50, eval_every=1, patience=2, learning_rate=1e-9
    )
    trainer.run()
    return ranks.all_gather((trainer.step, trainer.stale))


def test_ranks_agree_on_when_patience_is_at_its_end(tmp_path):
    first, second = run(2, waiting, tmp_path)
    assert first == second and 21 < first[0] < 50 and first[1] == 2


def fail(ranks, how):
    """Rank 1 does not come back from its second step."""
    ranks.barrier()
    if ranks.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("no room for 7 GB") if how == "error" else SystemExit(3)
    ranks.all_gather(None)
    ranks.all_gather(None)


@pytest.mark.parametrize(
    "how, said", [("killed", "has died"), ("exit", "has died"), ("error", "no room for 7 GB")]
)
def test_a_rank_that_dies_or_fails_ends_the_run_with_one_line(how, said, capfd):
    with pytest.raises(ChildProcessError) as caught:
        run(3, fail, how)
    message = str(caught.value)
    assert message.startswith("workers: rank 1: ") and said in message and "\n" not in message
    assert not ranks_of(os.getpid())
    assert capfd.readouterr().err == ""


def miss_the_memory(ranks):
    if ranks.rank:
        raise SystemExit(3)
    ranks.zeros(100, np.float32)


def test_a_rank_that_dies_while_memory_is_shared_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(Path("/dev/shm").glob("minigpt-*"))
    with pytest.raises(ChildProcessError, match="has died"):
        run(2, miss_the_memory)
    assert set(Path("/dev/shm").glob("minigpt-*")) == before and not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs Linux's files without a name")
def test_memory_for_the_gradients_has_no_name_that_could_be_left_behind():
    before = set(Path("/dev/shm").iterdir())
    path, done = parallel.scratch(bytes(10), 3)
    assert set(Path("/dev/shm").iterdir()) == before and Path(path).read_bytes() == bytes(30)
    done()
    assert not Path(path).exists()


@pytest.mark.skipif(os.name == "nt", reason="there os.kill(SIGINT) ends the process")
def test_ctrl_c_while_ranks_start_comes_right_after():
    reached, end = [], threading.Event()
    other = threading.Thread(target=end.wait)  # BLAS and tqdm have such: one may get the signal
    other.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            with processes._ctrl_c_waits():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
                reached.append(True)
        assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        end.set()
        other.join()


def test_a_rank_that_cannot_start_is_told_and_the_others_end(monkeypatch):
    start, started = multiprocessing.get_context("spawn").Process.start, []

    def second_fails(process):
        if started:
            raise OSError(errno.EMFILE, "Too many open files")
        started.append(start(process))

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", second_fails)
    with pytest.raises(OSError, match="Too many open files"):
        run(3, sums)
    assert started and not multiprocessing.active_children()


def raise_everywhere(ranks):
    raise FloatingPointError("on every rank")


def test_an_error_of_all_ranks_is_that_of_rank_0(capfd):
    with pytest.raises(FloatingPointError, match="^on every rank$"):
        run(3, raise_everywhere)
    assert not ranks_of(os.getpid()) and capfd.readouterr().err == ""


def ranks_of(pid):
    """The ranks that a process has started and that live."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def gone(pids, seconds=10):
    """Whether all these processes end within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def training(tmp_path):
    """train.py with three ranks, in a process group of its own, after its first checkpoint."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over a lazy dog " * 300)
    words = (
        "--data text.txt --out run --workers 3 --n-layer 1 --n-embd 16 --n-head 2 --eval-every 5"
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words.split(), "--steps", "100000"],
        cwd=tmp_path, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "log.csv").exists() and time.monotonic() < end:
        time.sleep(0.02)
    ranks = ranks_of(process.pid)
    yield process, ranks
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at Linux's /proc")
class TestNoOrphan:
    def test_ctrl_c_ends_all_ranks_and_saves(self, training):
        process, ranks = training
        assert len(ranks) == 2
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        out, err = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGINT and err == ""
        assert "continue: python train.py --resume --out run" in out.splitlines()[-1]
        assert gone(ranks)

    def test_a_killed_rank_ends_the_others_and_is_told_in_one_line(self, training):
        process, ranks = training
        os.kill(ranks[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 2 and err.count("\n") == 1
        assert "has died" in err and "--resume" in err and gone(ranks)

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
    def test_when_rank_0_dies_the_others_end(self, training, how):
        process, ranks = training
        os.kill(process.pid, how)
        process.communicate(timeout=30)
        assert gone(ranks)


def test_memory_for_the_gradients_comes_from_the_disk_when_there_is_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make = tempfile.mkstemp

    def full(prefix, dir):
        if dir == "/dev/shm":
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)  # a system whose files all have names
    path, done = parallel.scratch(bytes(10), 3)
    assert Path(path).parent == tmp_path and Path(path).read_bytes() == bytes(30)
    done()
    assert not Path(path).exists()
    monkeypatch.setattr(tempfile, "mkstemp", lambda prefix, dir: full(prefix, "/dev/shm"))
    with pytest.raises(OSError, match="^workers: no room for 30 bytes in .* use --workers 1$"):
        parallel.scratch(bytes(10), 3)


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, 4),
        ({"siblings": ["0,2", "1,3", "0,2", "1,3"]}, 2),
        ({"quota": "max 100000\n"}, 4),
        ({"quota": "150000 100000\n"}, 1),
        ({"siblings": ["0", "1", "2", "3"], "quota": "300000 100000"}, 3),
    ],
)
def test_cores_are_those_that_the_process_may_use(files, cores, monkeypatch):
    def read(path):
        if path.name == "cpu.max" and "quota" in files:
            return files["quota"]
        if path.name == "thread_siblings_list" and "siblings" in files:
            return files["siblings"][int(path.parts[5].removeprefix("cpu"))]
        raise FileNotFoundError

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(Path, "read_text", read)
    assert processes.physical_cores() == cores


@pytest.mark.parametrize(
    "options, cores, expected",
    [
        ({}, 16, 8),  # as many as windows
        ({"batch_size": 64, "block_size": 16}, 16, 8),  # 1,024 tokens: each rank gets 128
        ({}, 2, 2),
        ({"batch_size": 2, "block_size": 1024}, 8, 2),
        ({"n_layer": 1, "n_embd": 32}, 8, 1),  # a step of 2 ms would wait 1 ms
        ({"accumulate": 8}, 8, 1),  # one window at a time
        ({"steps": 20}, 8, 1),  # over before the others have started
        ({"workers": 3}, 8, 3),
    ],
)
def test_workers_are_as_many_as_cores_where_that_pays(options, cores, expected, monkeypatch):
    monkeypatch.setattr(processes, "physical_cores", lambda: cores)
    c = Config(**options)
    shape = GPTConfig(65, c.block_size, c.n_layer, c.n_head, c.n_embd)
    model = model_class(c.model)(shape, np.random.default_rng(0))
    assert processes.how_many(c, model) == expected
