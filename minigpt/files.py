"""Writing files so that a kill, a full disk or a power cut leaves the old one or the new one.

And reading text, whose bytes may be spelled in two ways.
"""

import os
import secrets
import stat
import sys
import time
from contextlib import contextmanager, suppress

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


def hidden(path, folder):
    """Whether a path below a folder is hidden, as what systems and editors keep there is.

    Its name, or that of a folder between them, begins with a dot; or Windows has marked it.
    """
    dotted = any(name.startswith(".") for name in path.relative_to(folder).parts)
    marks = getattr(path.lstat(), "st_file_attributes", 0)  # which Windows alone has
    return dotted or bool(marks & stat.FILE_ATTRIBUTE_HIDDEN)


def decoded(path, data, tell):
    """The bytes of a text file as text, without a byte order mark: UTF-8, or else GB18030.

    GB18030 is what older Chinese programs write. No file says how it is spelled, so tell(message)
    hears what was inferred. Raises ValueError with the first line that is neither.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        if _is_chinese(data[: 1 << 20]):
            with suppress(UnicodeDecodeError):
                text = data.decode("gb18030").removeprefix("\ufeff")
                tell(f"{path}: read as GB18030, as it is not UTF-8")
                return text
        raise no_utf8(path, e) from None


def no_utf8(path, e, lines=0):
    """The error of a file that is no UTF-8.  e: of decoding the bytes that follow `lines` lines"""
    line = lines + e.object.count(b"\n", 0, e.start) + 1
    got = f"byte 0x{e.object[e.start]:02x} in line {line}"
    remedy = "convert it: most editors can save text as UTF-8"
    return ValueError(f"{path}: expected UTF-8 text, got {got}; {remedy}")


def _is_chinese(data):
    """Whether bytes that are not UTF-8 make sense as GB18030.

    Many bytes of Western text, and of UTF-8 with one mistake, are characters of GB18030 too, but
    rare ones. So most must be among the 7,445 of GB 2312, which Chinese is mostly written with, and
    most bytes must make no sense as UTF-8.
    """
    text = [c for c in data.decode("gb18030", "ignore") if not c.isascii()]
    common = sum(bool(c.encode("gb2312", "ignore")) for c in text)
    other = sum(not c.isascii() for c in data.decode("utf-8", "ignore"))
    return common > 0.75 * len(text) > 1.5 * other
