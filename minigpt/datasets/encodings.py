"""The bytes of a text file as text: UTF-8, or GB18030, in which older Chinese programs write.

No file says how it is spelled. What is no UTF-8 can only be guessed, and the guess is told.
"""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from contextlib import suppress

LOOK = 1 << 20  # bytes that are looked at, from the first line on that is no UTF-8


def decoded(path, data, tell):
    """The bytes of a text file as text, without a byte order mark.

    tell(message) hears what was inferred. Raises NotUTF8 with the first line that is neither.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        start = data.rfind(b"\n", 0, e.start) + 1
        if is_gb18030(data[start : start + LOOK]):
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
        remedy = "it is no text: name another file, or move it out of the folder"
    return NotUTF8(f"{path}: expected UTF-8 text, got {got}; {remedy}")


def is_gb18030(data):
    """Whether bytes that are not UTF-8 make sense as Chinese. Nearly all bytes are some character
    of GB18030, so those of other texts must be told from it by which characters they are."""
    letters = [c for c in data.decode("gb18030", "ignore") if c > "\x7f"]
    pairs = [c.encode("gb2312", "ignore") for c in letters]  # b"" for what is rare
    return is_usual(pairs) and not is_korean(pairs) and not is_damaged_utf8(data)


def is_usual(pairs):
    """Whether characters, as their two bytes, are those that Chinese is mostly written with.

    These are the 3,755 of the first level of GB2312, whose first byte is B0 to D7, and punctuation,
    A1 and A3. More than three quarters must be such: of real texts nearly all are, of random bytes
    less than half. One alone says nothing: caf\xe9 in Latin-1 may look like one.
    """
    usual = sum(b"\xb0" <= pair < b"\xd8" or pair[:1] in (b"\xa1", b"\xa3") for pair in pairs)
    return len(pairs) > 1 and usual > 0.75 * len(pairs)


def is_korean(pairs):
    """Whether the characters are Korean, spelled in EUC-KR.

    Its syllables have the first bytes B0 to C8. The usual Chinese characters have B0 to D7, and
    about half of those that a text uses lie from C9 on. So a text is Korean if none of 8 different
    characters lies there, at most one of 16, two of 24, and so on; fewer than 8 tell nothing.
    """
    different = {pair for pair in pairs if b"\xb0" <= pair < b"\xd8"}
    return sum(pair >= b"\xc9" for pair in different) <= len(different) / 8 - 1


def is_damaged_utf8(data):
    """Whether the bytes are UTF-8 with a mistake in it: then most words, here runs of bytes above
    7F, still make sense as UTF-8. Words in GB18030 rarely do. If as many do as do not, UTF-8 is
    assumed, unless a word that does not has four bytes: two Chinese characters."""
    words = re.findall(rb"[\x80-\xff]+", data)
    wrong = [word for word in words if word.decode("utf-8", "ignore").encode() != word]
    right = len(words) - len(wrong)
    return right > len(wrong) or (right == len(wrong) and max(map(len, wrong), default=0) < 4)
