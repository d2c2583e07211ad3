"""The interface of a rank: one of the processes that train a model together.

The training loop asks its rank for sums over all ranks, for lists of their values, and to wait for
the others. parallel.py and mpi.py, in the part on speed, have the ranks of several processes.
"""

import os

# How the names of the variables begin that Open MPI, MPICH and MVAPICH set
MPI = "OMPI_COMM_WORLD", "PMI", "MV2_COMM_WORLD"


def started_by_mpi():
    """Which of the processes of mpiexec this is -> rank, size; without mpiexec 0, 1."""
    for name in MPI:
        if f"{name}_SIZE" in os.environ:
            return int(os.environ[f"{name}_RANK"]), int(os.environ[f"{name}_SIZE"])
    return 0, 1


class Alone:
    """The only rank, which has nobody to wait for. Every other kind of rank has these methods."""

    rank, size = 0, 1  # which rank this is, counted from 0, and how many there are
    zeros = None  # zeros(n, dtype) -> the vector that all_reduce needs; None: it takes any vector

    def all_reduce(self, vector):
        """Replace the vector of every rank by the sum of all, added up in order of rank."""

    def all_gather(self, value):
        """Give every rank the small values of all -> [value of rank 0, of rank 1, ...]"""
        return [value]

    def barrier(self):
        """Return when every rank has come here."""
        self.all_gather(None)
