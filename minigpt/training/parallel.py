"""Data parallelism: N ranks run one program, each on a shard of every batch, and add up gradients.

    rank 0   x[0::2] -> gradient --+
                                   +--> their sum, on both --> both take the same step
    rank 1   x[1::2] -> gradient --+

A rank is a process. The gradients lie in memory that all ranks map, so nothing is copied; words go
through pipes, which also tell when the other end has died. Source: Li et al. 2020, arXiv 2006.15704
"""

import mmap
import multiprocessing
import os
import signal
import tempfile
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minigpt.engine import device
from minigpt.training.ranks import Alone


class Process(Alone):
    """One of several processes on this machine. pipes: to all others from rank 0, else to rank 0"""

    def __init__(self, rank, size, pipes):
        self.rank, self.size, self.pipes = rank, size, pipes

    def all_gather(self, value):
        if self.rank:
            self.pipes[0].send(value)
            return self.pipes[0].recv()
        values = [value] + [self._hear(i) for i in range(1, self.size)]
        for pipe in self.pipes:
            with suppress(OSError):  # it has died meanwhile: the next word from it will be missed
                pipe.send(values)
        return values

    def _hear(self, rank):
        """What a rank sends to rank 0. Raises ChildProcessError if it has died or failed."""
        try:
            value = self.pipes[rank - 1].recv()
        except (EOFError, OSError):
            value = ChildProcessError("has died, perhaps for lack of memory")
        if isinstance(value, ChildProcessError):
            hint = "go on from the last checkpoint with --resume; --workers 1 needs less memory"
            raise ChildProcessError(f"workers: rank {rank}: {value}; {hint}")
        return value

    def zeros(self, n, dtype):
        """All ranks ask together, once; each gets its row of one matrix that all of them see."""
        row = bytes(n * np.dtype(dtype).itemsize)
        path = None if self.rank else scratch(row, self.size)
        try:
            shared = self.all_gather(path)[0]
            with open(shared, "r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
            self.barrier()  # all have opened it: the name may go, so that a crash leaves no file
        finally:
            if path:
                with suppress(PermissionError):  # Windows keeps the names of open files
                    os.remove(path)
        self.rows = np.frombuffer(memory, dtype).reshape(self.size, n)
        return self.rows[self.rank]

    def all_reduce(self, vector):
        """Each rank adds up its part of the columns and writes the sum into every row."""
        n = self.rows.shape[1]
        mine = self.rows[:, n * self.rank // self.size : n * (self.rank + 1) // self.size]
        self.barrier()
        for row in mine[1:]:
            mine[0] += row
        mine[1:] = mine[0]
        self.barrier()


def scratch(row, size):
    """A new file of `size` rows of zero bytes -> its path: in memory, or on disk if that is full
    (containers give 64 MB). Writing takes the room now; a hole would be a crash later."""
    for folder in ("/dev/shm", tempfile.gettempdir()):
        with suppress(OSError):
            handle, path = tempfile.mkstemp(prefix="minigpt-", dir=folder)
            try:
                with open(handle, "wb") as file:
                    file.writelines([row] * size)
                return path
            except OSError:
                os.remove(path)
    raise OSError(f"workers: no room for {len(row) * size} bytes in {folder}; use --workers 1")


def run(size, program, *args):
    """program(ranks, *args) on `size` ranks, this process being rank 0 -> what it returns here.

    program and args must be picklable (the others are new processes), and a script that calls this
    must guard its own work with `if __name__ == "__main__":`. However it ends, no rank stays.
    """
    if size == 1:
        return program(Alone(), *args)
    context, pipes, children = multiprocessing.get_context("spawn"), [], []
    try:
        with _ctrl_c_waits():
            for rank in range(1, size):
                pipe, other = context.Pipe()
                child = context.Process(target=_rank, args=(rank, size, other), daemon=True)
                child.start()
                children.append(child)
                pipes.append(pipe)
                other.close()  # the child has its own: when that closes, it has died
        for pipe in pipes:
            with suppress(OSError):  # it has died: the first all_gather says so
                pipe.send((program, args))
        with threads(size):
            return program(Process(0, size, pipes), *args)
    finally:
        for pipe in pipes:
            pipe.close()  # whoever still waits for rank 0 ends
        for child in children:
            child.join(1)
            child.kill()  # in the middle of a long step
            child.join()


@contextmanager
def _ctrl_c_waits():
    """Ctrl-C comes after the block, and never to a process started in it: rank 0 answers for all"""
    came, blocks = [], hasattr(signal, "pthread_sigmask")  # not on Windows
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    if blocks:  # for the new processes, which inherit it; other threads here still receive Ctrl-C
        resource_tracker.ensure_running()  # multiprocessing's own: its start ends the blocking
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _rank(rank, size, pipe):
    """The life of a rank other than 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows nothing else stops it
    device.keep_pages()
    with suppress(EOFError, OSError):  # rank 0 is gone, and with it the reason to work
        program, args = pipe.recv()
        try:
            with threads(size):
                program(Process(rank, size, [pipe]), *args)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        except Exception as error:
            pipe.send(ChildProcessError(repr(error)))  # plain text: not every error survives a pipe


def threads(size):
    """Within it BLAS uses this rank's share of the cores: one rank's threads would slow another."""
    return threadpool_limits(max(1, physical_cores() // size), user_api="blas")


def physical_cores():
    """The cores that this process may use, two hyperthreads of a core being one."""
    usable = range(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
    cores = len(usable)
    with suppress(OSError):
        place = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        cores = len({Path(place.format(number)).read_text() for number in usable})
    with suppress(OSError, ValueError):  # a container's share; "max" if it has no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
