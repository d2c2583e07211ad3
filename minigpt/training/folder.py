"""The folder of a run: one run at a time, and nothing of an earlier one is lost or mixed in.

train.py claims it, and the Trainer keeps it in order. A first reader can skip this file.
"""

import errno
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path

from minigpt.files import patiently, write_whole
from minigpt.messages import nobody_reads, say

FILES = ("last.safetensors", "best.safetensors", "log.csv", "samples.txt", "curve.svg")
ASIDE = ".before"  # how a file of a run that is being replaced ends, until the new one has saved
PART = re.compile(f"({'|'.join(FILES)})[.][0-9a-f]{{8}}[.]part")  # not finished by write_whole
FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")} - {None}
HEAD = "step,training,validation,tokens,seconds"
ROW = re.compile(r"\d+,[\d.-]+,[\d.-]+,\d+")  # all but the seconds


@contextmanager
def claimed(out, create):
    """Within the block no other process can claim this folder, which is made if `create`.

    The lock lies on the folder itself: there is no file that could be left behind, and the system
    gives it back however the process ends. A folder that was made here and is still empty at the
    end is removed. Raises OSError if another run holds it, or it cannot be made.
    """
    out = Path(out)
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    if not create and not out.is_dir():
        yield  # --resume will say what is missing
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {out} is a file; name another")
    lock = _lock(out)
    try:
        yield
    finally:
        with suppress(OSError):  # something was saved
            for folder in new:
                folder.rmdir()
        if lock is not None:
            os.close(lock)


def unusable(out, error):
    """The error of a folder in which nothing can be saved."""
    why = f"{error.strerror}; free space, or name another --out"
    return OSError(f"--out: cannot save in {out}: {why}")


def _lock(out):
    """Make the folder if need be -> a descriptor that holds its lock, None where there are none.

    Another run may remove the folder, empty, between two of these lines. Then the lock is that of a
    folder without a name, and all begins anew.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(out, error) from None
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        descriptor = os.open(out, os.O_RDONLY)
    except FileNotFoundError:
        return _lock(out)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if out.exists() and os.path.samestat(os.fstat(descriptor), out.stat()):
            return descriptor
        os.close(descriptor)
        return _lock(out)
    except BlockingIOError:
        os.close(descriptor)
        remedy = "wait until it ends, or name another --out"
        raise OSError(f"{out}: another run is writing here; {remedy}") from None
    except OSError as error:  # some network disks
        os.close(descriptor)
        say("", f"{out}: no lock here ({error.strerror}): start no second run in this folder")
        return None


def clear(out):
    """Remove what runs that were killed have left half written; other files stay."""
    for file in Path(out).iterdir():
        if PART.fullmatch(file.name) and file.is_file():
            remove(file)


def remove(file):
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        patiently(os.remove, file)


def set_aside(out):
    """Rename the files of the run that lies there; forget() removes them, when a new one is safe.

    From a run that never saved `last` nothing can go on. So what it was itself replacing stays, and
    its own files go.
    """
    whole = (out / "last.safetensors").exists()
    if whole:
        forget(out)  # what this run has itself replaced
    for name in FILES:
        file, kept = out / name, out / (name + ASIDE)
        if file.exists() and (whole or not kept.exists()):
            patiently(os.replace, file, kept)
        else:
            remove(file)


def bring_back(out):
    """Undo set_aside, unless the new run has saved all that is needed to go on."""
    if (out / "last.safetensors").exists() or not (out / f"last.safetensors{ASIDE}").exists():
        return
    for name in reversed(FILES):  # `last` comes last: then all is there
        if (kept := out / (name + ASIDE)).exists():
            patiently(os.replace, kept, out / name)
    say("", f"{out}: the run that --overwrite was replacing is back")


def failed(out, error):
    """Bring back a run that was being replaced by one that an error has ended.

    Raises OSError with what to do if nobody reads the output any more, or if the disk is full: that
    is found in the middle of a write, whose own error names no file.
    """
    saved = (out / "last.safetensors").exists()
    remedy = "--resume goes on from the last checkpoint" if saved else "nothing was saved"
    bring_back(out)
    if nobody_reads(error):
        raise OSError(f"nobody reads the output any more; {remedy}") from None
    if isinstance(error, OSError) and error.errno in FULL:
        raise OSError(f"{out}: {error.strerror}; free space; {remedy}") from None


def forget(out):
    """Remove the run that was set aside: the new one has saved all that is needed to go on."""
    for name in FILES:
        remove(out / (name + ASIDE))


def absent(file):
    """What to do about a checkpoint that is not there."""
    if (kept := Path(f"{file}{ASIDE}")).exists():
        return f"{kept.name} is of the run that --overwrite was replacing; --resume brings it back"
    if Path(file).name == "best.safetensors":
        return "the best of this run is missing; sample.py reads last.safetensors if it is named"
    runs = [str(found.parent) for found in sorted(Path(file).parent.glob("*/last.safetensors"))]
    return f"name one of the runs there: {', '.join(runs[:5])}" if runs else "train one first"


def cut_back(out, rows, step):
    """Make log.csv and samples.txt those of a checkpoint of this step, whose rows are given.

    A row is "step,training,validation,tokens". Its seconds stand in log.csv alone; a row that a
    kill has kept out of there comes back without them. Rows and samples of later steps will be
    written again.
    """
    seconds = {}
    with suppress(OSError):
        for line in (out / "log.csv").read_text("utf-8").splitlines():
            row, _, last = line.rpartition(",")
            seconds[row] = last
    lines = [HEAD, *(f"{row},{seconds.get(row, '')}" for row in rows)]
    write_whole(out / "log.csv", ("\n".join(lines) + "\n").encode())
    with suppress(OSError):
        samples = (out / "samples.txt").read_text("utf-8").split("\n")
        found = [re.match(r"step (\d+)\t.*\t.", line) for line in samples]
        kept = [m.string + "\n" for m in found if m and int(m[1]) <= step]
        write_whole(out / "samples.txt", "".join(kept).encode())
