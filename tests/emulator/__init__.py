"""A CUDA device without a GPU: the kernels' own text, compiled by g++, run and watched on the CPU.

`python -m tests.emulator` tries minigpt/engine/kernels.cu as it stands, kernel by kernel.

RawModule and ElementwiseKernel stand in for CuPy's, for the arrays of tests/strict.py. Whatever
would corrupt memory, hang, or depend on chance on a GPU raises DeviceFault, which names the line;
cuda_on_cpu.h says how it is found. Arguments are checked more strictly than CuPy does, which passes
a Python float as 64 bits whatever the kernel expects, and never looks at strides.

What it cannot see: speed, the banks of shared memory, an order of writes that only weak memory
would show, threads of a block that run at the same time, and the real cuBLAS. Arrays with strides
are copied for an ElementwiseKernel, whose CuPy walks them by itself.
"""

import ctypes
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
COMPILER = shutil.which("g++") if sys.platform == "linux" else None
FLAGS = """-std=c++17 -O1 -g1 -fPIC -shared -fsanitize=thread -fno-tree-sra -fno-strict-aliasing
    -fno-threadsafe-statics -fno-builtin -ffp-contract=off -w -nodefaultlibs""".split()
LIBRARIES = "-lstdc++ -lm -lc -lgcc_s".split()
GAP = 1 << 12  # bytes between two arrays, which belong to nobody

order = 0  # of the threads: 0 ascending, 1 descending, n > 1 shuffled by this seed
launches = []  # the name of every kernel that has run


class DeviceFault(RuntimeError):
    """What a GPU would have done wrong, perhaps without a word."""


class NotCompiled(RuntimeError):
    """What the compiler says of a text that is no CUDA."""


class _Array(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("grain", ctypes.c_int),
        ("constant", ctypes.c_int),
    ]


class _Fault(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in "kind block thread write region".split()),
        *((name, ctypes.c_int) for name in "other_block other_thread other_write".split()),
        *((name, ctypes.c_int) for name in "line ended".split()),
        *((name, ctypes.c_long) for name in "offset bytes address place other_place".split()),
    ]


OUTSIDE, MISALIGNED, CONSTANT, UNWRITTEN, RACE, DIVERGED, UNMASKED = range(1, 8)


class RawModule:
    """The kernels of one source text, for cupy.RawModule."""

    def __init__(self, *, code, options=(), file="kernels.cu"):
        names = re.findall(r"__global__\s+void\s+(\w+)", code)
        plain = re.sub(r'extern\s+"C"\s*(?=__global__)', "", code)
        entries = "\n".join(f"KERNEL({name})" for name in names)
        text = f'#include "{HEADER}"\nnamespace {{\n#line 1 "{file}"\n{plain}\n}}\n{entries}\n'
        defines = [option for option in options if option.startswith("-D")]
        self.code, self.path = code, _compiled(text, defines)
        self.library = ctypes.CDLL(str(self.path))

    def get_function(self, name):
        return Kernel(self, name)

    def lines(self, place):
        """Which line of the kernels this place in the library is, and which lines call it."""
        command = ["addr2line", "-i", "-e", str(self.path), hex(place - 1)]
        found = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
        found = [Path(line.split(" ")[0]).name for line in found if line and "?" not in line]
        return ", called at ".join(line for line in found if not line.startswith(HEADER.name))

    def shared(self, address):
        """The name of the shared variable at this address, and the place in it in bytes."""
        table = subprocess.run(["nm", "-nC", self.path], capture_output=True, text=True).stdout
        known = [line.split(" ", 2) for line in table.splitlines() if line[0] != " "]
        before = [s for s in known if int(s[0], 16) <= address and "::" in s[2]]
        start, _, name = before[-1]
        return name.split("::")[-1], address - int(start, 16)


def _compiled(text, defines):
    """A library of this C++ text; it is compiled once, and kept in the folder for passing files."""
    if not COMPILER:
        raise NotCompiled("the emulator needs g++")
    key = hashlib.sha256(f"{text}{HEADER.read_text()}{defines}{FLAGS}".encode()).hexdigest()
    path = Path(tempfile.gettempdir()) / f"cuda-on-cpu-{os.getuid()}" / f"{key[:16]}.so"
    if not path.exists():
        path.parent.mkdir(exist_ok=True, mode=0o700)
        if path.parent.stat().st_uid != os.getuid():
            raise NotCompiled(f"{path.parent} belongs to somebody else")
        beside = path.with_suffix(f".{os.getpid()}")
        command = [COMPILER, *FLAGS, *defines, "-xc++", "-", "-o", str(beside), *LIBRARIES]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        if done.returncode:
            raise NotCompiled(f"g++ refuses the kernels:\n{done.stderr.rstrip()}")
        os.replace(beside, path)
    return path


