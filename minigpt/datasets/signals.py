"""Images and sounds as arrays: generated, MNIST's files, folders with a subfolder per class.

A function that gives examples returns (kind, classes, parts, rate). kind is "image" or "sound".
parts are training, validation and test, each a pair x, y: images x (N, Y, X, C) or sounds x (N, T),
and the class of each as y (N,) int32. rate is the samples per second of sounds, or None.
"""

from math import pi
from pathlib import Path

import numpy as np

from minigpt.datasets import splits
from minigpt.datasets.formats import LARGEST, READERS, read_array, read_idx
from minigpt.files import entries, files_in
from minigpt.messages import check, silent

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
MNIST = [f"train-{IMAGES}", f"train-{LABELS}", f"t10k-{IMAGES}", f"t10k-{LABELS}"]
FOLDER = "MNIST's four files, or a subfolder for each class, of .npy, .wav, .png or .jpg files"
WRITTEN = ".txt", ".md", ".rst", ".py"  # a folder with such files is one text
RATE, SAMPLES = 8000, 4000  # of a generated sound: per second, in all


def labels(names, where):
    """The class of each example by name -> the classes, sorted, and y (N,) int32."""
    classes, y, counts = np.unique(names, return_inverse=True, return_counts=True)
    rarest = f"{counts.min()} of {classes[counts.argmin()]}"
    check(len(classes) > 1, where, "two classes or more", f"only {classes[0]}", "add examples")
    check(counts.min() >= 5, where, "5 examples or more of a class", rarest, "add or remove some")
    return classes.tolist(), y.astype(np.int32)


def digits(path):
    """Handwritten digits (data/README.md has their source): 64 pixels and the digit in a row."""
    rows = np.loadtxt(path, np.float32, delimiter=",")
    x, y = rows[:, :64].reshape(-1, 8, 8, 1), rows[:, 64].astype(np.int32)
    return "image", list("0123456789"), [(x[part], y[part]) for part in splits.DIGITS], None


def timbres():
    """What distinguishes five instruments: {name: (ratios, amplitudes, damping)}.

    A tone is a sum of sines, its partials. ratios are their frequencies, divided by the pitch;
    amplitudes say how loud each begins; damping (1/s) how fast it fades, times its ratio. The first
    36 terms of a Fourier series approximate a sawtooth, a square and a triangle.
    """
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
    rng, parts, instruments = np.random.default_rng(seed), [], timbres()
    for n, semitones in splits.SOUNDS:
        x = [tones(rng, n, semitones, *timbre) for timbre in instruments.values()]
        y = np.repeat(np.arange(len(instruments), dtype=np.int32), n)
        parts.append((np.concatenate(x), y))
    return "sound", list(instruments), parts, RATE


def tones(rng, n, semitones, ratios, amplitudes, damping):
    """n sounds of one timbre -> (n, T) float32.

    Pitch, phase, attack, decay, loudness and noise of each are random: a classifier must not be
    able to go by them. Only the proportions of the partials tell the timbre.
    """

    def draw(low, high):
        return rng.uniform(low, high, (n, 1)).astype(np.float32)

    t = np.arange(SAMPLES, dtype=np.float32) / RATE  # s
    pitch = 110 * 2 ** (rng.choice(semitones, n) / 12)  # Hz: 12 semitones double it
    pitch = np.sort(pitch)  # so that the sounds which have a given partial come first
    cycles = pitch[:, None].astype(np.float32) * t + draw(0, 1)  # periods since a random phase
    x = np.zeros_like(cycles)
    for ratio, amplitude in zip(ratios, amplitudes, strict=True):
        # Samples cannot hold frequencies above half their rate (they would sound as lower ones),
        # so only pitches below RATE / 2 / ratio have this partial.
        below = np.searchsorted(pitch, RATE / 2 / ratio)
        envelope = (amplitude * np.exp(-damping * ratio * t)).astype(np.float32)
        x[:below] += envelope * np.sin(2 * pi * float(ratio) * cycles[:below])
    x /= x.std(1, keepdims=True)  # all timbres are equally loud
    attack, decay = np.minimum(1, t / draw(0.005, 0.1)), np.exp(-t * draw(0, 6))
    x *= attack * decay
    x += draw(0.02, 0.3) * rng.standard_normal(x.shape, np.float32)  # noise
    return draw(0.2, 1) * x


def mnist_files(folder):
    """{name: path} of those of MNIST's four files that the folder has, plain or as .gz.

    Some programs unpack them with a dot in the name: train-images.idx3-ubyte.
    """
    files = {}
    for name in MNIST:
        dotted = name.replace("-idx", ".idx")
        for path in (name, dotted, f"{name}.gz", f"{dotted}.gz"):  # a plain one, if there are both
            if (folder / path).exists():
                files.setdefault(name, folder / path)
    return files


def mnist(folder):
    """MNIST, or data in its format, whose labels are digits."""
    files = mnist_files(folder)
    lacking = ", ".join(name for name in MNIST if name not in files)
    check(not lacking, folder, "MNIST's four files", f"no {lacking}", "add what is absent")
    images, truth, test_images, test_truth = (files[name] for name in MNIST)
    x, y = read_idx(images, 3), read_idx(truth, 1)
    x_test, y_test = read_idx(test_images, 3), read_idx(test_truth, 1)
    for path, found, n in (truth, y, len(x)), (test_truth, y_test, len(x_test)):
        check(len(found) == n, path, f"{n} labels", len(found), "use files of one data set")
        check(found.max() < 10, path, "labels from 0 to 9", found.max(), "use data like MNIST's")
    size, size_test = (" x ".join(map(str, array.shape[1:])) for array in (x, x_test))
    check(size == size_test, test_images, f"images of {size}", size_test, "make them equal")
    x, x_test = x[..., None], x_test[..., None]
    y, y_test = y.astype(np.int32), y_test.astype(np.int32)
    parts = [(x[part], y[part]) for part in splits.last_tenth(len(x))]
    return "image", list("0123456789"), [*parts, (x_test, y_test)], None


