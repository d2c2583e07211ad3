"""A run's folder: what happens if a run is replaced, killed, started twice, or told to stop."""

import errno
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import sample
import train
from minigpt.applications.writing import Writing
from minigpt.training import checkpoint, folder, stopping, strangers
from minigpt.training.checkpoint import CheckpointError, read_about
from minigpt.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the quick brown fox jumps over the lazy dog. " * 40
TINY = "--n-layer 1 --n-embd 16 --n-head 2 --block-size 16 --workers 1 --eval-every 2".split()
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals and locks")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "CACHE", tmp_path / "cache")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def trained(*words, out="run"):
    train.main(["--data", "text.txt", "--out", out, *TINY, *words])


def contents(run):
    return {file.name: file.read_bytes() for file in sorted(Path(run).iterdir())}


class Killed(BaseException):
    """The end of the process, as far as its files are concerned."""


@contextmanager
def killed(monkeypatch, module, name, call):
    """Within the block the call-th use of a function of this name ends the process."""
    real, calls = getattr(module, name), []

    def dying(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return real(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, dying)
        patch.setattr(folder, "bring_back", lambda out: None)  # nobody is left to do it
        yield


# --overwrite


@pytest.mark.parametrize("call", range(1, 8))
def test_a_run_that_is_being_replaced_is_whole_until_the_new_one_has_saved(
    place, monkeypatch, call
):
    trained("--steps", "4")
    old = contents("run")
    with killed(monkeypatch, os, "replace", call):
        trained("--steps", "4", "--seed", "2", "--overwrite")
    now = contents("run")
    kept = {name.removesuffix(folder.ASIDE): data for name, data in now.items()}
    for name in ("last.safetensors", "best.safetensors"):
        files = [n for n in (name, name + folder.ASIDE) if now.get(n) == old[name]]
        assert files, f"{name} of the old run is lost"
    if "last.safetensors" in now:  # then nothing of the new run lies beside it
        assert now["last.safetensors"] == old["last.safetensors"]
        if "best.safetensors" in now:
            assert now["best.safetensors"] == old["best.safetensors"]
    assert {*old} <= {*kept}


def test_the_old_run_goes_when_the_new_one_has_saved_and_other_files_stay(place):
    trained("--steps", "4")
    Path("run/notes.txt").write_text("mine")
    trained("--steps", "2", "--seed", "2", "--overwrite")
    assert not list(Path("run").glob(f"*{folder.ASIDE}"))
    assert Path("run/notes.txt").read_text() == "mine"
    assert Path("run/log.csv").read_text().count("\n") == 2
    assert len(Path("run/samples.txt").read_text().splitlines()) == 2


def test_a_missing_checkpoint_names_the_one_that_was_set_aside(place, capsys):
    trained("--steps", "2")
    for name in folder.FILES:
        os.replace(f"run/{name}", f"run/{name}{folder.ASIDE}")
    with pytest.raises(SystemExit):
        sample.main(["run"])
    assert "--resume brings it back" in capsys.readouterr().err
    train.main("--resume --out run --steps 3".split())
    assert "the run that --overwrite was replacing is back" in capsys.readouterr().out
    assert not list(Path("run").glob(f"*{folder.ASIDE}"))
    assert Path("run/log.csv").read_text().count("\n") == 3


def test_the_best_of_a_run_that_was_brought_back_stays(place, monkeypatch):
    trained("--steps", "4")
    best = contents("run")["best.safetensors"]
    with killed(monkeypatch, os, "replace", 6):
        trained("--steps", "4", "--seed", "2", "--overwrite")
    monkeypatch.setattr(Trainer, "evaluate", lambda self: None)  # no validation is better
    with pytest.raises(SystemExit):  # one more step, whose end would be a validation
        train.main("--resume --out run --steps 5 --data text.txt --seed 3".split())
    train.main("--resume --out run --steps 5 --data text.txt".split())
    assert contents("run")["best.safetensors"] == best


def test_a_run_stopped_before_its_first_validation_replaces_the_old_one_and_goes_on(
    place, monkeypatch
):
    trained("--steps", "4")
    step = Trainer.train_step

    def stopping_at_once(self):
        step(self)
        self.stopped = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping_at_once)
        trained("--steps", "4", "--seed", "2", "--overwrite")
    assert {*contents("run")} == {"last.safetensors"}
    train.main("--resume --out run".split())
    assert read_about("run/last.safetensors")["state"]["step"] == 4


