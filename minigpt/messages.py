"""What the program says to its user: lines under their step, errors with a remedy."""

import difflib
import errno
import re
import shlex
import sys
import traceback
from importlib import import_module
from pathlib import Path
from unicodedata import category

from minigpt.files import WINDOWS


def say(step, message):
    """Print a line under the name of its step; step is "" in the lines that follow the first."""
    print(f"{step:<14} {message}", flush=True)


def replace_unknown(*files):
    """Let standard input or output show "?" for what its encoding lacks: no reason to stop."""
    for file in filter(None, files):  # None: the program has no such file
        file.reconfigure(errors="replace")


def nobody_reads(error):
    """Whether an error says that the program which reads the output, such as head, has ended.

    On Windows such a write fails with EINVAL, which can mean much else. So it is tried again.
    """
    if WINDOWS and getattr(error, "errno", None) == errno.EINVAL:
        try:
            sys.stdout.flush()
        except OSError:
            return True
    return isinstance(error, BrokenPipeError)


def quoted(word):
    """A word as a user can paste it into a command. Of quotes, all shells of Windows know only the
    double ones."""
    if WINDOWS:
        plain = re.fullmatch(r"[\w.:/\\+=-]+", word)
        return word if plain else '"' + word.replace('"', '\\"') + '"'
    return shlex.quote(word)


def visible(text):
    """The text without control characters but line ends and tabs: a terminal would obey them."""
    return "".join("\ufffd" if category(c) == "Cc" and c not in "\n\t" else c for c in text)


def note(message):
    """Print what a user should know of his data: what was inferred, converted or left aside.

    What reads data takes a function `tell` for that: this one, or silent.
    """
    say("", visible(message))


def silent(message):
    """Tell nobody."""


def check(right, where, expected, got, remedy):
    """Raise ValueError in the project's words unless `right`: where, expected, got; what to do."""
    if not right:
        raise ValueError(f"{where}: expected {expected}, got {got}; {remedy}")


def place(error):
    """ " (FILE:LINE: CODE)" of the layer that was computing when an error came up; "" if none was.

    Who writes a layer of his own finds his mistake there; of other mistakes the message is enough.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "forward"]
    return (
        f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})"
        if frames
        else ""
    )


def nearest(word, known, otherwise=""):
    """A remedy for a misspelt word: "did you mean X?", or `otherwise` if no known word is close."""
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else otherwise


def look_up(table, name, where):
    """What a name that a user typed stands for: table[name] is "module:attribute", imported now.

    Raises ValueError, with the nearest name, if the table has no such name.
    """
    if name not in table:
        remedy = nearest(name, table, f"choose one of {', '.join(table)}")
        raise ValueError(f"{where}: expected a known name, got {name!r}; {remedy}")
    module, attribute = table[name].split(":")
    return getattr(import_module(module), attribute)
