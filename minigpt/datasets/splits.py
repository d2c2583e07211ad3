"""Which images, sounds and rows of tables are learned from, and which are held out.

A model learns from the training part. The validation part chooses among its checkpoints. The test
part is read once, at the end, so that its score says what to expect of new examples.
"""

import numpy as np

# Digits: the last 360 of the 1,797 rows are for testing, the 180 before them for validation. The
# split is the same for every seed, so that scores of different runs and programs compare.
DIGITS = slice(0, 1257), slice(1257, 1437), slice(1437, 1797)


def stratified(y, seed):
    """Tables and folders of images or sounds: 60, 20 and 20 % of each class, drawn at random, so
    that a rare class, too, has its share in every part.

    classes y (N,) -> the places of training, validation and test, three sorted arrays
    """
    rng = np.random.default_rng(seed)
    training, validation, test = [], [], []
    for k in np.unique(y):
        places = rng.permutation(np.flatnonzero(y == k))
        n = len(places)
        training.append(places[: n * 3 // 5])
        validation.append(places[n * 3 // 5 : n * 4 // 5])
        test.append(places[n * 4 // 5 :])
    return [np.sort(np.concatenate(part)) for part in (training, validation, test)]


def last_tenth(n):
    """MNIST: its test images have files of their own; of the n others the last 10 % validate."""
    return slice(0, n * 9 // 10), slice(n * 9 // 10, n)


# Generated sounds: how many of each timbre a part has, and at which of the 36 semitones above 110
# Hz. A pitch stands in one part only: what is tested was not heard in training.
HEARD = [s for s in range(36) if s % 5 not in (2, 4)]
SOUNDS = (300, HEARD), (50, [*range(2, 36, 5)]), (100, [*range(4, 36, 5)])
