"""What differs on Windows and macOS, played on this system: none of it has run on a real one."""

import _pyio
import errno
import io
import math
import mmap
import multiprocessing
import os
import runpy
import signal
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
from test_folder import ROOT, TEXT, TINY, contents, place, trained

import sample
import train
from minigpt import drawing, files, messages
from minigpt.datasets import large, signals, text
from minigpt.files import in_order, write_whole
from minigpt.training import costs, folder, parallel, processes, stopping
from minigpt.training import trainer as loop

run = place  # the fixture, by a name that hides no import


# files in use


class InUse:
    """os.replace or os.remove of Windows, where another program has the file open for some calls"""

    def __init__(self, change, calls):
        self.change, self.left = change, calls

    def __call__(self, *paths):
        self.left -= 1
        if self.left >= 0:
            raise PermissionError(errno.EACCES, "Access is denied", *paths)
        return self.change(*paths)


@pytest.fixture
def windows(monkeypatch):
    """Windows as files, messages and parallel know it, and a clock that sleep alone moves."""
    now = [0.0]
    for module in files, messages, parallel:
        monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(files.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))


def test_a_file_that_another_program_has_open_is_replaced_when_it_lets_go(
    tmp_path, monkeypatch, windows
):
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", InUse(os.replace, 3))
    write_whole(tmp_path / "a", b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"new"]


def test_a_file_that_stays_open_stays_as_it_was_and_nothing_lies_beside_it(
    tmp_path, monkeypatch, windows
):
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", InUse(os.replace, math.inf))
    with pytest.raises(PermissionError, match="Access is denied"):
        write_whole(tmp_path / "a", b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]
    assert files.PATIENCE <= time.monotonic() < files.PATIENCE + 1


def test_where_a_file_in_use_can_be_replaced_a_refusal_counts_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", InUse(os.replace, 1))
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "a", b"new")
    assert not list(tmp_path.iterdir())


def test_a_run_is_set_aside_and_forgotten_although_its_files_are_looked_at(
    tmp_path, monkeypatch, windows
):
    for name in folder.FILES:
        (tmp_path / name).write_bytes(name.encode())
    for name in "replace", "remove":
        monkeypatch.setattr(os, name, InUse(getattr(os, name), 2))
    folder.set_aside(tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert kept == {name + folder.ASIDE: name.encode() for name in folder.FILES}
    folder.forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_ids_that_a_run_has_mapped_are_told_with_what_to_do(tmp_path, monkeypatch):
    class Learned:
        vocab_size = 2

        def config(self):
            return {}

        def encode(self, part):
            return np.zeros(len(part), np.int32)

    monkeypatch.setattr(large, "LARGE", 100)
    monkeypatch.setattr(large, "pieces", lambda *_: iter(["ab " * 200]))
    monkeypatch.setattr(os, "replace", InUse(os.replace, math.inf))
    with pytest.raises(OSError, match=r"\.ids: .*Access is denied.*end the run that reads the ids"):
        large.encode(["a"], tmp_path, tmp_path / "a.ids", lambda *_: Learned())


@pytest.mark.parametrize("able", [True, False])
def test_on_macos_what_was_written_leaves_the_memory_of_the_drive_if_the_disk_is_able(
    tmp_path, monkeypatch, able
):
    fcntl, full, plain = pytest.importorskip("fcntl"), [], []

    def ask(descriptor, command):
        full.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), command))
        if not able:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", ask)
    monkeypatch.setattr(os, "fsync", plain.append)
    write_whole(tmp_path / "a", b"new")
    assert full == [(False, 51), (True, 51)]  # the file, and then its folder
    assert len(plain) == (0 if able else 2)


def test_without_locks_a_folder_can_be_claimed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # the import fails
    with folder.claimed(tmp_path / "run", create=True):
        (tmp_path / "run/last.safetensors").touch()
        with folder.claimed(tmp_path / "run", create=True):
            pass
    assert (tmp_path / "run/last.safetensors").exists()


# the same data and the same files everywhere


def test_the_order_of_files_depends_on_the_case_of_letters_on_windows_too():
    paths = [PureWindowsPath("t", name) for name in ("a", "__init__", "B", "Z")]
    assert [path.name for path in in_order(paths)] == sorted(["a", "__init__", "B", "Z"])
    assert [path.name for path in sorted(paths)] != sorted(["a", "__init__", "B", "Z"])


