"""Writing files so that a kill, a full disk or a power cut leaves the old one or the new one."""

import os
import secrets
from contextlib import contextmanager


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
            os.fsync(file.fileno())  # on the disk, not only in the system's memory
        if keep:
            os.replace(beside, path)
            _flush_names(os.path.dirname(path) or ".")
    finally:
        if os.path.exists(beside):  # something failed
            os.remove(beside)


def _flush_names(folder):
    """See that a new name is on the disk, too: a folder is a list of names."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
