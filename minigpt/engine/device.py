"""Choosing where to compute: on a GPU through CuPy if one answers, otherwise on the CPU.

No other file imports CuPy, so that everything runs without it.
"""

import ctypes
import sys

import numpy as np

from minigpt.engine.arrays import LIBRARIES


def select(name="auto", precision="float32", rank=0):
    """The library to compute with, numpy or cupy -> (library, one line on what was found)

    name: 'cpu', 'gpu' or 'auto'. precision: of products, 'float32' or 'tf32'. rank: of several
    processes on this machine, each of which takes a GPU of its own. Raises ValueError if a name is
    unknown, if it is 'gpu' and none answers, if there are too few, or if there is no tf32.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device: expected auto, cpu or gpu, got {name!r}")
    why = "as asked"
    if name != "cpu":
        try:
            import cupy

            count = cupy.cuda.runtime.getDeviceCount() if rank else 1
            if 0 < rank < count:
                cupy.cuda.Device(rank).use()
            one = cupy.ones((1, 1), "f")
            (one @ one).item()  # the import succeeds even without a driver, a product does not
        except ImportError:
            why = "CuPy is not installed: pip install -e '.[cuda12]' or '.[cuda13]'"
        except Exception as error:  # CuPy's errors have no narrower class in common
            why = f"no GPU answers: {(str(error) or repr(error)).splitlines()[0]}"
        else:
            if rank >= count:
                need = f"expected at most {count} ranks on this machine, as it has so many GPUs"
                raise ValueError(f"mpiexec: {need}, got more; start fewer, or use --device cpu")
            LIBRARIES[cupy.ndarray] = cupy
            multiply_in(precision, cupy)
            return cupy, f"GPU, CuPy {cupy.__version__}, products in {precision}"
    if name == "gpu":
        raise ValueError(f"device gpu: {why}; or use --device cpu")
    if precision != "float32":
        raise ValueError(f"--precision {precision}: expected a GPU, got the CPU ({why})")
    keep_pages()
    return np, f"CPU ({why})"


def multiply_in(precision, cupy):
    """Let cuBLAS compute products of float32 in this precision, in all of CuPy and in fast_cupy.

    tf32 rounds the factors to 10 bits of fraction, instead of 23, and adds up in float32: the
    tensor cores of a GPU are built for it, and are several times as fast. Weights and everything
    else stay float32. Raises ValueError if the GPU has no tf32: it came with compute capability
    8.0, in 2020.
    """
    if precision == "tf32" and (got := int(cupy.cuda.Device().compute_capability)) < 80:
        got = f"got one of {got / 10} (a T4 has 7.5)"
        raise ValueError(f"--precision tf32: expected a GPU of compute capability 8.0, {got}")
    from minigpt.engine import fast_cupy

    linalg = cupy._core._routines_linalg
    types = {"float32": linalg.COMPUTE_TYPE_DEFAULT, "tf32": linalg.COMPUTE_TYPE_TF32}
    cupy._core.set_compute_type(np.float32, types[precision])  # of two matrices
    fast_cupy.precision = precision  # of many


def nccl():
    """CuPy's module of NCCL, NVIDIA's library for sums over several GPUs.

    Raises ValueError if it is not there.
    """
    try:
        from cupy.cuda import nccl

        if nccl.available:
            return nccl
    except ImportError:
        pass
    raise ValueError("mpiexec: expected NCCL for several GPUs, got none; use --device cpu")


def keep_pages():
    """Ask the C library to keep the memory of freed arrays for the next ones.

    By itself glibc, Linux's usual C library, returns large blocks to the system. The next array
    then gets fresh pages, and the first touch of each page costs time: a step of the 4x128 GPT
    takes 72 ms that way and 46 ms with kept pages.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # a C library other than glibc
        return
    mmap_threshold, trim_threshold = -3, -1  # names of malloc.h, without the M_
    # Blocks below 1 GB come from the heap; older versions refuse that and allow 32 MB.
    mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)
    mallopt(trim_threshold, (1 << 31) - 1)  # the heap does not shrink
