"""Stopping when asked to: by Ctrl-C, by a closed terminal, or by `kill`, as batch systems do.

Windows has two such signals: Ctrl-C, and SIGBREAK for Ctrl-Break.
"""

import os
import signal
import sys
import threading
from contextlib import contextmanager

NAMES = "SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Stop(KeyboardInterrupt):
    """The end without waiting for the step; `number` is the signal that asks for it."""

    def __init__(self, number):
        super().__init__()
        self.number = number


def leave_terminal():
    """Write to nowhere from now on, if the terminal is gone: each write would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def heeded(handler):
    """Within the block these signals call handler(number, frame).

    One that is ignored, as nohup ignores SIGHUP, stays so. In another thread than the main one
    Python allows no handlers, and nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        left = (signal.SIG_IGN, None)  # None: something other than Python handles it
        before = {number: how for number, how in before.items() if how not in left}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, how in before.items():
            signal.signal(number, how)


def end_as(number):
    """End this process as the signal would have, so that a shell sees it: $? is 128 + number.

    Then `train.py && next` does not go on, and a loop of a shell stops.
    """
    for file in filter(None, (sys.stdout, sys.stderr)):
        file.flush()
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    os._exit(128 + number)
