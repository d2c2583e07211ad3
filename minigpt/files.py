"""Writing files so that a kill, a full disk or a power cut leaves the old one or the new one.

And what folders hold, and reading text, whose bytes may be spelled in two ways.
"""

import os
import re
import secrets
import stat
import sys
import time
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
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
        names = sorted(os.listdir(folder))
    except OSError as e:
        need = f"expected a folder that can be read, got {e.strerror}"
        raise ValueError(f"{folder}: {need}; change its permissions or move it away") from None
    paths = [Path(folder, name) for name in names]
    return [path for path in paths if not hidden(path)]


def files_in(folder):
    """Yield the files of a folder and of its subfolders, in order."""
    for path in entries(folder):
        if path.is_dir() and not path.is_symlink():
            yield from files_in(path)
        elif path.is_file():
            yield path


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
                remedy = "if that makes no sense, save it as UTF-8"
                tell(f"{path}: read as GB18030, as it is not UTF-8; {remedy}")
                return text
        raise no_utf8(path, e) from None


class NotUTF8(ValueError):
    """A file is no UTF-8."""


def no_utf8(path, e, lines=0):
    """The error of a file that is no UTF-8.  e: of decoding the bytes that follow `lines` lines"""
    line = lines + e.object.count(b"\n", 0, e.start) + 1
    got = f"byte 0x{e.object[e.start]:02x} in line {line}"
    remedy = "convert it: most editors can save text as UTF-8"
    if b"\0" in e.object and e.object[:2] not in (BOM_UTF16_LE, BOM_UTF16_BE):
        remedy = "it is no text: leave it out, or move it out of its folder"
    return NotUTF8(f"{path}: expected UTF-8 text, got {got}; {remedy}")


def _is_chinese(data):
    """Whether bytes that are not UTF-8 make sense as GB18030, where nearly all bytes are something.

    Chinese is mostly written with 3,755 characters whose first byte is B0 to D7, and has its
    punctuation in A1 and A3. The bytes of other texts are often other characters of GB18030. Korean
    ones can be of the 3,755, but only of those below C9, which are about half of what Chinese uses.

    In UTF-8 with a mistake nearly all words, here runs of bytes above 7F, make sense as UTF-8. In
    GB18030 few do; of two words one may, and then the other, of two characters or more, decides.
    """
    pairs = [c.encode("gb2312", "ignore") for c in data.decode("gb18030", "ignore") if c > "\x7f"]
    usual = [pair for pair in pairs if b"\xb0" <= pair < b"\xd8"]
    punctuation = sum(pair[:1] in (b"\xa1", b"\xa3") for pair in pairs)
    many = len(usual) + punctuation > 0.75 * len(pairs) and len(pairs) > 1
    different = {*usual}
    korean = sum(pair >= b"\xc9" for pair in different) <= len(different) / 8 - 1
    words = re.findall(rb"[\x80-\xff]+", data)
    wrong = [word for word in words if word.decode("utf-8", "ignore").encode() != word]
    right = len(words) - len(wrong)
    tie = len(wrong) == right and len(max(wrong, key=len)) >= 4
    return many and not korean and (len(wrong) > right or tie)
