"""Choosing where to compute: on a GPU through CuPy if one answers, otherwise on the CPU.

Only this file imports cupy.
"""

import ctypes
import sys

import numpy as np

from minigpt.engine.arrays import LIBRARIES


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

            one = cupy.ones((1, 1), "f")
            (one @ one).item()  # the import succeeds without a driver: only real work tells
            LIBRARIES[cupy.ndarray] = cupy
            return cupy, f"GPU, CuPy {cupy.__version__}"
        except ImportError:
            why = "CuPy is not installed: pip install -e '.[cuda12]' or '.[cuda13]'"
        except Exception as error:  # CuPy's driver, compiler and library errors share no other base
            why = f"no GPU answers: {(str(error) or repr(error)).splitlines()[0]}"
    if name == "gpu":
        raise ValueError(f"device gpu: {why}; or use --device cpu")
    keep_pages()
    return np, f"CPU ({why})"


def keep_pages():
    """Ask glibc to keep freed blocks instead of mapping every large array anew.

    Fresh pages cost a fault each: a GPT step of 4x128 takes 72 ms with them and 46 without.
    """
    here = sys.platform == "linux"  # and there only glibc has mallopt
    if mallopt := here and getattr(ctypes.CDLL(None), "mallopt", None):
        # M_MMAP_THRESHOLD: blocks below 1 GB come from the heap; older versions allow 32 MB
        mallopt(-3, 1 << 30) or mallopt(-3, 1 << 25)
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
