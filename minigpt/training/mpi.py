"""Ranks on several machines, which MPI starts and connects: mpiexec -n 4 python train.py ...

    rank 0   reads, builds --+            +--> trains, prints, saves --+
                             +--> model --+                            +--> writes or answers
    rank 1   waits ----------+    data    +--> trains -----------------+    waits

mpiexec starts train.py so many times, on the machines that it is told, and MPI carries messages
between them. Only rank 0 goes through the six steps and touches files (but for the ids of a text
too large for memory, which every rank maps). The others wait until it sends them the part that is
shared, run it on their share of every batch, and wait again. What a rank has to offer to the
training is in ranks.py; processes on one machine are in parallel.py.
Source: MPI Forum 2021, MPI 4.0, chapter 6.
"""

import os
import signal
import sys
import time
import traceback

import numpy as np

from minigpt.engine import device
from minigpt.training.processes import threads
from minigpt.training.ranks import Alone, started_by_mpi
from minigpt.training.stopping import SIGNALS

POLL = 0.02  # s between two looks for a message
GRACE = 0.5  # s for the others to answer, or for mpiexec to pass on what was printed


class Rank(Alone):
    """A rank among those that mpiexec has started; its methods are those of Alone."""

    def __init__(self, comm):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size

    def all_reduce(self, vector):
        """Replace every rank's vector by the sum of all.

        MPI chooses the order of the additions, and promises that all ranks get the same bits.
        """
        from mpi4py import MPI

        self.comm.Allreduce(MPI.IN_PLACE, vector)

    def all_gather(self, value):
        return self.comm.allgather(value)


class RankOnGPU(Rank):
    """A rank with a GPU of its own: NCCL adds up the vectors where they lie, on the GPUs.

    all_reduce goes into the queue of the GPU, so that the CPU does not wait. Everything else, a few
    numbers now and then, goes through MPI. Unmeasured: no machine with two GPUs has run it, and
    the tests use arrays that play the part of a GPU's.
    """

    def __init__(self, comm, cupy):
        super().__init__(comm)
        self.cuda, self.nccl = cupy.cuda, device.nccl()
        key = comm.bcast(self.nccl.get_unique_id() if self.rank == 0 else None)
        self.group = self.nccl.NcclCommunicator(self.size, key, self.rank)

    def all_reduce(self, vector):
        """As Rank's; vector: contiguous, on this rank's GPU."""
        address, stream = vector.data.ptr, self.cuda.get_current_stream().ptr
        kind = getattr(self.nccl, f"NCCL_{vector.dtype.name.upper()}")
        self.group.allReduce(address, address, vector.size, kind, self.nccl.NCCL_SUM, stream)


def together(lead):
    """What each of the processes does: rank 0 calls lead(end), and the others follow it.

    end(number) is how lead ends when a signal has stopped it. However rank 0 ends, all do: it tells
    them so. If they do not answer, they are in the middle of a step, and MPI kills them.
    """
    comm = world()
    if comm.rank:
        return _follow(comm)
    code = 0
    try:
        lead(lambda number: sys.exit(128 + number))  # as a shell sees a signal
    except SystemExit as done:
        code = done.code
    except BaseException:  # a mistake of the program
        traceback.print_exc()
        code = 1
    _send(comm, None)
    all_here, patience = comm.Ibarrier(), time.monotonic() + GRACE
    while not all_here.Test():
        if code and time.monotonic() > patience:
            _kill_all(comm, code)
        time.sleep(POLL)
    sys.exit(code)


def run(where, program, *args):
    """On rank 0: run program(ranks, *args) on all ranks -> what it returns here.

    where: --device and --precision as they turned out. program and args must be picklable.
    """
    comm = world()
    _send(comm, where)
    return _run(comm, where, (program, args))


def _run(comm, where, work=None):
    """This rank's part of run(); work: program and args, which rank 0 sends to the others."""
    from mpi4py import MPI

    machine = comm.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks of this machine, from 0 on
    library, _ = device.select(*where, machine.rank)  # first: it says where arrays will arrive
    sent = comm.bcast(work)
    # bcast gives rank 0 a copy, too; but its own model must be the one that is trained.
    program, args = work or sent
    with threads(machine.size):
        ranks = Rank(comm) if library is np else RankOnGPU(comm, library)
        return program(ranks, *args)


def _follow(comm):
    """What the other ranks do: they run what rank 0 sends, until it sends that all is over.

    An error here ends all ranks. If it is an error of all, such as a loss that is not finite, rank
    0 tells it better; so it gets the time to do so and to end this rank.
    """
    for number in SIGNALS:  # rank 0 answers them
        signal.signal(number, signal.SIG_IGN)
    try:
        while where := _wait(comm):
            _run(comm, where)
        comm.Ibarrier().Wait()
    except BaseException as error:
        time.sleep(4 * GRACE + comm.rank / 10)  # one after the other: the first ends the rest
        hint = "go on from the last checkpoint with --resume"
        print(f"train.py: mpiexec: rank {comm.rank}: {error!r}; {hint}", file=sys.stderr)
        _kill_all(comm, 2)


def _send(comm, value):
    for rank in range(1, comm.size):
        comm.send(value, rank)


def _wait(comm):
    """The next message of rank 0. MPI itself would wait at full speed, and rank 0 needs the cores
    while it reads the data."""
    while not comm.iprobe(source=0):
        time.sleep(POLL)
    return comm.recv(source=0)


def _kill_all(comm, code):
    """End the processes of all ranks, wherever they are; mpiexec's exit code is then `code`."""
    for file in filter(None, (sys.stdout, sys.stderr)):
        file.flush()
    time.sleep(GRACE)  # until mpiexec has passed on what was printed
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPICH would print a line of its own
    comm.Abort(code)


def world():
    """MPI's communicator of all ranks. Without mpi4py rank 0 says so, and every process ends."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no library of MPI
        if started_by_mpi()[0]:
            sys.exit()
        why = str(error).splitlines()[0]
        need = "expected mpi4py and an MPI"
        print(f"train.py: mpiexec: {need}, got: {why}; pip install -e '.[mpi]'", file=sys.stderr)
        sys.exit(2)
    return MPI.COMM_WORLD
