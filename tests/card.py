"""The GPU that tests and benchmarks run on; or its stand-in, with MINIGPT_GPU=emulated.

Both have the same methods, so that all that is written for a GPU can be run to its end without one.
"""

import os
import platform
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

if (folder := str(Path(__file__).parent)) not in sys.path:  # python -m tests.benchmarks.gpu
    sys.path.insert(0, folder)

from minigpt.engine import device, fast_cupy

EMULATED = os.environ.get("MINIGPT_GPU") == "emulated"
CYCLES = 1 << 30  # of the GPU's clock: more than half a second, in which the CPU asks for much
SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""


class Gpu:
    """CuPy and the GPU that answers.  Raises ValueError, with the reason, if none does."""

    def __init__(self):
        self.xp, _ = device.select("gpu")
        self.pool = self.xp.get_default_memory_pool()
        if os.environ.get("MINIGPT_GPU") == "without a pool":  # so that a sanitizer sees each array
            self.xp.cuda.set_allocator(None)

    def about(self):
        """What figures depend on."""
        runtime = self.xp.cuda.runtime
        found = runtime.getDeviceProperties(0)
        return {
            "GPU": found["name"].decode(),
            "compute capability": f"{found['major']}.{found['minor']}",
            "GB": round(found["totalGlobalMem"] / 1e9, 1),
            "driver": runtime.driverGetVersion(),
            "CUDA": runtime.runtimeGetVersion(),
            "CuPy": self.xp.__version__,
            "NumPy": np.__version__,
            "Python": platform.python_version(),
        }

    @contextmanager
    def precision(self, name):
        """Products in float32 or tf32.  Raises ValueError if the GPU has no tf32."""
        device.multiply_in(name, self.xp)
        try:
            yield
        finally:
            device.multiply_in("float32", self.xp)

    def finish(self):
        """Wait until all work that was asked for is done."""
        self.xp.cuda.runtime.deviceSynchronize()

    def ms(self, f, seconds=0.1):
        """What a call of f takes the GPU: the least of three means over about so many seconds."""
        begin, end = (self.xp.cuda.Event() for _ in range(2))

        def mean(calls):
            begin.record()
            for _ in range(calls):
                f()
            end.record()
            end.synchronize()
            return self.xp.cuda.get_elapsed_time(begin, end) / calls

        mean(2)  # compiles the kernels, and fills the pool of memory
        calls = max(1, min(1000, round(300 * seconds / max(mean(1), 1e-3))))
        return min(mean(calls) for _ in range(3))

    def waits(self, f):
        """Whether the CPU waits for the GPU within f: the GPU is kept busy, and still is after f.

        f must ask for fewer launches than the queue holds, about a thousand.
        """
        busy = self.xp.cuda.Event()
        self.xp.RawKernel(SPIN, "spin")((1,), (1,), (np.int64(CYCLES),))
        busy.record()
        f()
        waited = busy.done
        self.finish()
        return waited

    def free(self):
        """Give the memory of freed arrays back, so that peak() counts from here on."""
        self.pool.free_all_blocks()

    def peak(self):
        """The bytes that the pool has asked of the GPU since free(): the peak, as it keeps them."""
        return self.pool.total_bytes()

    def room(self):
        """The bytes that are free."""
        return self.xp.cuda.runtime.memGetInfo()[0]


class StandIn:
    """NumPy behind CuPy's names, and every kernel on the emulator: what happens, but no time."""

    def __init__(self):
        import emulator

        if not emulator.COMPILER:
            raise ValueError("the emulator needs g++")
        from emulator import standin
        from strict import syncs

        self.syncs = syncs
        self.registered = standin.emulated()
        self.xp = self.registered.__enter__()  # for as long as this process runs

    def about(self):
        return {"GPU": "none: the emulator", "NumPy": np.__version__}

    @contextmanager
    def precision(self, name):
        fast_cupy.precision = name
        try:
            yield
        finally:
            fast_cupy.precision = "float32"

    def finish(self):
        pass

    def ms(self, f, seconds=0.1):
        start = time.perf_counter()
        f()
        return 1000 * (time.perf_counter() - start)

    def waits(self, f):
        self.syncs.clear()
        f()
        return bool(self.syncs)

    def free(self):
        pass

    def peak(self):
        return 0

    def room(self):
        return 0


def answering():
    """The GPU, or the stand-in if that was asked for.  Raises ValueError if there is none."""
    return StandIn() if EMULATED else Gpu()