class Kernel:
    """kernel(grid, block, args), as CuPy's."""

    def __init__(self, module, name):
        self.module, self.name = module, name
        self.run = getattr(module.library, f"launch_{name}")
        text = ctypes.create_string_buffer(4000)
        getattr(module.library, f"signature_of_{name}")(text)
        self.types = text.value.decode().split(",")[:-1]
        code = re.sub(r"//.*", "", module.code)
        listed = re.search(rf"\b{name}\s*\(([^()]*)\)\s*\{{", code)[1]
        self.parameters = [re.findall(r"\w+", part)[-1] for part in listed.split(",")]

    def __call__(self, grid, block, args):
        grid, block = ((*shape, 1, 1)[:3] for shape in (grid, block))
        self.check_shape(grid, block)
        if len(args) != len(self.types):
            raise DeviceFault(f"{self.name}: takes {len(self.types)} arguments, got {len(args)}")
        args = [getattr(a, "_array", a) for a in args]
        for a, kind, name in zip(args, self.types, self.parameters, strict=True):
            self.check(a, kind, name)
        arrays = [i for i, a in enumerate(args) if isinstance(a, np.ndarray)]
        written = [args[i] for i in arrays if "const" not in self.types[i]]
        memory, table = Memory([args[i] for i in arrays]), (_Array * len(arrays))()
        for entry, i in zip(table, arrays, strict=True):
            a = args[i]
            entry.start, entry.size, entry.grain = memory.place(a), a.nbytes, a.itemsize
            entry.constant = not any(np.may_share_memory(a, other) for other in written)
            args[i] = np.intp(entry.start)
        values = [ctypes.create_string_buffer(a.tobytes().ljust(8, b"\0")) for a in args]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        fault, shape = _Fault(), (ctypes.c_uint * 6)(*grid, *block)
        if self.run(pointers, shape, table, len(arrays), order, ctypes.byref(fault)):
            names = [self.parameters[i] for i in arrays]
            raise DeviceFault(f"{self.name}: {self.told(fault, names)}")
        for a in written:
            memory.bring_back(a)
        launches.append(self.name)

    def check_shape(self, grid, block):
        """Raises DeviceFault unless a GPU launches such a grid of such blocks."""
        fits = 0 < grid[0] < 1 << 31 and all(0 < n < 1 << 16 for n in grid[1:])
        if not (fits and 0 < math.prod(block) <= 1024):
            raise DeviceFault(f"{self.name}: no GPU launches {grid} blocks of {block} threads")

    def check(self, a, kind, name):
        """Raises DeviceFault unless argument `a` is what the kernel takes for parameter `name`."""
        if isinstance(a, np.ndarray):
            got = f"{a.dtype.kind}{a.itemsize}*"
            if not a.flags.c_contiguous:
                raise DeviceFault(f"{self.name}: {name} has strides, which a kernel cannot see")
        elif isinstance(a, np.generic):
            got = f"{a.dtype.kind}{a.itemsize}"
            if kind.endswith("*") and a == 0 and got == "i8":
                return  # the null pointer
        else:
            what = type(a).__name__
            raise DeviceFault(f"{self.name}: {name} is {kind}, got a Python {what}")
        if got != kind.removeprefix("const "):
            raise DeviceFault(f"{self.name}: {name} is {kind}, got {got}")

    def told(self, f, names):
        """A fault as a sentence."""
        here = self.module.lines(f.place) if f.place else f"kernels.cu:{f.line}"
        who = f"thread {f.thread} of block {f.block}"
        if f.kind == UNMASKED:
            return f"{who} exchanges with a lane outside of the mask, {here}"
        if f.kind == DIVERGED:
            what = "__syncthreads()" if f.write else "an exchange of its warp"
            return f"{who} waits at {what} for threads that never come ({f.ended} ended), {here}"
        where = f"number {f.offset // f.bytes} of "
        if f.region < len(names):
            where += names[f.region]
        else:
            name, offset = self.module.shared(f.address)
            where = f"number {offset // f.bytes} of {name}, which is shared"
        text = f"{who} {'writes' if f.write else 'reads'} {where}, {here}"
        if f.kind == RACE:
            verb = "wrote" if f.other_write else "read"
            other = f"thread {f.other_thread} of block {f.other_block} {verb} it"
            text += f"; {other}, {self.module.lines(f.other_place)}; no barrier lies between"
        problem = {
            OUTSIDE: "outside of every array", MISALIGNED: "at a misaligned address",
            CONSTANT: "it is const", UNWRITTEN: "nobody has written it yet", RACE: "",
        }[f.kind]  # fmt: skip
        return f"race: {text}" if f.kind == RACE else f"{text}: {problem}"


