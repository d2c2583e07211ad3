"""The strict stand-in for CuPy, with kernels: RawModule, ElementwiseKernel and cuBLAS."""

import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

if (folder := str(Path(__file__).parents[1])) not in sys.path:  # python -m tests.emulator
    sys.path.insert(0, folder)
from strict import StrictArray, registered, strict
from strict import _function as function

import emulator
from emulator import cublas
from minigpt.engine import fast_cupy, fast_elementwise
from minigpt.training import gpu

strict.ascontiguousarray = function(np.ascontiguousarray)
strict.RawModule, strict.ElementwiseKernel = emulator.RawModule, emulator.ElementwiseKernel
strict.cuda = SimpleNamespace(
    cublas=SimpleNamespace(gemmStridedBatchedEx=cublas.gemmStridedBatchedEx),
    device=SimpleNamespace(get_cublas_handle=lambda: 0),
)
StrictArray.data = property(lambda self: SimpleNamespace(ptr=cublas.pointer(self._array)))
StrictArray.strides = property(lambda self: self._array.strides)


@contextmanager
def emulated(order=0, precision="float32"):
    """Make fast_cupy the pairs of the stand-in, its kernels' threads run in this order."""
    before = fast_cupy.precision
    emulator.order, fast_cupy.precision = order, precision
    try:
        with registered(fast_cupy, fast_elementwise, gpu) as library:
            yield library
    finally:
        emulator.order, fast_cupy.precision = 0, before
