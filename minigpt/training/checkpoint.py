"""A checkpoint: one safetensors file with all arrays, and the rest as one JSON text in its header.

Python's own way to store objects, pickle, can run any code when a file is opened. safetensors holds
numbers and text only, so a stranger's file is safe to open. Equal states give equal bytes.
"""

import hashlib
import json
import os
import zlib
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from minigpt.engine.arrays import to_numpy
from minigpt.files import write_whole
from minigpt.training.folder import absent

FREE = {"data", "out", "steps", "patience", "device", "plain", "workers"}  # may change on --resume
KEY, VERSION = "minigpt", 5  # where the JSON stands in the header, and the layout it has


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of this program; the text says what is wrong."""


def save(path, arrays, about, keep=True):
    """Write {name: array} and the JSON-able dict `about` to path, or leave path as it was.

    keep=False only tries whether there is room for it.
    """
    # safetensors would store a transposed or sliced array in the wrong order, without a word
    arrays = {name: np.asarray(to_numpy(a), order="C") for name, a in arrays.items()}
    about = {"version": VERSION, "crc": checksum(arrays, about), **about}
    header = {KEY: json.dumps(about, sort_keys=True)}
    write_whole(path, to_bytes(arrays, header), keep)


def identity(config, crc):
    """A hash of what a run is: its options and the checksum of its data; the same run, the same."""
    options = asdict(config) | dict.fromkeys(FREE)
    return hashlib.sha256(json.dumps([options, crc], sort_keys=True).encode()).hexdigest()[:16]


def same_run(out, best, last):
    """Raises CheckpointError unless the best and the last checkpoint in a folder are of one run."""
    if best.get("run") != last.get("run"):
        what = f"{out}: best.safetensors and last.safetensors are of two different runs"
        raise CheckpointError(f"{what}; move one of them to another folder")


def load(path):
    """Read a whole checkpoint -> ({name: array}, about)

    Raises FileNotFoundError if there is no file, CheckpointError if it is not what save wrote.
    """
    arrays, about, crc = _read(path)
    if crc != checksum(arrays, about):
        raise CheckpointError(f"{path}: damaged, its checksum does not match; use another")
    return arrays, about


def read_about(path):
    """Read the JSON part alone, which a listing of many runs needs -> about

    No array is read, so damage among the arrays goes unnoticed. Raises as load does.
    """
    return _read(path, with_arrays=False)[1]


def _read(path, with_arrays=True):
    """What lies in a file that this version of the program wrote -> arrays, about, checksum

    Whatever damage makes safetensors or json raise becomes a CheckpointError of one line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no file; {absent(path)}")
    try:
        open(path, "rb").close()  # safetensors would call a file damaged that nobody may read
        with safe_open(path, "numpy") as file:
            names = file.keys() if with_arrays else ()
            arrays = {name: file.get_tensor(name) for name in names}
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
    except (SafetensorError, AttributeError, ValueError, TypeError, RecursionError) as e:
        why = f"({str(e).splitlines()[0]}); use another"
        raise CheckpointError(f"{path}: damaged, or no checkpoint at all {why}") from None

    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: a safetensors file, but not written by minigpt's train.py")
    version = about.pop("version", None)
    if version != VERSION:
        got = f"got {version}; open it with the minigpt that wrote it"
        raise CheckpointError(f"{path}: expected checkpoint version {VERSION}, {got}")
    return arrays, about, about.pop("crc", None)


def checksum(arrays, about):
    """A CRC-32 of all that was saved, because safetensors does not notice a flipped bit.

    It covers the JSON part and the names, types, shapes and numbers of all arrays.
    """
    crc = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, a in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {a.dtype} {a.shape}".encode(), crc)
        crc = zlib.crc32(a, crc)
    return crc


@contextmanager
def foreign(path):
    """Within the block, what a file makes fail is told as one line that names the file.

    Its checksum says that it is whole, not who wrote it: anything may stand in it.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError) as e:
        why = f"{type(e).__name__}: {e}".splitlines()[0]
        raise CheckpointError(f"{path}: not what minigpt writes ({why}); use another") from None


def refuse_larger(path, config, arrays):
    """Raises CheckpointError if the options ask for a larger model than the file holds, before it
    is built: a few bytes could ask for more memory than any machine has. Also if the weights are no
    finite floats."""
    arrays = weights(arrays)
    blocks = {name.split(".")[1] for name in arrays if name.startswith("blocks.")}
    longest = max((n for a in arrays.values() for n in a.shape), default=0)
    for what, asked, held in (
        ("n_layer", config.n_layer, len(blocks) or 1000),  # a CNN has no blocks, and no widths
        ("n_embd", config.n_embd, longest if blocks else 100_000),
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


def weights(arrays):
    """The model's part of a loaded checkpoint: all but the optimizer's arrays."""
    return {name: a for name, a in arrays.items() if not name.startswith("optimizer.")}
