"""Starting the processes that train together, and making sure that none is left behind.

Rank 0 is the process that the user started; it starts the others. Any may die at any time, and then
all have to end. Two things ensure this: a pipe tells its reader when the process at the other end
is gone, and rank 0 kills its children before it ends.
"""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minigpt.engine import device
from minigpt.training.costs import CORE
from minigpt.training.parallel import Process
from minigpt.training.ranks import Alone
from minigpt.training.stopping import SIGNALS


def run(size, program, *args):
    """Run program(ranks, *args) on `size` ranks -> what it returns on rank 0, this process.

    program and args must be picklable, and a script that calls this must guard its own work with
    `if __name__ == "__main__":`. Raises ChildProcessError if another rank dies or fails.
    """
    if size == 1:
        return program(Alone(), *args)
    pipes, children = [], []
    try:
        _start(size, pipes, children)
        for pipe in pipes:
            with suppress(OSError):  # this rank has died already: the first all_gather says so
                pipe.send((program, args))
        with threads(size):
            return program(Process(0, size, pipes), *args)
    finally:
        for pipe in pipes:
            pipe.close()  # a rank that waits for rank 0 gets an EOFError and ends
        for child in children:
            child.join(1)
            child.kill()  # it may be in the middle of a long step
            child.join()


def _start(size, pipes, children):
    """Start all ranks but 0, and add their pipes and processes to the lists.

    "spawn" begins with a fresh Python: "fork" would copy this process without its threads, and a
    lock that a thread of BLAS holds at that moment would never be released.
    """
    context = multiprocessing.get_context("spawn")
    with _ctrl_c_waits(), _accelerate(_share(size)):
        for rank in range(1, size):
            pipe, other = context.Pipe()
            child = context.Process(target=_rank, args=(rank, size, other), daemon=True)
            child.start()
            children.append(child)
            pipes.append(pipe)
            other.close()  # the child has its own copy; an open copy here would hide that it died


@contextmanager
def _ctrl_c_waits():
    """Within the block Ctrl-C is only noted, and raised at its end; new processes never receive it.

    A terminal sends Ctrl-C (the signal SIGINT) to all processes of a command at once. Rank 0 alone
    shall answer, by saving and ending the others. But a new Python prints a traceback if the signal
    comes before `_rank` has switched it off, and rank 0 would lose a half-started child. So a
    handler notes the signal here, and new processes inherit a mask that blocks the signal for good.
    The mask alone does not protect rank 0: other threads of it still receive the signal.
    """
    came = []
    can_block = hasattr(signal, "pthread_sigmask")  # Windows cannot
    main = threading.current_thread() is threading.main_thread()  # which alone has handlers
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True)) if main else None
    if can_block:
        # The tracker would start with the first process and unblock SIGINT then; so start it now.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if main:
            signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _accelerate(threads):
    """Within the block new processes begin with so many threads of Accelerate, BLAS on macOS.

    threadpoolctl cannot change their number, and Accelerate reads this variable as it is loaded; so
    rank 0 keeps its threads. A number that the user has set stays.
    """
    name = "VECLIB_MAXIMUM_THREADS"
    given = name in os.environ
    os.environ.setdefault(name, str(threads))
    try:
        yield
    finally:
        if not given:
            del os.environ[name]


def _rank(rank, size, pipe):
    """What another process does: it waits for the program, runs it, and sends rank 0 its errors."""
    for number in SIGNALS:  # rank 0 answers them, and then ends the others
        signal.signal(number, signal.SIG_IGN)
    device.keep_pages()  # each process has its own allocator to set
    with suppress(EOFError, OSError):  # the pipe ends when rank 0 has ended
        program, args = pipe.recv()
        try:
            with threads(size):
                program(Process(rank, size, [pipe]), *args)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # rank 0 has ended in the middle of the program
        except Exception as error:
            pipe.send(ChildProcessError(repr(error)))  # as text: not every error can be pickled


def threads(size):
    """Within `with threads(size):` BLAS uses this rank's share of the cores.

    By default every process starts one thread per core, and ranks would take cores from each other.
    """
    return threadpool_limits(_share(size), user_api="blas")


def _share(size):
    """How many cores each of `size` processes has for itself."""
    return max(1, physical_cores() // size)


def physical_cores():
    """How many cores this process may use, where two hyperthreads are one core.

    os.cpu_count() counts hyperthreads, which share the arithmetic units of their core, and the
    cores of the whole machine, of which a container or a scheduler may grant only some.
    """
    usable = range(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):  # Linux: the numbers that the scheduler grants
        usable = os.sched_getaffinity(0)
    cores = len(usable)
    with suppress(OSError):  # hyperthreads of one core list the same siblings
        place = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        cores = len({Path(place.format(number)).read_text() for number in usable})
    with suppress(OSError, ValueError):  # a container: "max" instead of a number means no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def refuse_too_many(workers, on_gpu):
    """Raise ValueError if so many processes could only be in each other's way."""
    most = 1 if on_gpu else 4 * physical_cores()
    if workers > most:
        raise ValueError(f"--workers: expected at most {most} here, got {workers}; leave it out")


def how_many(config, model):
    """How many processes shall share a batch: as many as asked for, or as many as pay; 1 on a GPU.

    One process drives a GPU. On a CPU each further process costs a second to start, and in every
    step 1 ms of waiting and its own update of all weights. They pay if a step and the whole run are
    long enough, and if each has enough to do: 128 tokens, or 16 rows if an example is one token.
    """
    if model.library is not np:
        return 1
    if config.workers:
        return config.workers
    tokens = config.batch_size * config.block_size
    step = tokens * model.flops_per_token()
    whole = step * config.steps if config.steps else CORE * 60 * config.minutes
    if step <= 5e8 or whole <= 1e12:  # a step of 10 ms, a run of 20 s on one core
        return 1
    windows = config.batch_size // config.accumulate  # a window is not divided
    share = max(1, tokens // 128 or windows // 16)
    return min(physical_cores(), windows, share)
