"""Data parallelism: N processes train one model, each on a share of every batch.

    rank 0   x[0::2] -> gradient --+
                                   +--> their sum, on both --> both take the same step
    rank 1   x[1::2] -> gradient --+

The gradient of a sum over the batch is the sum of the gradients of its parts. So every process, or
rank, computes the gradient of its part; all gradients are added up; and as all ranks began with
equal weights and take equal steps, their weights stay equal without ever being sent.

The gradients lie in memory that all ranks see. Small values go through pipes, which also tell when
the process at the other end has died. processes.py starts and ends the processes.
Source: Li et al. 2020, arXiv 2006.15704.
"""

import mmap
import os
import secrets
import tempfile
from contextlib import suppress

import numpy as np

from minigpt.files import WINDOWS
from minigpt.training.ranks import Alone


class Process(Alone):
    """A rank that is one of several processes on this machine; its methods are those of Alone.

    pipes: rank 0 holds one to every other rank, and each of these holds the other end of its own.
    """

    def __init__(self, rank, size, pipes):
        self.rank, self.size, self.pipes = rank, size, pipes

    def all_gather(self, value):
        """Rank 0 hears the value of every other rank, and then tells them the list of all."""
        if self.rank:
            self.pipes[0].send(value)
            return self.pipes[0].recv()
        values = [value, *map(self._hear, range(1, self.size))]
        for pipe in self.pipes:
            with suppress(OSError):  # that rank has just died; the next _hear of it will say so
                pipe.send(values)
        return values

    def _hear(self, rank):
        """What a rank sends to rank 0. Raises ChildProcessError if it has died or failed."""
        try:
            value = received(self.pipes[rank - 1])
        except (EOFError, OSError):
            value = ChildProcessError("has died, perhaps for lack of memory")
        if isinstance(value, ChildProcessError):  # also what a rank sends that failed
            hint = "go on from the last checkpoint with --resume; --workers 1 needs less memory"
            raise ChildProcessError(f"workers: rank {rank}: {value}; {hint}")
        return value

    def zeros(self, n, dtype):
        """This rank's row of a matrix (size, n) that all ranks see, for all_reduce.

        All ask for it together, once. Rank 0 makes the memory and tells where it is, and everyone
        maps it: what one writes there, the others read.
        """
        row = bytes(n * np.dtype(dtype).itemsize)
        place, done = (None, None) if self.rank else scratch(row, self.size)
        try:
            memory = mapped(self.all_gather(place)[0], self.size * len(row))
            self.barrier()  # now all ranks have mapped it, and nobody needs to find it any more
        finally:
            if done:
                done()
        self.rows = np.frombuffer(memory, dtype).reshape(self.size, n)
        return self.rows[self.rank]

    def all_reduce(self, vector):
        """Replace every rank's vector, the row that zeros gave or its beginning, by the sum of all.

        If each rank added up whole rows, all would do the same work. So each takes its part of the
        columns, adds up the rows there, and writes the sum into every row. The rows are added in
        order of rank, so the sums are the same to the last bit, every time.
        """
        n = len(vector)
        start, stop = n * self.rank // self.size, n * (self.rank + 1) // self.size
        mine = self.rows[:, start:stop]
        self.barrier()  # all gradients are complete before anyone adds them up
        for row in mine[1:]:
            mine[0] += row
        mine[1:] = mine[0]
        self.barrier()  # all columns are summed before anyone reads them


def received(pipe):
    """The next value that comes through a pipe.

    On Windows Ctrl-C ends the wait for it, even if its handler only notes that it has come.
    """
    while True:
        with suppress(InterruptedError):
            return pipe.recv()


def mapped(place, n):
    """The n bytes of memory that scratch has made."""
    if WINDOWS:
        return mmap.mmap(-1, n, place)
    with open(place, "r+b") as file:
        return mmap.mmap(file.fileno(), n)


def scratch(row, size):
    """Make memory of `size` rows of zero bytes -> its place, and a function that lets go of it.

    Windows has memory with a name, which vanishes with the last process that has mapped it; a file
    could not be removed there as long as one has. Elsewhere it is a file, whose place is its path.
    It lies in /dev/shm, which is memory, or on the disk if that has no room: containers often give
    64 MB. The zeros are really written: in a file that is merely declared long, a full disk would
    end the process later, without an error to catch.
    """
    if WINDOWS:
        return _named(len(row) * size)
    for folder in ("/dev/shm", tempfile.gettempdir()):
        with suppress(OSError):
            handle, path, done = _nameless(folder)
            try:
                with open(handle, "wb", closefd=False) as file:
                    file.writelines([row] * size)
                return path, done
            except OSError:
                done()
    raise _no_room(len(row) * size, folder)


def _no_room(n, where):
    return OSError(f"workers: no room for {n} bytes in {where}; use --workers 1")


def _named(n):
    """New memory of Windows -> its name, and a function that lets go of it."""
    name = f"minigpt-{secrets.token_hex(8)}"
    try:
        return name, mapped(name, n).close
    except OSError:
        raise _no_room(n, "memory") from None


def _nameless(folder):
    """A new file -> its descriptor, a path for the other ranks, and a function that lets go of it.

    Linux can make a file without a name, which vanishes with the last process that has it open or
    mapped, even if all are killed. On macOS the file has a name until done() removes it.
    """
    with suppress(AttributeError, OSError):  # no such system, or no such disk
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
        path = f"/proc/{os.getpid()}/fd/{handle}"
        if os.path.exists(path):
            return handle, path, lambda: os.close(handle)
        os.close(handle)
    handle, path = tempfile.mkstemp(prefix="minigpt-", dir=folder)

    def done():
        os.close(handle)
        os.remove(path)

    return handle, path, done
