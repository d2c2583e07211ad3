"""Which library owns an array, NumPy or CuPy, and how arrays move between the two.

Arrays decide: every op asks `module_of` for the library of its operand and calls that, so one text
runs on the CPU and on the GPU. This is the only file that imports cupy.
"""

import ctypes
import sys

import numpy as np

LIBRARIES = {np.ndarray: np}  # array type -> its library; select() adds CuPy, tests a stand-in


def module_of(x):
    """The library that owns the array x; Python and NumPy scalars belong to NumPy."""
    return LIBRARIES.get(type(x), np)


def to_numpy(x):
    """The array x as a NumPy array, copied from the GPU if it is there."""
    xp = module_of(x)
    return np.asarray(x) if xp is np else xp.asnumpy(x)


def uniform(xp, shape, seed):
    """Numbers in [0, 1), float32, from Philox keyed by seed: a counter, so nothing is stored.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    philox = xp.random.Philox if xp is np else xp.random.Philox4x3210
    return xp.random.Generator(philox(seed)).random(shape, dtype=xp.float32)


def select(name="auto"):
    """'cpu', 'gpu' or 'auto' (a GPU if one answers) -> (library, one line on what was found).

    Raises ValueError if the name is unknown, or if it is 'gpu' and none answers.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device: expected auto, cpu or gpu, got {name!r}")
    why = "as asked"
    if name != "cpu":
        try:
            import cupy

            cupy.zeros(1) + 1  # the import succeeds without a driver: only real work tells
            LIBRARIES[cupy.ndarray] = cupy
            return cupy, f"GPU, CuPy {cupy.__version__}"
        except ImportError:
            why = "CuPy is not installed: pip install -e '.[cuda12]' or '.[cuda13]'"
        except RuntimeError as error:  # CuPy's driver errors
            why = f"no GPU answers: {str(error).splitlines()[0]}"
    if name == "gpu":
        raise ValueError(f"device gpu: {why}; or use --device cpu")
    keep_pages()
    return np, f"CPU ({why})"


def keep_pages():
    """Ask glibc to keep freed blocks instead of mapping every large array anew.

    Fresh pages cost a fault each: a GPT step of 4x128 took 62 ms with them and 46 without.
    """
    here = sys.platform == "linux"  # and there only glibc has mallopt
    if mallopt := here and getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks below 1 GB come from the heap
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
