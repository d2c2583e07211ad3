"""The interface of a rank: one of the processes that train a model together.

Training asks its rank for three things, and a process that trains alone answers them trivially.
parallel.py, in the part on speed, has the ranks of several processes.
"""


class Alone:
    """One rank, which has nobody to wait for; also the interface of every kind of rank."""

    rank, size = 0, 1
    zeros = None  # zeros(n, dtype): this rank's vector for all_reduce; None: any will do

    def all_reduce(self, vector):
        """Add up the vectors of all ranks, in order of rank, into the vector of each."""

    def all_gather(self, value):
        """-> [value of rank 0, of rank 1, ...], small ones, on every rank"""
        return [value]

    def barrier(self):
        """Return when every rank has come here."""
        self.all_gather(None)