def test_what_windows_marks_as_hidden_is_left_out(tmp_path, monkeypatch):
    for name in "one", "two":
        (tmp_path / name).mkdir()
        for file in "desktop.ini", "a.npy":
            (tmp_path / name / file).write_text(name)
    lstat = Path.lstat

    def marked(path):
        hidden = stat.FILE_ATTRIBUTE_HIDDEN if path.name == "desktop.ini" else 0
        return SimpleNamespace(st_mode=lstat(path).st_mode, st_file_attributes=hidden)

    monkeypatch.setattr(Path, "lstat", marked)
    left = [str(tmp_path / "one/a.npy"), str(tmp_path / "two/a.npy")]
    assert text.listed([str(tmp_path)]) == left
    assert [str(path) for path in signals.inside(tmp_path)] == left


def test_log_and_samples_have_the_same_line_ends_everywhere(run, monkeypatch):
    def opened(*given, **named):  # Python's own text files, which ask os.linesep
        return _pyio.open(*given, **named)

    monkeypatch.setattr(os, "linesep", "\r\n")
    for module in loop, drawing:
        monkeypatch.setattr(module, "open", opened, raising=False)
    with opened("probe", "w", encoding="utf-8") as file:
        file.write("\n")
    assert Path("probe").read_bytes() == b"\r\n"  # as Windows does
    trained("--steps", "4")
    for name in "log.csv", "samples.txt":
        written = Path("run", name).read_bytes()
        assert written.count(b"\n") > 1 and b"\r" not in written


# memory, cores and signals


class Named(bytearray):
    """Memory with a name, as Windows' mmap gives it"""

    closed = False

    def close(self):
        self.closed = True


def gathered(ranks):
    row = ranks.zeros(6, np.float32)
    assert not row.any()
    row[:] = np.arange(6) + ranks.rank
    ranks.all_reduce(row)
    return row.tolist()


def test_on_windows_gradients_lie_in_memory_with_a_name_and_in_no_file(monkeypatch, windows):
    made = {}
    monkeypatch.setattr(mmap, "mmap", lambda handle, n, tag: made.setdefault((tag, n), Named(n)))
    monkeypatch.setattr(tempfile, "mkstemp", None)
    one, other = multiprocessing.Pipe()
    with ThreadPoolExecutor() as pool:
        ranks = [parallel.Process(0, 2, [one]), parallel.Process(1, 2, [other])]
        sums = list(pool.map(gathered, ranks))
    assert sums == [[2.0 * i + 1 for i in range(6)]] * 2
    ((_, size),) = made  # one piece of memory, of two rows
    assert size == 2 * 6 * 4 and all(memory.closed for memory in made.values())


def test_no_room_for_memory_with_a_name_is_told_in_one_line(monkeypatch, windows):
    def none_left(*_):
        raise OSError(errno.ENOMEM, "The paging file is too small")

    monkeypatch.setattr(mmap, "mmap", none_left)
    with pytest.raises(OSError, match="^workers: no room for 30 bytes in memory; use --workers 1$"):
        parallel.scratch(bytes(10), 3)


def threads_of_accelerate(ranks):
    return ranks.all_gather(os.environ.get("VECLIB_MAXIMUM_THREADS"))