class Memory:
    """Copies of arrays, with gaps between them; arrays that share memory share it here, too."""

    def __init__(self, arrays):
        spans = sorted({(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays})
        merged = []
        for low, high in spans:
            if merged and low < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        bases = {a.ctypes.data: _root(a).ctypes.data for a in arrays}
        size = sum(high - low + 2 * GAP for low, high in merged) + GAP
        self.bytes, self.moved = np.full(size, 0xFF, np.uint8), []
        at = self.bytes.ctypes.data + GAP
        for low, high in merged:
            at = -(-at // 512) * 512 + (low - bases[low]) % 512  # CuPy's blocks start at 512 bytes
            ctypes.memmove(at, low, high - low)
            self.moved.append((low, high, at))
            at += high - low + GAP

    def place(self, a):
        """Where the copy of a lies."""
        start = a.ctypes.data
        low, _, at = next(m for m in self.moved if m[0] <= start and start + a.nbytes <= m[1])
        return at + start - low

    def bring_back(self, a):
        """Copy a's numbers back into it."""
        ctypes.memmove(a.ctypes.data, self.place(a), a.nbytes)


def _root(a):
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


CTYPES = {
    "float32": "float", "float64": "double", "bool": "bool", "int32": "int", "int64": "long long",
}  # fmt: skip


class ElementwiseKernel:
    """kernel(*args) -> outputs, for cupy.ElementwiseKernel: types T, "raw" arrays, new outputs or
    given ones. Inputs broadcast; Python scalars are refused, as their type would be a guess."""

    def __init__(self, in_params, out_params, operation, name):
        self.inputs, self.outputs = (
            [part.split() for part in params.split(",")] for params in (in_params, out_params)
        )
        self.operation, self.name, self.kernels = operation, name, {}

    def source(self, T, arrays=()):
        """The text of a kernel whose thread i computes element i; T is float or double. Parameters
        are arrays if they are raw, outputs, or named in `arrays`, and else scalars."""
        taken, read, written = [], [], []
        for *raw, kind, name in self.inputs:
            kind = CTYPES.get(kind, kind)
            if not raw and name in arrays:
                read.append(f"const {kind} {name} = {name}_[i];")
            pointer = f"const {kind}* {name}" + ("" if raw else "_")
            taken.append(pointer if raw or name in arrays else f"{kind} {name}")
        for kind, name in self.outputs:
            kind = CTYPES.get(kind, kind)
            taken.append(f"{kind}* {name}_")
            read.append(f"{kind} {name} = {name}_[i];")  # what a given output held before
            written.append(f"{name}_[i] = {name};")
        return f"""typedef {T} T;
extern "C" __global__ void {self.name}({", ".join(taken)}, long long n_) {{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_) return;
    {" ".join(read)}
    {self.operation};
    {" ".join(written)}
}}
"""

    def __call__(self, *args):
        given = args[len(self.inputs) :]  # outputs that are not new
        put = next(type(a) for a in args if hasattr(a, "_array"))
        args = [getattr(a, "_array", a) for a in args]
        named = dict(zip([name for *_, name in self.inputs], args, strict=False))
        T = self.type_of(named)
        shape = self.shape(named, [y._array for y in given])
        inputs, arrays = [], []
        for *raw, _, name in self.inputs:
            a = named[name]
            if isinstance(a, np.ndarray):
                arrays.append(name)
                a = np.ascontiguousarray(a if raw else np.broadcast_to(a, shape)).reshape(-1)
            inputs.append(a)
        kinds = [T if kind == "T" else np.dtype(kind) for kind, _ in self.outputs]
        results = [np.full(math.prod(shape), 85, kind) for kind in kinds]
        for y, result in zip(given, results, strict=False):
            if y.dtype != result.dtype:
                raise DeviceFault(f"{self.name}: an output is {result.dtype}, got {y.dtype}")
            result[:] = y._array.reshape(-1)
        if n := results[0].size:
            kernel = self.kernel(CTYPES[T.name], tuple(arrays))
            kernel((-(-n // 128),), (128,), (*inputs, *results, np.int64(n)))
        for y, result in zip(given, results, strict=False):
            y._array[...] = result.reshape(shape)
        outputs = given or [put(y.reshape(shape)) for y in results]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def shape(self, named, outputs):
        """That of the loop: raw arrays do not count, all others broadcast."""
        looped = [named[part[-1]] for part in self.inputs if part[0] != "raw"]
        return np.broadcast_shapes(*(a.shape for a in (*looped, *outputs)))

    def type_of(self, named):
        """What T stands for. Raises DeviceFault unless all arguments of type T agree."""
        for *_, kind, name in self.inputs:
            got = getattr(named[name], "dtype", f"a Python {type(named[name]).__name__}")
            if isinstance(got, str) or (kind != "T" and got != np.dtype(kind)):
                raise DeviceFault(f"{self.name}: {name} is {kind}, got {got}")
        types = {named[p[-1]].dtype for p in self.inputs if p[-2] == "T"}
        if len(types) != 1:
            raise DeviceFault(f"{self.name}: T is one type, got {sorted(map(str, types))}")
        return types.pop()

    def kernel(self, T, arrays):
        if (T, arrays) not in self.kernels:
            module = RawModule(code=self.source(T, arrays), file=self.name)
            self.kernels[T, arrays] = module.get_function(self.name)
        return self.kernels[T, arrays]
