"""Writing files so that a kill, a full disk or a power cut leaves the old one or the new one.

And what folders hold.
"""

import os
import secrets
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

WINDOWS = os.name == "nt"
PATIENCE = 5  # s that a file may be in use before Windows' refusal counts


def write_whole(path, *parts, keep=True):
    """Write parts, bytes or arrays, to path one after the other, or leave path as it was."""
    with whole(path, keep) as file:
        file.writelines(parts)


@contextmanager
def whole(path, keep=True):
    """Within `with whole(path) as file:` a new file is open; at the end it becomes path.

    It lies beside path, and then takes the name of the old file in a single operation of the file
    system. So path always holds the old file or the new one, and never a part of it. If something
    fails, or if not `keep`, the new file is removed: then it was only a test of the disk.
    """
    beside = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            _flush(file.fileno())
        if keep:
            patiently(os.replace, beside, path)
            _flush_names(os.path.dirname(path) or ".")
    finally:
        if os.path.exists(beside):  # something failed
            patiently(os.remove, beside)


def patiently(change, *paths):
    """change(*paths): os.replace or os.remove.

    Windows refuses both while any program has the file open, be it sample.py or a virus scanner.
    Most close it soon, so there it is tried again for PATIENCE seconds.
    """
    end = time.monotonic() + PATIENCE * WINDOWS
    while True:
        try:
            return change(*paths)
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


def _flush(descriptor):
    """See that what was written is on the disk, not only in the memory of the system."""
    if sys.platform == "darwin":  # there fsync leaves it in the memory of the drive
        import fcntl

        with suppress(OSError):  # some disks cannot
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _flush_names(folder):
    """See that a new name is on the disk, too: a folder is a list of names."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _flush(descriptor)
        finally:
            os.close(descriptor)


def in_order(paths):
    """Paths sorted by their names, large letters first: Windows would take no notice of the case,
    and the same folder would be other data there."""
    return sorted(paths, key=lambda path: path.parts)


def hidden(path):
    """Whether a name begins with a dot, or Windows has marked it as hidden."""
    marks = getattr(path.lstat(), "st_file_attributes", 0)  # which Windows alone has
    return path.name.startswith(".") or bool(marks & stat.FILE_ATTRIBUTE_HIDDEN)


def entries(folder):
    """What a folder holds, in order, but for hidden names: systems and editors leave those.

    Raises ValueError if it cannot be read: what is in it must not be absent without a word.
    """
    try:
        paths = [Path(folder, name) for name in sorted(os.listdir(folder))]
        return [path for path in paths if not hidden(path)]
    except OSError as e:
        need = f"expected a folder that can be read, got {e.strerror}"
        raise ValueError(f"{folder}: {need}; change its permissions or move it away") from None


def files_in(folder):
    """Yield the files of a folder and of its subfolders, in order."""
    for path in entries(folder):
        if path.is_dir() and not path.is_symlink():
            yield from files_in(path)
        elif path.is_file():
            yield path
