"""Items in random order. An epoch takes each of them once; the next one, in another order."""

import operator

import numpy as np


class Shuffled:
    """The places 0 to n - 1. Their order follows from seed and epoch, so the position,
    {"epoch", "index"}, is all that a run must save to go on later with the same items."""

    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self.position = {"epoch": 0, "index": 0}  # the setter below shuffles

    def __len__(self):
        return self.n

    @property
    def position(self):
        return {"epoch": self.epoch, "index": self.index}

    @position.setter
    def position(self, position):
        self.epoch, self.index = map(operator.index, (position["epoch"], position["index"]))
        if not (0 <= self.epoch and 0 <= self.index < len(self)):
            raise IndexError(f"stream: expected a place in {len(self)} items, got {position!r:.60}")
        self.shuffle(np.random.default_rng((self.seed, self.epoch)))

    def shuffle(self, rng):
        """Set `order` for the epoch that begins."""
        self.order = rng.permutation(len(self))

    def take(self, n):
        """-> the next n places (n,); at the end of an epoch it continues with the next"""
        places = np.empty(n, int)
        for i in range(n):
            places[i] = self.order[self.index]
            self.index += 1
            if self.index == len(self):
                self.position = {"epoch": self.epoch + 1, "index": 0}
        return places
