"""What a run of train.py needs fails: a folder of somebody else, a full disk, no memory."""

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_cli import child
from test_folder import POSIX, ROOT, TEXT, TINY, bare, contents

import train
from minigpt.training import folder
from minigpt.training.trainer import Trainer

pytestmark = pytest.mark.slow
WORDS = ["--data", "text.txt", *TINY, "--steps", "4", "--seed", "2"]
CREW = ["--workers", "2", "--batch-size", "8"]
NOBODY = 65534  # the user and group that own nothing, by custom
ROOT_ONLY = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="needs the right to become another user"
)
RAN = f"""
import os, sys
import train
from minigpt.training.trainer import Trainer
train.main([*{WORDS}, "--out", "whole", "--overwrite"])  # imports all: this
# Python may be one that the other user may not read
train_step = Trainer.train_step
def closing(self):
    train_step(self)
    if self.step == 3 and "closing" in sys.argv:
        os.chmod("run", 0o555)
Trainer.train_step = closing
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
train.main([word for word in sys.argv[1:] if word != "closing"])
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.chmod(tmp_path, 0o755)
    Path("text.txt").write_text(TEXT)
    return tmp_path


def as_nobody(*words):
    """The one line on stderr of train.py that another user has started; "" if it ended well."""
    done = child(RAN, *words)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == (2 if err else 0) and err.count("\n") <= 1, (out, err)
    return err


# a folder that is not yours


@ROOT_ONLY
@pytest.mark.parametrize("words", [[*WORDS, "--overwrite"], ["--resume", "--steps", "6"]])
@pytest.mark.parametrize("mode, says", [
    (0o755, "--out: cannot save in run: Permission denied; free space, or name another --out"),
    (0o700, "Permission denied: 'run"),
])  # fmt: skip
def test_a_folder_of_another_user_is_refused_in_one_line_and_stays(place, words, mode, says):
    train.main([*WORDS, "--out", "run"])
    before = contents("run")
    os.chmod("run", mode)
    assert says in as_nobody(*words, "--out", "run")
    assert contents("run") == before


@ROOT_ONLY
def test_a_checkpoint_that_you_may_not_read_is_named(place):
    train.main([*WORDS, "--out", "run"])
    os.chmod("run/last.safetensors", 0o600)
    error = as_nobody("--resume", "--out", "run", "--steps", "6")
    assert "Permission denied: 'run/last.safetensors'" in error.replace('"', "'")


@ROOT_ONLY
def test_a_folder_where_you_may_make_none_is_told_in_one_line(place):
    error = as_nobody(*WORDS, "--out", "run")
    assert "--out: cannot save in run: Permission denied" in error and not Path("run").exists()


@ROOT_ONLY
def test_a_folder_that_becomes_read_only_loses_nothing(place):
    Path("run").mkdir()
    os.chown("run", NOBODY, NOBODY)
    assert "Permission denied: 'run" in as_nobody(*WORDS, "--out", "run", "closing")
    os.chmod("run", 0o755)
    assert as_nobody("--resume", "--out", "run") == ""
    assert bare(Path("run")) == bare(Path("whole"))


# a disk without room


def beside(mounts, *words):
    """train.py with small disks of its own, mounts {folder: size}; skips where none are allowed."""
    mounted = [f"mount -t tmpfs -o size={size} tmpfs {at}" for at, size in mounts.items()]
    allowed = "unshare", "-m", "sh", "-c"
    script = " && ".join([*mounted, 'exec "$@"'])
    try:
        subprocess.run([*allowed, " && ".join(mounted)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk")
    command = [*allowed, script, "sh", sys.executable, str(ROOT / "train.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_small_dev_shm_is_enough_as_gradients_then_go_through_the_disk(place):
    train.main([*WORDS, *CREW, "--out", "whole"])
    done = beside({"/dev/shm": "64k"}, *WORDS, *CREW, "--out", "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert bare(Path("run")) == bare(Path("whole"))


def test_no_room_for_gradients_anywhere_is_told_in_one_line(place):
    Path("small").mkdir()
    mounts = {"/dev/shm": "64k", str(place / "small"): "64k"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(place / "small"))
        done = beside(mounts, *WORDS, *CREW, "--out", "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "use --workers 1" in done.stderr and not Path("run").exists()


def test_a_disk_that_fills_up_is_told_with_its_folder_and_what_to_do(place):
    """It holds `last` and `best`, but no third checkpoint beside them, as the next save needs."""
    train.main([*WORDS, "--out", "whole"])
    size = Path("whole/last.safetensors").stat().st_size
    Path("disk").mkdir()
    done = beside({str(place / "disk"): size * 5 // 2}, *WORDS, "--out", "disk/run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "disk/run: No space left on device; free space; --resume goes on" in done.stderr


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_full_disk_names_the_folder_and_says_whether_something_was_saved(tmp_path, name):
    error = OSError(getattr(errno, name), "no room")  # write() does not say which file
    for says in "nothing was saved", "--resume goes on from the last checkpoint":
        with pytest.raises(OSError) as told:
            folder.failed(tmp_path, error)
        assert str(told.value) == f"{tmp_path}: no room; free space; {says}"
        (tmp_path / "last.safetensors").touch()


# no memory


PROGRAM = train.train_and_validate


def starved(rank, ranks, *given):
    """train.py's program, in which this rank asks in step 3 for more memory than there can be."""
    train_step = Trainer.train_step

    def starving(self):
        if (self.ranks.rank, self.step) == (rank, 2):
            np.ones(1 << 45)  # 256 TiB
        train_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", starving)
        return PROGRAM(ranks, *given)


@POSIX
@pytest.mark.parametrize("rank, says", [
    (0, "train.py: Unable to allocate 256. TiB"),
    (1, "train.py: workers: rank 1: "),
])  # fmt: skip
def test_no_memory_in_one_process_ends_all_in_one_line_and_the_run_goes_on(
    place, monkeypatch, capsys, rank, says
):
    train.main([*WORDS, *CREW, "--out", "whole"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "train_and_validate", partial(starved, rank))
        train.main([*WORDS, *CREW, "--out", "run"])
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1, err
    train.main(["--resume", "--out", "run"])
    assert bare(Path("run")) == bare(Path("whole"))
