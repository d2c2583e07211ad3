"""Images and sounds as arrays: generated, MNIST's files, folders of .npy and .wav files.

What gives examples returns (kind, classes, parts, rate): parts are training, validation and test,
each x, images (N, Y, X, C) or sounds (N, T), and y (N,) int32; rate in samples per second or None.
"""

import gzip
import wave
import zlib
from math import pi, prod

import numpy as np

from minigpt.messages import check

MNIST = [f"{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")]
RATE, SAMPLES = 8000, 4000  # of a generated sound: per second, in all
# above 110 Hz, over three octaves: what is tested was not heard in training
SEMITONES = [[s for s in range(36) if s % 5 in rests] for rests in ((0, 1, 3), (2,), (4,))]


def labels(names, where):
    """The class of each example by name -> the classes, sorted, and y (N,) int32."""
    classes, y, counts = np.unique(names, return_inverse=True, return_counts=True)
    rarest = f"{counts.min()} of {classes[counts.argmin()]}"
    check(len(classes) > 1, where, "two classes or more", f"only {classes[0]}", "add examples")
    check(counts.min() >= 5, where, "5 examples or more of a class", rarest, "add or remove some")
    return classes.tolist(), y.astype(np.int32)


def split(y, seed):
    """y (N,) -> places of training, validation, test: 60, 20 and 20 % of each class at random."""
    rng, classes = np.random.default_rng(seed), []
    for k in np.unique(y):
        places = rng.permutation(np.flatnonzero(y == k))
        classes.append(np.split(places, [len(places) * 3 // 5, len(places) * 4 // 5]))
    return [np.sort(np.concatenate(part)) for part in zip(*classes, strict=True)]


def digits(path):
    """The committed digits; the last 360 are for testing, the 180 before for validation."""
    rows = np.loadtxt(path, np.float32, delimiter=",")
    x, y = rows[:, :64].reshape(-1, 8, 8, 1), rows[:, 64].astype(np.int32)
    parts = slice(1257), slice(1257, 1437), slice(1437, None)
    return "image", list("0123456789"), [(x[part], y[part]) for part in parts], None


def timbres():
    """{name: overtones}: frequencies over the pitch, amplitudes, damping (1/s) per frequency."""
    every, odd = np.arange(1, 37), np.arange(1, 37, 2)
    bar = np.array([1, 2.76, 5.40, 8.93])  # of a struck bar, whose ends are free
    return {
        "bell": (bar, 1 / np.sqrt(bar), 3),
        "sawtooth": (every, 1 / every, 0),
        "sine": (every[:1], every[:1], 0),
        "square": (odd, 1 / odd, 0),
        "triangle": (odd, (-1) ** (odd // 2) / odd**2, 0),
    }


def sounds(seed):
    """Half seconds of five timbres: 1,500 for training, 250 for validation, 500 for testing."""
    rng, parts, kinds = np.random.default_rng(seed), [], timbres()
    for n, semitones in zip((300, 50, 100), SEMITONES, strict=True):
        x = [tones(rng, n, semitones, *overtones) for overtones in kinds.values()]
        parts.append((np.concatenate(x), np.repeat(np.arange(5, dtype=np.int32), n)))
    return "sound", list(kinds), parts, RATE


def tones(rng, n, semitones, ratios, amplitudes, damping):
    """n sounds (n, T) of one timbre: pitch, phase, attack, decay, loudness and noise at random."""

    def draw(low, high):
        return rng.uniform(low, high, (n, 1)).astype(np.float32)

    t = np.arange(SAMPLES, dtype=np.float32) / RATE  # s
    pitch = np.sort(110 * 2 ** (rng.choice(semitones, n) / 12))  # Hz; the low ones first
    cycles = pitch[:, None].astype(np.float32) * t + draw(0, 1)
    x = np.zeros_like(cycles)
    for ratio, amplitude in zip(ratios, amplitudes, strict=True):
        heard = np.searchsorted(pitch, RATE / 2 / ratio)  # above half the rate tones fold back
        envelope = (amplitude * np.exp(-damping * ratio * t)).astype(np.float32)
        x[:heard] += envelope * np.sin(2 * pi * float(ratio) * cycles[:heard])
    x /= x.std(1, keepdims=True)  # loudness tells nothing
    x *= np.minimum(1, t / draw(0.005, 0.1)) * np.exp(-t * draw(0, 6))
    x += draw(0.02, 0.3) * rng.standard_normal(x.shape, np.float32)
    return draw(0.2, 1) * x


def mnist_files(folder):
    """{name: path} of MNIST's four files, plain or .gz, as far as they are in the folder."""
    paths = [(name, folder / (name + end)) for end in (".gz", "") for name in MNIST]
    return {name: path for name, path in paths if path.exists()}


def mnist(folder):
    """MNIST or its like; validation = the last 10 % of the training images."""
    files = mnist_files(folder)
    lacking = ", ".join(name for name in MNIST if name not in files)
    check(not lacking, folder, "MNIST's four files", f"no {lacking}", "add what is absent")
    x, y, x_test, y_test = (read_idx(files[name], 1 + 2 * ("images" in name)) for name in MNIST)
    for images, truth, path in ((x, y, files[MNIST[1]]), (x_test, y_test, files[MNIST[3]])):
        n = len(truth)
        check(n == len(images), path, f"{len(images)} labels", n, "take files of one set")
        check(truth.max() < 10, path, "labels from 0 to 9", truth.max(), "take MNIST's like")
    size, size_test = (" x ".join(map(str, images.shape[1:])) for images in (x, x_test))
    check(size == size_test, files[MNIST[2]], f"images of {size}", size_test, "make them equal")
    n = len(x) * 9 // 10
    parts = (x[:n], y[:n]), (x[n:], y[n:]), (x_test, y_test)
    return "image", list("0123456789"), [(x[..., None], y.astype(np.int32)) for x, y in parts], None


def read_idx(path, axes):
    """Bytes of 1 or 3 axes: 0, 0, 8, the number of axes, each length as big-endian uint32, data."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ValueError(f"{path}: expected a readable file, got {e}; copy it again") from None
    start, magic = 4 + 4 * axes, bytes([0, 0, 8, axes])
    form, got = f"an idx file ({magic.hex(' ')})", raw[:4].hex(" ") or "no byte"
    check(raw[:4] == magic, path, form, got, "name another")
    shape = [int.from_bytes(raw[i : i + 4]) for i in range(4, start, 4)]
    size = start + prod(shape)  # compared before any memory is taken
    got = f"{len(raw)} bytes"
    check(len(raw) == size > start, path, f"{size} bytes for {shape}", got, "copy it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def class_files(folder):
    """The .npy and .wav files in subfolders, in order."""
    return [p for p in sorted(folder.glob("*/*")) if p.suffix.lower() in (".npy", ".wav")]


def class_folder(folder, seed):
    """A subfolder per class, a file per example; sounds are brought to their median length."""
    files = class_files(folder)
    check(files, folder, "subfolders of .npy or .wav files", "none", "make one per class")
    classes, y = labels([path.parent.name for path in files], folder)
    arrays, rates = zip(*map(read_array, files), strict=True)
    kind = kind_of(arrays[0])
    if kind == "sound":
        length = int(np.median([x.shape[-1] for x in arrays]))
        arrays = [fitted(x, length) for x in arrays]
    shape = arrays[0].shape
    for path, x, rate in zip(files, arrays, rates, strict=True):
        check(x.ndim < 4, path, "1 to 3 axes", x.ndim, "store one example per file")
        check(x.shape == shape, path, f"shape {shape} as in {files[0]}", x.shape, "make them equal")
        check(rate == rates[0], path, f"{rates[0]} samples per second", rate, "make them equal")
    x = np.stack(arrays)
    x = x[..., None] if x.ndim == 3 else x
    return kind, classes, [(x[places], y[places]) for places in split(y, seed)], rates[0]


def kind_of(x):
    """Of one example's array: one axis is a sound."""
    return "sound" if x.ndim == 1 else "image"


def fitted(x, length):
    """Sounds (..., T) cut, or continued by silence, to the length."""
    x = x[..., :length]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])


def read_array(path):
    """A .npy or .wav file -> its array float32, stereo averaged, and its rate or None."""
    rate = None
    try:
        if str(path).lower().endswith(".wav"):
            with wave.open(str(path), "rb") as f:
                channels, width, rate, n = f.getparams()[:4]
                raw = f.readframes(n)
            form, zero, one = {1: ("u1", 128, 128), 2: ("<i2", 0, 32768)}[width]
            x = np.frombuffer(raw, form).reshape(-1, channels).mean(1, np.float32)
            x = (x - zero) / one
        else:  # mapped: the file is as large as its head says before memory is taken; no pickles
            x = np.lib.format.open_memmap(path, mode="r").astype(np.float32, casting="same_kind")
    except (EOFError, TypeError, ValueError, KeyError, wave.Error) as e:
        form = "numbers in .npy, or 8 or 16 bits in .wav"
        raise ValueError(f"{path}: expected {form}, got {e!r}; convert it") from None
    right = x.ndim and x.size and np.isfinite(x).all()
    check(right, path, "an array of finite numbers", "NaN, infinity or none", "mend it")
    return x, rate


class ArrayEncoder:
    """x = (raw - mean) / scale, two numbers of the training part, for images and sounds."""

    def __init__(self, kind, shape, mean, scale, rate):
        self.kind, self.shape, self.mean, self.scale = kind, tuple(shape), mean, scale
        self.rate = rate

    @classmethod
    def fit(cls, kind, raw, rate):
        """raw (N, *shape), the training part"""
        raw = raw.astype(np.float32)
        return cls(kind, raw.shape[1:], float(raw.mean()), float(raw.std()) or 1.0, rate)

    def scaled(self, raw):
        """raw -> x float32"""
        return (raw.astype(np.float32) - self.mean) / self.scale

    def encode(self, path):
        """A .npy file of one example or several, or a .wav file -> x (N, *shape)"""
        raw, rate = read_array(path)
        if self.kind == "sound":
            right = rate in (self.rate, None)
            check(right, path, f"{self.rate} samples per second", rate, "convert it")
            raw = fitted(raw, *self.shape)
        shape = self.shape[:2] if self.shape[2:] == (1,) and raw.shape[-1:] != (1,) else self.shape
        wanted = f"{self.kind}s of {' x '.join(map(str, shape))}"
        right = raw.shape in (shape, (*raw.shape[:1], *shape))
        check(right, path, wanted, " x ".join(map(str, raw.shape)), "convert it")
        return self.scaled(raw.reshape(-1, *self.shape))

    def config(self):
        return vars(self) | {"shape": list(self.shape)}
