"""One file -> one array: MNIST's idx files, .npy, .wav, and .png and .jpg through Pillow.

A file may come from a stranger: what it claims to hold is compared with limits before memory is
taken for it.
"""

import gzip
import struct
import warnings
import zlib
from math import prod
from pathlib import Path

import numpy as np

from minigpt.messages import check

LARGEST = 1 << 30  # bytes of an idx file, and numbers of all images in a folder
PIXELS = 1 << 24  # of one image


def read_idx(path, axes):
    """An idx file of bytes with 1 or 3 axes -> uint8. It begins with 0, 0, 8 (the type of its data)
    and the number of axes. The length of each axis follows as a big-endian uint32, then the data.
    """
    start, magic = 4 + 4 * axes, bytes([0, 0, 8, axes])
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(start)
            form, got = f"an idx file ({magic.hex(' ')})", head[:4].hex(" ") or "no byte"
            check(head[:4] == magic, path, form, got, "name another")
            shape = [int.from_bytes(head[i : i + 4]) for i in range(4, start, 4)]
            size = prod(shape)
            check(size < LARGEST, path, f"less than {LARGEST} bytes", size, "name another")
            data = file.read(size + 1)  # no more: a small .gz may hold any number of zeros
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ValueError(f"{path}: expected a readable file, got {e}; copy it again") from None
    got = f"{len(head) + len(data)} bytes"
    if len(data) > size:
        got = f"more than {start + size} bytes"
    check(len(data) == size > 0, path, f"{start + size} bytes for {shape}", got, "copy it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_array(path):
    """A file whose ending is in READERS -> its numbers, and its samples per second or None."""
    check(not Path(path).is_dir(), path, "a file", "a folder", "name a file in it")
    suffix = Path(path).suffix.lower()
    reader = READERS.get(suffix, read_npy)  # its error says what is wrong with another file
    try:
        x, rate = reader(path)
    except Exception as e:  # a damaged file makes NumPy and Pillow raise anything
        if isinstance(e, OSError) and e.errno:  # the file cannot be opened: not its content's fault
            raise
        if str(e).startswith(f"{path}: "):
            raise
        form = f"numbers in {suffix if suffix in READERS else '.npy'}"
        got = repr(e).splitlines()[0][:100]
        raise ValueError(f"{path}: expected {form}, got {got}; convert it") from None
    right = x.ndim and x.size and np.isfinite(x).all()
    got = "NaN or infinity" if x.ndim and x.size else f"an array of shape {x.shape}"
    check(right, path, "an array of finite numbers", got, "correct it")
    return x, rate


def read_npy(path):
    """A .npy file -> float32, and None for the rate that it does not tell.

    Mapping fails if the file is shorter than its header says, so a false header takes no memory;
    and no pickled object, which could run code, is read.
    """
    x = np.lib.format.open_memmap(path, mode="r")
    with np.errstate(over="ignore"):  # then it is infinite, and refused
        return x.astype(np.float32, casting="same_kind"), None


# What the samples of a .wav may be: by their format (1: whole numbers, 3: floats) and their bits,
# NumPy's name for them, the number that stands for silence, and the largest distance from it.
SAMPLES = {
    (1, 8): ("u1", 128, 128),
    (1, 16): ("<i2", 0, 1 << 15),
    (1, 24): ("<i4", 0, 1 << 31),  # once a fourth byte is added
    (1, 32): ("<i4", 0, 1 << 31),
    (3, 32): ("<f4", 0, 1),
    (3, 64): ("<f8", 0, 1),
}
STREAMED = 0x7FFF0000  # bytes; who writes into a pipe does not know the length, and claims so much
EXTENSIBLE = 0xFFFE  # the format that says: the format stands further behind


def read_wav(path):
    """A .wav file -> its samples (T,) in [-1, 1), the mean of its channels, and their rate."""
    chunks = wav_chunks(path)
    whole = {b"fmt ", b"data"} <= chunks.keys()
    check(whole, path, "a .wav file with fmt and data", b" ".join(chunks)[:40], "copy it again")
    head, (size, data) = chunks[b"fmt "][1], chunks[b"data"]
    known = 0 < size < STREAMED or len(data) == size > 0
    got = f"a header that claims {size:,} bytes, as pipes and recordings that broke off have it"
    remedy = "save it anew with an audio editor, or: ffmpeg -i OLD.wav NEW.wav"
    check(known, path, "the length of the sound", got, remedy)
    check(len(data) == size, path, f"{size} bytes of sound", len(data), "copy it again")
    form, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head)
    if form == EXTENSIBLE:
        (form,) = struct.unpack_from("<H", head, 24)
    wanted, got = "8, 16, 24 or 32 bits, or floats of 32 or 64", f"format {form} of {bits} bits"
    check((form, bits) in SAMPLES and channels, path, wanted, got, "convert it, say to 16 bits")
    kind, silence, loudest = SAMPLES[form, bits]
    data = data[: size - size % (channels * bits // 8)]  # a moment that was cut is left out
    if bits == 24:  # a byte of 0 before the other three makes them the upper part of 32 bits
        data = np.pad(np.frombuffer(data, "u1").reshape(-1, 3), [(0, 0), (1, 0)]).tobytes()
    with np.errstate(all="ignore"):  # of floats that are no numbers; these are refused
        x = np.frombuffer(data, kind).reshape(-1, channels).mean(1, np.float32)
    return (x - silence) / loudest, rate


def wav_chunks(path):
    """The chunks that a .wav file consists of -> {name: (length that it claims, bytes)}.

    A chunk is a name of four bytes, a length as a little-endian uint32, and so many bytes; the next
    one begins at an even place. Chunks besides "fmt " and "data" hold titles and the like.
    """
    data, chunks, start = Path(path).read_bytes(), {}, 12
    right = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    check(right, path, "a .wav file (RIFF, WAVE)", data[:12], "convert it")
    while start + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, start)
        chunks.setdefault(name, (size, data[start + 8 : start + 8 + size]))
        start += 8 + size + size % 2
    return chunks


def read_image(path):
    """A .png or .jpg -> its pixels from 0 to 255, (Y, X) of grey or (Y, X, 3) of colours, and None.

    A photo is turned as its camera says, and white shines through where an image is transparent.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        remedy = 'pip install -e ".[images]"'
        check(False, path, "Pillow, which reads images", "none installed", remedy)
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what is checked here or does not matter
        try:
            image = Image.open(file, formats=("PNG", "JPEG"))  # reads the size, no pixel yet
        except UnidentifiedImageError:
            file.seek(0)
            got = file.read(12) or "an empty file"
            check(False, path, "an image, numbers in .png or .jpg", got, "save the image itself")
        size = f"{image.height:,} x {image.width:,}"
        small = image.height * image.width <= PIXELS
        check(small, path, f"{PIXELS:,} pixels at most", size, "make it smaller")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # grey of 16 bits, up to 65,535 = 255 * 257
            return np.asarray(image).astype(np.float32) / 257, None
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"  # grey or colours
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.asarray(image.convert(mode)), None


READERS = {  # by the end of a file's name
    ".npy": read_npy,
    ".wav": read_wav,
    ".png": read_image,
    ".jpg": read_image,
    ".jpeg": read_image,
}
