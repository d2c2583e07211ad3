"""A checkpoint: one safetensors file with all arrays, and the rest as one JSON text in its header.

Python's own way to store objects, pickle, can run any code when a file is opened. safetensors holds
numbers and text only, so a stranger's file is safe to open. Equal states give equal bytes.
"""

import json
import os
import zlib
from contextlib import contextmanager

import numpy as np
from safetensors import SafetensorError, safe_open

from minigpt.engine.arrays import to_numpy
from minigpt.files import write_whole
from minigpt.training.folder import absent

KEY, VERSION = "minigpt", 5  # where the JSON stands in the header, and the layout it has
OPTIMIZER = "optimizer."  # how the names of an optimizer's arrays begin


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of this program; the text says what is wrong."""


def save(path, arrays, about, keep=True):
    """Write {name: array} and the JSON-able dict `about` to path, or leave path as it was.

    keep=False only tries whether there is room for it.
    """
    arrays = {name: _in_order(to_numpy(a)) for name, a in sorted(arrays.items())}
    about = {"version": VERSION, "crc": checksum(about, arrays.items()), **about}
    parts = safetensors(arrays, {KEY: json.dumps(about, sort_keys=True)})
    write_whole(path, *parts, keep=keep)


def safetensors(arrays, metadata):
    """{name: array} and {key: text} in the layout of a safetensors file -> the parts of the file

    It begins with the size of the header in 8 bytes. The header is a JSON text that says of each
    array which of the bytes behind it are its own; then come the arrays. The package's own function
    would hold all of them in memory once more.
    Source: github.com/huggingface/safetensors, section Format.
    """
    arrays = {name: _in_order(a) for name, a in arrays.items()}
    header, end = {"__metadata__": metadata}, 0
    for name, a in arrays.items():
        start, end = end, end + a.nbytes
        dtype = f"{a.dtype.kind.upper()}{8 * a.itemsize}"  # F32
        header[name] = {"dtype": dtype, "shape": a.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little"), text, *arrays.values()


def _in_order(a):
    """The array a with its last axis running fastest, and the low byte of each number first."""
    return np.asarray(a, a.dtype.newbyteorder("<"), order="C")


def load(path, moments=True):
    """Read a whole checkpoint -> ({name: array}, about)

    moments=False checks the optimizer's arrays, too, but returns the weights alone.
    Raises FileNotFoundError if there is no file, CheckpointError if it is not what save wrote.
    """
    with _opened(path) as (file, about):
        crc, arrays = about.pop("crc", None), {}

        def read():
            for name in sorted(file.keys()):
                a = file.get_tensor(name)
                if moments or not name.startswith(OPTIMIZER):
                    arrays[name] = a
                yield name, a

        if crc != checksum(about, read()):
            raise CheckpointError(f"{path}: damaged, its checksum does not match; use another")
    return arrays, about


def read_about(path):
    """Read the JSON part alone, which a listing of many runs needs -> about

    No array is read, so damage among the arrays goes unnoticed. Raises as load does.
    """
    with _opened(path) as (_, about):
        about.pop("crc", None)
        return about


@contextmanager
def _opened(path):
    """The open file and its JSON part, if this version of the program wrote it.

    Whatever damage makes safetensors or json raise becomes a CheckpointError of one line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no file; {absent(path)}")
    try:
        open(path, "rb").close()  # safetensors would call a file damaged that nobody may read
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            _check_version(path, about)
            yield file, about
    except CheckpointError:
        raise
    except (SafetensorError, AttributeError, ValueError, TypeError, RecursionError) as e:
        why = f"({str(e).splitlines()[0]}); use another"
        raise CheckpointError(f"{path}: damaged, or no checkpoint at all {why}") from None


def _check_version(path, about):
    if not isinstance(about, dict):
        hint = "; of Hugging Face's files name the folder"
        what = "a safetensors file, but not written by minigpt's train.py"
        raise CheckpointError(f"{path}: {what}{hint}")
    version = about.pop("version", None)
    if version != VERSION:
        got = f"got {version}; open it with the minigpt that wrote it"
        raise CheckpointError(f"{path}: expected checkpoint version {VERSION}, {got}")


def checksum(about, arrays):
    """A CRC-32 of all that is saved, because safetensors does not notice a flipped bit.

    It covers the JSON part and the names, types, shapes and numbers of all arrays, which come as
    pairs (name, array), in the order of their names.
    """
    crc = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, a in arrays:
        crc = zlib.crc32(f"{name} {a.dtype} {a.shape}".encode(), crc)
        crc = zlib.crc32(a, crc)
    return crc


def weights(arrays):
    """The model's part of a loaded checkpoint: all but the optimizer's arrays."""
    return {name: a for name, a in arrays.items() if not name.startswith(OPTIMIZER)}