def test_a_signal_before_the_first_step_leaves_the_old_run(place, monkeypatch):
    trained("--steps", "4")
    old = contents("run")

    def asked(self, *_):
        self.stopped = signal.SIGTERM

    with monkeypatch.context() as patch, pytest.raises(stopping.Stop) as stop:
        patch.setattr(Writing, "sample", lambda self, trainer: asked(trainer))
        trained("--steps", "4", "--seed", "2", "--overwrite")
    assert stop.value.number == signal.SIGTERM and contents("run") == old


def test_a_step_that_a_dead_rank_has_cut_short_is_not_saved(place, monkeypatch, capsys):
    def dying(self):
        self.step, self.stopped = self.step + 1, signal.SIGTERM
        raise ChildProcessError("workers: rank 1: has died")

    monkeypatch.setattr(Trainer, "train_step", dying)
    with pytest.raises(SystemExit):
        trained("--steps", "4")
    assert "has died" in capsys.readouterr().err and not Path("run").exists()


def test_three_killed_runs_in_a_row_leave_one_whole_run(place, monkeypatch):
    trained("--steps", "4")
    with killed(monkeypatch, folder, "forget", 1):  # `last` and `best` lie beside the old ones
        trained("--steps", "4", "--seed", "2", "--overwrite")
    second = contents("run")["last.safetensors"]
    for call in (1, 2, 3):
        with killed(monkeypatch, os, "replace", call):
            trained("--steps", "4", "--seed", "3", "--overwrite")
        train.main("--resume --out run --steps 4".split())
        last, best = (read_about(f"run/{n}.safetensors") for n in ("last", "best"))
        strangers.same_run("run", best, last)
    assert second


def test_what_a_killed_run_had_replaced_goes_when_it_is_resumed(place, monkeypatch):
    trained("--steps", "4")
    with killed(monkeypatch, folder, "forget", 2):  # the first is set_aside's
        trained("--steps", "4", "--seed", "2", "--overwrite")
    assert {"last.safetensors", f"last.safetensors{folder.ASIDE}"} <= contents("run").keys()
    train.main("--resume --out run".split())
    assert not list(Path("run").glob(f"*{folder.ASIDE}"))
    assert read_about("run/last.safetensors")["config"]["seed"] == 2


def test_what_an_overwriting_run_had_set_aside_survives_the_next_one(place, monkeypatch):
    trained("--steps", "4")
    old = contents("run")
    with killed(monkeypatch, os, "replace", 7):  # five files are aside, `best` saved, `last` not
        trained("--steps", "4", "--seed", "2", "--overwrite")
    assert {*contents("run")} > {"best.safetensors"} and "last.safetensors" not in contents("run")
    with killed(monkeypatch, os, "replace", 1):
        trained("--steps", "4", "--seed", "3", "--overwrite")
    assert contents("run") == {name + folder.ASIDE: data for name, data in old.items()}


def test_checkpoints_of_two_runs_in_one_folder_are_refused(place, capsys):
    trained("--steps", "4")
    trained("--steps", "4", "--seed", "2", out="other")
    shutil.copy("other/best.safetensors", "run")
    with pytest.raises(CheckpointError, match="of two different runs; move one"):
        strangers.same_run("run", *(read_about(f"run/{n}.safetensors") for n in ("best", "last")))
    for command in (sample.main, ["run"]), (train.main, "--resume --steps 6 --out run".split()):
        with pytest.raises(SystemExit):
            command[0](command[1])
        assert "of two different runs" in capsys.readouterr().err


def test_a_run_has_the_same_identity_wherever_and_however_long_it_trains(place):
    trained("--steps", "2")
    trained("--steps", "4", out="longer")
    trained("--steps", "2", "--seed", "2", out="other")
    a, b, c = (read_about(f"{run}/last.safetensors")["run"] for run in ("run", "longer", "other"))
    assert a == b != c