def inside(folder):
    """What the subfolders hold, in order."""
    return [path for place in entries(folder) if place.is_dir() for path in entries(place)]


def class_files(folder):
    """The files in subfolders that can be examples, in order."""
    return [p for p in inside(folder) if p.suffix.lower() in READERS and p.is_file()]


def others(folder, files):
    """The rest of what the folder and its subfolders hold, in words; "" if there is none."""
    read = {*files, *(path.parent for path in files)}
    paths = [p for p in entries(folder) + inside(folder) if p not in read]
    names = ", ".join(str(p.relative_to(folder)) for p in paths[:3])
    return names + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def kind_of_folder(folder):
    """Whether a folder holds images, sounds or text.  Raises ValueError: what it may hold."""
    if mnist_files(folder):
        return "image"
    if not class_files(folder) and any(p.suffix.lower() in WRITTEN for p in files_in(folder)):
        return "text"
    files, remedy = class_files(folder), "bring it into this form, or name a file in it"
    need = f"{FOLDER}; or text files ({', '.join(WRITTEN)})"
    check(files, folder, need, others(folder, []) or "nothing", remedy)
    return kind_of(read_array(files[0])[0])


def class_folder(folder, seed, tell=silent):
    """A subfolder per class, a file per example; sounds are brought to their median length."""
    files = class_files(folder)
    if left := others(folder, files):
        tell(f"{folder}: left aside {left}; it may hold {FOLDER}")
    classes, y = labels([path.parent.name for path in files], folder)
    arrays, rate = read_all(folder, files)
    kind = kind_of(arrays[0])
    if kind == "sound":
        length = int(np.median([x.shape[-1] for x in arrays]))
        arrays = [fitted(x, length) for x in arrays]
    x = np.stack(arrays)
    if x.ndim == 3:  # images without channels: one
        x = x[..., None]
    parts = [(x[places], y[places]) for places in splits.stratified(y, seed)]
    return kind, classes, parts, rate


def read_all(folder, files):
    """The files of a folder -> their arrays, and the samples per second of sounds or None.

    Each is compared with the first as soon as it is read: images of other sizes must not pile up.
    """
    arrays, first, rate = [], None, None
    for path in files:
        x, own = read_array(path)
        if first is None:
            first, rate = x, own
            few = kind_of(x) == "sound" or x.size * len(files) <= LARGEST
            wanted = f"at most {LARGEST:,} numbers in all images"
            check(few, folder, wanted, x.size * len(files), "make them smaller")
        check(x.ndim < 4, path, "1 to 3 axes", x.ndim, "store one example per file")
        alike = x.shape == first.shape or kind_of(x) == kind_of(first) == "sound"
        remedy = "make them equal"
        check(alike, path, f"shape {first.shape} as in {files[0]}", x.shape, remedy)
        check(own == rate, path, f"{rate} samples per second", own, remedy)
        arrays.append(x)
    return arrays, rate


def kind_of(x):
    """The kind of one example's array: one axis is a sound, more are an image."""
    return "sound" if x.ndim == 1 else "image"


def fitted(x, length):
    """Sounds (..., T) cut, or continued by silence, to the length."""
    x = x[..., :length]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])


class ArrayEncoder:
    """Raw images, sounds -> what a model reads: x = (raw - mean) / scale, two numbers for all."""

    def __init__(self, kind, shape, mean, scale, rate):
        self.kind, self.shape, self.mean, self.scale = kind, tuple(shape), mean, scale
        self.rate = rate

    @classmethod
    def fit(cls, kind, raw, rate):
        """The encoder of a training part raw (N, *shape), with the mean and scale of all of it."""
        raw = raw.astype(np.float32)
        with np.errstate(over="ignore"):
            mean, scale = float(raw.mean()), float(raw.std()) or 1.0
        most = f"{np.abs(raw).max():g}"
        check(np.isfinite(mean + scale), f"{kind}s", "numbers of a usual size", most, "scale them")
        return cls(kind, raw.shape[1:], mean, scale, rate)

    def scaled(self, raw):
        """raw -> x float32"""
        return (raw.astype(np.float32) - self.mean) / self.scale

    def encode(self, path, tell=silent):
        """A .npy file of one example or several, or a sound or image of its own -> x (N, *shape)"""
        raw, rate = read_array(path)
        if self.kind == "sound":
            same = rate in (self.rate, None)
            check(same, path, f"{self.rate} samples per second", rate, "convert it")
            raw = fitted(raw, *self.shape)
        shape = self.shape
        if shape[2:] == (1,) and raw.shape[-1:] != (1,):
            shape = shape[:2]  # the one channel of images may be left out
        wanted = f"{self.kind}s of {' x '.join(map(str, shape))}"
        several = raw.shape[1:] == shape and Path(path).suffix.lower() == ".npy"
        right = raw.shape == shape or several
        check(right, path, wanted, " x ".join(map(str, raw.shape)), "convert it")
        return self.scaled(raw.reshape(-1, *self.shape))

    def config(self):
        return vars(self) | {"shape": list(self.shape)}
