"""What is refused of a checkpoint whose writer nobody knows, and which run a checkpoint is of.

A checksum says that a file is whole, not who wrote it: anything may stand in it.
"""

import hashlib
import json
import math
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from minigpt.training.checkpoint import CheckpointError, weights

# may change on --resume
FREE = {"data", "out", "steps", "patience", "device", "precision", "plain", "workers"}


def identity(config, crc, origin=None):
    """A hash of what a run is: its options, the checksum of its data, and the hash of the model it
    began with; the same run, the same."""
    options = asdict(config) | dict.fromkeys(FREE | {"init"})
    what = [options, crc, origin and origin["sha256"]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def same_run(out, best, last):
    """Raises CheckpointError unless the best and the last checkpoint in a folder are of one run."""
    if best.get("run") != last.get("run"):
        what = f"{out}: best.safetensors and last.safetensors are of two different runs"
        raise CheckpointError(f"{what}; move one of them to another folder")


@contextmanager
def foreign(path):
    """Within the block, what a file makes fail is told as one line that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as e:
        why = f"{type(e).__name__}: {e}".splitlines()[0]
        raise CheckpointError(f"{path}: not what minigpt writes ({why}); use another") from None


def shape_of(about):
    """What a checkpoint says of the shape of a model that began with another one, beside the
    options: n_inner and layer_norm_epsilon. Raises TypeError if it cannot be that."""
    origin = about.get("origin")
    if origin is None:
        return {}
    shape = origin["shape"]
    words = [origin["from"], origin["sha256"]]
    right = all(isinstance(word, str) and word.isprintable() for word in words)
    right = right and isinstance(origin["first"], float) and math.isfinite(origin["first"])
    inner, epsilon = shape["n_inner"], shape["layer_norm_epsilon"]
    right = right and len(shape) == 2 and (inner is None or (type(inner) is int and inner > 0))
    if not (right and isinstance(epsilon, float) and 0 < epsilon < 1):
        raise TypeError(f"origin: {origin!r:.60}")
    return shape


def refuse_larger(path, config, arrays, about):
    """Raises CheckpointError if the options ask for a larger model than the file holds, before it
    is built: a few bytes could ask for more memory than any machine has. Also if the weights are no
    finite floats."""
    arrays, shape = weights(arrays), shape_of(about)
    if not str(about.get("folder")).isprintable():
        raise TypeError(f"folder: {about['folder']!r:.60}")
    blocks = {name.split(".")[1] for name in arrays if name.startswith("blocks.")}
    longest = max((n for a in arrays.values() for n in a.shape), default=0)
    for what, asked, held in (
        ("n_layer", config.n_layer, len(blocks) or 1000),  # a CNN has no blocks, and no widths
        ("n_embd", config.n_embd, longest if blocks else 100_000),
        ("n_inner", shape.get("n_inner") or 1, longest or 1),
        ("block_size", config.block_size, 1_000_000),
    ):
        if asked > held:
            raise CheckpointError(
                f"{path}: expected {what} of at most {held}, as its weights are, "
                f"got {asked}; use another"
            )
    for name, a in arrays.items():
        if a.dtype not in (np.float32, np.float64):
            raise CheckpointError(f"{path}: {name}: expected float32, got {a.dtype}; use another")
        if not np.isfinite(a).all():
            raise CheckpointError(f"{path}: {name}: expected finite numbers, got NaN or infinity")
