"""NVIDIA's own compiler on every kernel, for six generations of GPUs.

It needs no GPU and no driver, only the wheels of the extra `nvrtc`.
"""

import ctypes
import re
from operator import attrgetter
from pathlib import Path

import card
import emulator
import pytest
from emulator.standin import StrictArray, strict

from minigpt.engine import fast_cupy, fast_elementwise
from tests.benchmarks import gpu_parts

nvidia = pytest.importorskip("nvidia", reason="needs pip install -e '.[nvrtc]'")
LIBRARIES = [f for folder in nvidia.__path__ for f in Path(folder).glob("**/libnvrtc*.so*")]
GENERATIONS = "sm_75 sm_80 sm_86 sm_89 sm_90 sm_120".split()  # T4, A100, RTX 30, RTX 40, H100, 50
TYPES = ["float", "double"]


@pytest.fixture(scope="module")
def nvrtc():
    """CuPy's binding of the compiler, which finds a library that is loaded already."""
    if not LIBRARIES:
        pytest.skip("needs pip install -e '.[nvrtc]'")
    for path in sorted(LIBRARIES, key=lambda path: "builtins" not in path.name):
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    return pytest.importorskip("cupy_backends.cuda.libs.nvrtc")


def compiled(nvrtc, code, generation, *options):
    """What the compiler says of each kernel: {name: (registers, bytes spilled)}"""
    program = nvrtc.createProgram(code, "kernels.cu", (), ())
    options = (f"-arch={generation}", "-std=c++17", "--ptxas-options=-v", "-ftz=true", *options)
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        raise AssertionError(nvrtc.getProgramLog(program)) from None
    assert nvrtc.getCUBIN(program)
    found = {}
    pattern = r"Compiling entry function '(\w+)'.*?\n(.*?Used (\d+) registers[^\n]*)"
    for name, text, registers in re.findall(pattern, nvrtc.getProgramLog(program), re.S):
        found[name] = int(registers), sum(map(int, re.findall(r"(\d+) bytes spill", text)))
    return found


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_kernel_compiles_without_spills_and_a_thousand_threads_fit(generation, real, nvrtc):
    code = fast_cupy.SOURCE.read_text(encoding="utf-8")
    found = compiled(nvrtc, code, generation, f"-DREAL={real}")
    assert sorted(found) == sorted(re.findall(r"__global__ void (\w+)", code))
    for name, (registers, spilled) in found.items():
        assert not spilled and registers <= 64, name  # a block has 65,536 registers


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_elementwise_formula_compiles_without_spills(generation, real, nvrtc):
    for name, (inputs, outputs, formula) in fast_elementwise.FORMULAS.items():
        kernel = emulator.ElementwiseKernel(inputs, outputs, formula, name)
        arrays = tuple(
            part[-1] for part in kernel.inputs if part[-2] == "T" and part[-1] != "scale"
        )
        found = compiled(nvrtc, kernel.source(real, arrays), generation)
        assert [*found] == [name] and not found[name][1]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_kernels_of_tests_and_benchmarks_compile(generation, nvrtc):
    for name, code in {"spin": card.SPIN, "empty": gpu_parts.EMPTY}.items():
        assert [*compiled(nvrtc, code, generation)] == [name]


def test_no_option_lets_the_compiler_approximate():
    text = Path(fast_cupy.__file__).read_text(encoding="utf-8") + fast_cupy.SOURCE.read_text(
        encoding="utf-8"
    )
    assert "fast_math" not in text and "__expf" not in text  # tanh would lose 12 of 23 bits


def test_cupy_has_every_function_of_the_stand_in():
    cupy = pytest.importorskip("cupy")
    arrays = [name for name in vars(StrictArray) if name[0] != "_" and name not in ("get", "data")]
    functions = {*vars(strict)} - {"__name__"}
    assert not [name for name in functions if not hasattr(cupy, name)]
    assert not [name for name in arrays if not hasattr(cupy.ndarray, name)]
    for name in ("cuda.device.get_cublas_handle", "random.Philox4x3210", "random.Generator"):
        attrgetter(name)(cupy)


@pytest.mark.parametrize("name", fast_elementwise.FORMULAS)
def test_cupy_reads_every_formula_as_the_emulator_does(name):
    cupy = pytest.importorskip("cupy")
    formula = fast_elementwise.FORMULAS[name]
    theirs, ours = (k(*formula, name) for k in (cupy.ElementwiseKernel, emulator.ElementwiseKernel))
    assert (theirs.nin, theirs.nout) == (len(ours.inputs), len(ours.outputs))
