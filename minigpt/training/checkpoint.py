"""A checkpoint: one safetensors file with all arrays, and the rest as one JSON text in its header.

Nothing is pickled: opening a stranger's file cannot run code. Equal states give equal bytes.
"""

import json
import os
import zlib

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from minigpt.engine.arrays import to_numpy

KEY, VERSION = "minigpt", 2  # where the JSON stands in the header, and the layout it has


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of this program; the text says what is wrong."""


def save(path, arrays, about):
    """Write {name: array} and the JSON-able dict `about` to path, or leave path as it was.

    The file is written beside and renamed over: whatever happens, path holds an old or a new whole.
    """
    beside = f"{path}.{os.getpid()}"
    arrays = {name: np.asarray(to_numpy(a), order="C") for name, a in arrays.items()}
    about = {"version": VERSION, "crc": checksum(arrays, about), **about}
    header = {KEY: json.dumps(about, sort_keys=True)}
    try:
        with open(beside, "wb") as file:
            file.write(to_bytes(arrays, header))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def load(path):
    """path -> ({name: array}, about).  Raises FileNotFoundError or CheckpointError."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no file; train one first")
    try:
        open(path, "rb").close()  # safetensors would call a file that may not be read damaged
        with safe_open(path, "numpy") as file:
            about = (file.metadata() or {}).get(KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        about = about and json.loads(about)
    except (SafetensorError, AttributeError, ValueError, TypeError, RecursionError) as e:
        why = f"({str(e).splitlines()[0]}); use another"
        raise CheckpointError(f"{path}: damaged, or no checkpoint at all {why}") from None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: a safetensors file, but not written by minigpt's train.py")
    if (version := about.pop("version", None)) != VERSION:
        got = f"got {version}; open it with the minigpt that wrote it"
        raise CheckpointError(f"{path}: expected checkpoint version {VERSION}, {got}")
    if about.pop("crc", None) != checksum(arrays, about):
        raise CheckpointError(f"{path}: damaged, its checksum is another; use another checkpoint")
    return arrays, about


def checksum(arrays, about):
    """CRC-32 of all but the version and itself: safetensors does not notice a flipped bit."""
    crc = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, a in sorted(arrays.items()):
        crc = zlib.crc32(a, zlib.crc32(f"{name} {a.dtype} {a.shape}".encode(), crc))
    return crc


def weights(arrays):
    """The model's part of a loaded checkpoint: all but the optimizer's arrays."""
    return {name: a for name, a in arrays.items() if not name.startswith("optimizer.")}