# two runs in one folder


@POSIX
def test_a_second_run_in_a_folder_is_refused_and_leaves_nothing(place, capsys):
    with folder.claimed("run", create=True):
        for words in ([], ["--overwrite"]):
            with pytest.raises(SystemExit):
                trained("--steps", "2", *words)
            assert "another run is writing here; wait" in capsys.readouterr().err
        assert not list(Path("run").iterdir())
    assert not Path("run").exists()
    trained("--steps", "2")


@POSIX
def test_resuming_needs_the_lock_too(place, capsys):
    trained("--steps", "2")
    before = contents("run")
    with folder.claimed("run", create=False), pytest.raises(SystemExit):
        train.main("--resume --steps 4 --out run".split())
    assert "another run is writing here" in capsys.readouterr().err
    assert contents("run") == before


def test_a_folder_that_cannot_be_locked_is_said_and_used(place, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def cannot(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", cannot)
    trained("--steps", "2")
    assert "start no second run in this folder" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--steps", "2", "--data", "missing.txt"], ["--n-embd", "15"]])
def test_a_folder_in_which_nothing_was_saved_goes_and_one_that_was_there_stays(place, words):
    Path("mine").mkdir()
    for out in ("new/folder", "mine"):
        with pytest.raises(SystemExit):
            train.main(["--data", "text.txt", "--out", out, *TINY, *words])
    assert not Path("new/folder").exists() and Path("mine").exists()


# leftovers


def test_what_a_killed_run_has_left_half_written_goes_and_a_users_file_stays(place):
    trained("--steps", "2")
    left, mine = Path("run/last.safetensors.0123abcd.part"), Path("run/last.safetensors.old")
    probe, inside = Path("run/probe.safetensors"), Path("run/best.safetensors.0123abcd.part")
    for file in (left, mine, probe):
        file.write_text("x")
    inside.mkdir()
    trained("--steps", "2", "--overwrite")
    assert not left.exists() and mine.exists() and probe.exists() and inside.is_dir()


# log.csv


@pytest.mark.parametrize("damage", ["lost", "half", "ahead", "gone"])
def test_a_resumed_run_has_the_log_of_the_undisturbed_one(place, damage):
    trained("--steps", "6", out="whole")
    trained("--steps", "4")
    log = Path("run/log.csv")
    lines = log.read_text().splitlines(keepends=True)
    if damage == "lost":
        log.write_text("".join(lines[:-1]))
    elif damage == "half":
        log.write_text("".join(lines[:-1]) + lines[-1][:9])
    elif damage == "ahead":
        log.write_text("".join(lines) + "6,1.0,1.0,1,1.0\n8,1.0,1.0,1,1.0\n")
    else:
        log.unlink()
    with open("run/samples.txt", "a") as file:
        file.write("step 6\t1 s\tof a run that was killed\nstep 8\t")
    train.main("--resume --steps 6 --out run".split())

    def without_seconds(file):
        return [line.rpartition(",")[0] for line in Path(file).read_text().splitlines()]

    assert without_seconds("run/log.csv") == without_seconds("whole/log.csv")
    steps = [line.split("\t")[0] for line in Path("run/samples.txt").read_text().splitlines()]
    assert steps == ["step 0", "step 2", "step 4", "step 6"]
    assert "of a run that was killed" not in Path("run/samples.txt").read_text()


# signals


def as_in_a_terminal():
    """Undo what nohup, or a shell in the background, has told this process to ignore."""
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def started(place, *words, prepare=as_in_a_terminal):
    """train.py in a process of its own, which has reached its first checkpoint."""
    command = [sys.executable, ROOT / "train.py", "--data", "text.txt", "--out", "run", *TINY]
    process = subprocess.Popen(
        [*map(str, command), "--steps", "1000000", *words], cwd=place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=prepare,
    )  # fmt: skip
    end = time.monotonic() + 60
    while process.poll() is None and not (place / "run/log.csv").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


CLOSED = threading.Event()


def drain(master):
    """Read what is written to a terminal until it is to be closed, and close it."""
    while not CLOSED.is_set():
        if select.select([master], [], [], 0.05)[0]:
            os.read(master, 4096)
    os.close(master)


def hang_up(master):
    CLOSED.set()
    time.sleep(0.2)
    CLOSED.clear()


@POSIX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_ends_a_run_after_saving_and_as_the_signal_would_have(place, name, workers):
    number = getattr(signal, name)
    process = started(place, "--workers", workers, "--batch-size", "8")
    os.killpg(process.pid, number)  # a terminal and a batch system send it to all processes
    out, err = process.communicate(timeout=60)
    assert process.returncode == -number and err == ""
    assert "continue: python train.py --resume --out run" in out.splitlines()[-1]
    about = read_about(place / "run/last.safetensors")
    assert f"stopped after step {about['state']['step']};" in out


@POSIX
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_closed_terminal_saves_and_ends_as_sighup(place, workers):
    import pty

    master, slave = pty.openpty()
    words = [*TINY, "--steps", "1000000", "--workers", workers, "--batch-size", "8"]
    words += ["--data", "text.txt", "--out", "run"]
    code = f"""
import fcntl, os, signal, sys, termios
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, {str(ROOT / "train.py")!r}, *{words!r}])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=place, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    reader = threading.Thread(target=drain, args=(master,), daemon=True)
    reader.start()
    end = time.monotonic() + 60
    while not (place / "run/log.csv").exists() and time.monotonic() < end:
        time.sleep(0.02)
    hang_up(master)
    assert process.wait(60) == -signal.SIGHUP
    logged = (place / "run/log.csv").read_text().splitlines()[-1].split(",")[0]
    assert read_about(place / "run/last.safetensors")["state"]["step"] >= int(logged)


@POSIX
def test_a_shell_does_not_go_on_after_ctrl_c(place):
    command = f"{sys.executable} {ROOT / 'train.py'} --data text.txt --out run --steps 1000000 "
    script = command + " ".join(TINY) + "; echo $?; echo next"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=place,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    end = time.monotonic() + 60
    while not (place / "run/log.csv").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "stopped after step" in out and "next" not in out


@POSIX
def test_a_signal_that_nohup_lets_be_ignored_stays_ignored(place):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = started(place, prepare=ignore)
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_handlers_come_back_and_are_left_alone_in_another_thread():
    before, seen = [signal.getsignal(n) for n in stopping.SIGNALS], []

    def inside():
        with stopping.heeded(seen.append):
            seen.append([signal.getsignal(n) for n in stopping.SIGNALS])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
    inside()
    assert seen[1] != before and [signal.getsignal(n) for n in stopping.SIGNALS] == before


@pytest.mark.parametrize("workers", ["1", "2"])
def test_training_works_outside_the_main_thread(place, workers):
    failed = []

    def work():
        try:
            trained("--steps", "2", "--workers", workers, "--batch-size", "8")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and Path("run/last.safetensors").exists()


def test_a_checkpoint_may_be_read_by_whoever_the_umask_allows(place):
    before = os.umask(0o022)
    try:
        checkpoint.save(place / "x.safetensors", {"a": np.zeros(3)}, {})
    finally:
        os.umask(before)
    if os.name == "posix":
        assert (place / "x.safetensors").stat().st_mode & 0o777 == 0o644


# errors in one line


def test_a_missing_best_checkpoint_is_said_as_that(place, monkeypatch, capsys):
    save = Trainer.save
    monkeypatch.setattr(
        Trainer, "save", lambda self, name, keep=True: name == "best" or save(self, name, keep)
    )
    with pytest.raises(SystemExit):
        trained("--steps", "2")
    assert (
        "best.safetensors: expected a checkpoint, found no file; the best of this run is missi"
        in (capsys.readouterr().err)
    )


def test_no_memory_while_saving_is_one_line(place, monkeypatch, capsys):
    trained("--steps", "2")
    before = contents("run")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(checkpoint, "checksum", fail)
    with pytest.raises(SystemExit):
        train.main("--resume --out run --steps 4".split())
    err = capsys.readouterr().err
    assert "no memory is left; --accumulate 2 halves" in err and err.count("\n") == 1
    assert contents("run") == before


def test_many_files_make_no_long_name(place):
    for i in range(30):
        Path(f"a_rather_long_name_of_a_file_{i}.txt").write_text(TEXT)
    files = sorted(map(str, Path().glob("a_rather*.txt")))
    train.main(["--data", *files, *TINY, "--steps", "2"])
    [run] = Path("out").iterdir()
    assert run.name.endswith("+28-more-gpt") and len(run.name) < 100


def test_a_folder_that_is_deleted_while_it_trains_is_told_in_one_line(place, monkeypatch, capsys):
    step = Trainer.train_step

    def deleting(self):
        step(self)
        shutil.rmtree("run", ignore_errors=True)

    monkeypatch.setattr(Trainer, "train_step", deleting)
    with pytest.raises(SystemExit):
        trained("--steps", "4")
    err = capsys.readouterr().err
    assert "run" in err and err.count("\n") == 1


@pytest.mark.parametrize("call", range(1, 14))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_at_any_write_ends_the_run_in_one_line_and_it_goes_on(
    place, monkeypatch, capsys, call, number
):
    trained("--steps", "6", out="whole")
    real, calls = open, []

    def failing(file, mode="r", *args, **options):
        if set(mode) & set("wax") and str(file).startswith("run"):
            calls.append(file)
            if len(calls) == call:
                raise OSError(number, os.strerror(number), str(file))
        return real(file, mode, *args, **options)

    failed = False
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        try:
            trained("--steps", "6")
        except SystemExit:
            failed = True
            assert capsys.readouterr().err.count("\n") == 1
    if failed and Path("run/last.safetensors").exists():
        train.main("--resume --out run".split())
    elif failed:  # the best alone may lie there
        assert not Path("run").exists() or {*contents("run")} == {"best.safetensors"}
        trained("--steps", "6", *["--overwrite"] * Path("run").exists())
    assert bare(Path("run")) == bare(Path("whole"))


@POSIX
def test_a_limit_on_the_size_of_files_is_told_in_one_line(place):
    import resource

    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    process = started(place, prepare=limit)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.count("\n") == 1 and "cannot save in run" in err
    assert not (place / "run").exists()


# kills at random moments


def bare(run):
    """What a run has learned: the bytes of its checkpoints, and its log without the seconds."""
    log = (run / "log.csv").read_text().splitlines()
    return [(run / f"{name}.safetensors").read_bytes() for name in ("last", "best")] + [
        [line.rpartition(",")[0] for line in log]
    ]


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(place, workers, replacing):
    """KILLS in the environment says how many; each run goes on until it was killed a few times."""
    words = ["--data", "text.txt", *TINY, "--steps", "60", "--workers", workers]
    command = [sys.executable, str(ROOT / "train.py"), *words, "--batch-size", "8", "--seed", "2"]

    def start(*more):
        return subprocess.Popen(
            [*command, *more], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    process = start("--out", "whole")
    begun = time.monotonic()
    process.communicate(timeout=120)
    longest = 1.2 * (time.monotonic() - begun)
    whole, rng = bare(place / "whole"), random.Random(f"{workers} {replacing}")
    for _ in range(int(os.environ.get("KILLS", 12)) // 4):
        shutil.rmtree(place / "run", ignore_errors=True)
        if replacing:
            trained("--steps", "4")
        old = bare(place / "run") if replacing else None
        last = place / "run/last.safetensors"
        for _ in range(100):
            mine = last.exists() and (not old or last.read_bytes() != old[0])
            resumes = mine and read_about(last)["config"]["seed"] == 2
            more = ["--resume"] if resumes else ["--overwrite"]
            process = start("--out", "run", *more)
            try:
                out, err = process.communicate(timeout=rng.uniform(0.05, longest))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                for file in (place / "run").glob("*.safetensors*"):
                    if not file.name.endswith(".part"):
                        checkpoint.load(file)  # every file is whole
                continue
            assert process.returncode == 0, (more, out, err)
            break
        assert bare(place / "run") == whole
        assert not list((place / "run").glob("*.part")) + list((place / "run").glob("*.before"))