@pytest.mark.parametrize("given", [None, "7"])
def test_new_processes_get_their_share_of_accelerates_threads(monkeypatch, given):
    monkeypatch.delenv("VECLIB_MAXIMUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("VECLIB_MAXIMUM_THREADS", given)
    monkeypatch.setattr(processes, "physical_cores", lambda: 6)
    assert processes.run(2, threads_of_accelerate) == [given, given or "3"]
    assert os.environ.get("VECLIB_MAXIMUM_THREADS") == given


def test_where_the_system_says_nothing_of_cores_and_memory_pythons_count_is_taken(monkeypatch):
    def nothing(path, *_):
        raise FileNotFoundError(path)

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(Path, "read_text", nothing)
    assert processes.physical_cores() == 5
    assert costs.room() == math.inf and costs.most_so_far() == 0


def test_ctrl_c_while_rank_0_waits_for_another_is_not_taken_for_its_death():
    calls = []

    def recv():
        calls.append(True)
        if len(calls) == 1:  # as on Windows, after the handler of Ctrl-C
            raise InterruptedError(errno.EINTR, "Interrupted function call")
        return "of rank 1"

    pipe = SimpleNamespace(recv=recv, send=calls.append)
    assert parallel.Process(0, 2, [pipe]).all_gather("of rank 0") == ["of rank 0", "of rank 1"]


def test_ctrl_break_stops_a_run_on_windows_which_has_no_sighup(monkeypatch):
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    names = runpy.run_path(stopping.__file__)
    assert names["SIGNALS"] == [signal.SIGINT, signal.SIGTERM, 21]


# what is printed


class Closed(io.StringIO):
    """Standard output of Windows whose reader has ended"""

    def flush(self):
        raise OSError(errno.EINVAL, "Invalid argument")


def test_on_windows_a_write_that_fails_as_in_a_closed_pipe_is_one_if_the_output_is_closed(
    monkeypatch, windows
):
    strange = OSError(errno.EINVAL, "Invalid argument")
    assert not messages.nobody_reads(strange)  # of something else: the output can be written
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert messages.nobody_reads(strange)
        assert not messages.nobody_reads(OSError(errno.ENOSPC, "No space left on device"))
        assert not messages.nobody_reads(ValueError("of another kind"))
    assert messages.nobody_reads(BrokenPipeError())


def test_elsewhere_a_wrong_argument_is_no_closed_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Closed())
    assert not messages.nobody_reads(OSError(errno.EINVAL, "Invalid argument"))


def test_on_windows_a_closed_pipe_ends_train_py_without_a_word(monkeypatch, windows, capsys):
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(OSError, match="Invalid argument"):  # command() ends in silence then
        train.main(["--dry-run"])
    ended = []
    monkeypatch.setattr(train, "main", lambda: messages.say("", ""))
    monkeypatch.setattr(os, "_exit", ended.append)
    train.command()
    assert ended == [0] and capsys.readouterr().err == ""


def test_on_windows_a_closed_pipe_is_no_mistake_of_the_user_of_sample_py(monkeypatch, windows):
    def write(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sample, "load", write)
    with pytest.raises(OSError, match="Invalid argument"):  # and no exit code 2
        sample.main(["run"])


def test_on_windows_a_run_whose_output_nobody_reads_says_what_to_do(tmp_path, monkeypatch, windows):
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(OSError, match="^nobody reads the output any more; nothing was saved$"):
        folder.failed(tmp_path, OSError(errno.EINVAL, "Invalid argument"))


@pytest.mark.parametrize("word", ["out\\manual-gpt", "C:\\runs\\2", "out/a+b-gpt"])
def test_a_plain_path_of_windows_needs_no_quotes(windows, word):
    assert messages.quoted(word) == word


@pytest.mark.parametrize("word", ["my runs\\one", "three hundred and ten", "R&D", "it's", "50%"])
def test_words_for_windows_shells_stand_in_double_quotes(windows, word):
    assert messages.quoted(word) == f'"{word}"'


def test_a_list_of_runs_shows_a_name_that_the_output_cannot_spell(tmp_path):
    (tmp_path / "out/红楼梦-gpt").mkdir(parents=True)
    (tmp_path / "out/红楼梦-gpt/last.safetensors").write_bytes(b"no checkpoint")
    done = subprocess.run(
        [sys.executable, "-m", "minigpt"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 0 and b"???-gpt" in done.stdout and done.stderr == b""


# all at once

LACKING = """
import os, signal, sys

if "lacking" in sys.argv:  # in every process, as each runs this file
    sys.modules["fcntl"] = None
    for module, names in (
        (os, "O_TMPFILE sched_getaffinity sysconf"),
        (signal, "SIGHUP pthread_sigmask"),
    ):
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)

import train

if __name__ == "__main__":
    train.main([word for word in sys.argv[1:] if word != "lacking"])
"""


@pytest.mark.slow
def test_a_run_of_two_processes_needs_nothing_that_windows_or_macos_lack(tmp_path):
    Path(tmp_path, "text.txt").write_text(TEXT)
    Path(tmp_path, "run.py").write_text(LACKING)
    words = ["--data", "text.txt", *TINY, "--steps", "4", "--workers", "2"]

    def ended(*more):
        command = [sys.executable, "run.py", *words, *more]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)

    ended("--out", "whole")
    whole = contents(tmp_path / "whole")
    for more in ["lacking"], ["lacking", "--overwrite"]:
        ended("--out", "run", *more)
        found = contents(tmp_path / "run")
        assert found.keys() == whole.keys()
        for name in "best.safetensors", "last.safetensors":
            assert found[name] == whole[name]
