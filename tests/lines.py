"""Runs of train.py in which something happens at one executed line; test_lines.py asks for them.

python -m tests.lines reads orders from its input, one JSON object a line: {"words": of train.py,
"folder": where to run, "fault": its name, "at": [file, line, which time this line is reached]}. It
answers each with the exit status; what the run prints goes into out.txt and err.txt. Imports take
most of a short run. So this process makes them once, and every run is a copy of it, by fork.
"""

import errno
import json
import os
import runpy
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "minigpt/training"
WATCHED = [TRAINING / f"{name}.py" for name in ("checkpoint", "trainer", "folder", "stopping")]
NAMES = {str(file): file.name for file in (*WATCHED, ROOT / "minigpt/files.py")}


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_memory():
    raise MemoryError


FAULTS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "ENOSPC": full_disk,
    "MemoryError": no_memory,
}


def watch(reached):
    """Call reached(file, line) before every line of the watched files, in this thread."""

    def in_function(frame, event, _):
        if event == "line":
            reached(NAMES[frame.f_code.co_filename], frame.f_lineno)
        return in_function

    def enter(frame, *_):
        return in_function if frame.f_code.co_filename in NAMES else None

    sys.settrace(enter)


def run(words, folder, fault=None, at=None):
    """train.py as a process; without a fault, lines.json tells how often each line was reached."""
    os.chdir(folder)
    for descriptor, name in (1, "out.txt"), (2, "err.txt"):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["train.py", *words]
    seen, code = Counter(), 0

    def reached(*place):
        seen[place] += 1
        if at and [*place, seen[place]] == at:
            FAULTS[fault]()

    try:
        watch(reached)
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.settrace(None)
    Path("lines.json").write_text(json.dumps([[*place, n] for place, n in seen.items()]))
    sys.stdout.flush()
    os._exit(code or 0)


def main():
    import train  # noqa: F401 (the copies find all its imports made)

    # A shell in the background, or nohup, may have told this process to ignore them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            run(**order)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
