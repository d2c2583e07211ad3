"""A checkpoint: one safetensors file with all arrays, and the rest as one JSON text in its header.

Python's own way to store objects, pickle, can run any code when a file is opened. safetensors holds
numbers and text only, so a stranger's file is safe to open. Equal states give equal bytes.
"""

import json
import os
import zlib

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from minigpt.engine.arrays import to_numpy
from minigpt.files import write_whole
from minigpt.training.folder import absent

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
    try:
        data = to_bytes(arrays, header)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise MemoryError(f"{path}: no memory to save; the file before stays") from None
    write_whole(path, data, keep)


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


def weights(arrays):
    """The model's part of a loaded checkpoint: all but the optimizer's arrays."""
    return {name: a for name, a in arrays.items() if not name.startswith("optimizer.")}
