"""The engine on the strict stand-in for CuPy, and how a device is chosen."""

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from gradcheck import draw, run
from strict import StrictArray, registered, strict, syncs
from test_functional import CASES, definition
from test_ops import ROWS

from minigpt.engine import fast_cupy
from minigpt.engine.arrays import LIBRARIES, module_of, to_numpy, uniform
from minigpt.engine.autograd import Tensor, plain
from minigpt.engine.device import select


@pytest.fixture
def xp():
    with registered() as library:
        yield library


def same_as_on_numpy(f, args):
    """Run f on both; returns what the CPU had to wait for beyond the results."""
    with plain():
        expected = run(f, *args)
    got = run(f, *args, put=StrictArray)
    waits = syncs - Counter(asnumpy=len(sum(got, [])))
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        assert y.shape == e.shape and y.dtype == e.dtype
        np.testing.assert_allclose(y, e, rtol=1e-12, atol=1e-13)
    return waits


@pytest.mark.parametrize("name", ROWS)
def test_operation_gives_the_same_on_both_libraries_and_waits_only_for_a_mask(name, xp):
    f, _, *operands = ROWS[name]
    waits = same_as_on_numpy(f, operands)
    assert waits == (Counter(mask=1) if name.startswith("mask") else Counter())


@pytest.mark.parametrize("name", CASES)
def test_definition_gives_the_same_on_both_libraries_and_waits_for_nothing(name, xp):
    waits = same_as_on_numpy(definition(name), CASES[name])
    counting = name.startswith("cross_entropy") and len(CASES[name]) == 2
    assert bool(waits) == counting  # without count, the scored targets are read from the device


def test_tensor_on_the_device_says_so_and_prints_without_reading(xp):
    t = Tensor(StrictArray(draw(2, 3)), requires_grad=True)
    assert t.device == "gpu" and "shape=(2, 3), dtype=float64, device=gpu" in repr(t.exp())
    assert not syncs


NUMPY, STRICT = np.ones(3), StrictArray(np.ones(3))


@pytest.mark.parametrize("act", [
    lambda: STRICT + NUMPY, lambda: NUMPY + STRICT, lambda: STRICT * np.float64(2),
    lambda: np.float64(2) * STRICT, lambda: STRICT == NUMPY, lambda: NUMPY < STRICT,
    lambda: NUMPY @ STRICT, lambda: STRICT.__iadd__(NUMPY), lambda: STRICT[np.zeros(1, int)],
    lambda: STRICT.__setitem__(0, np.float64(1)), lambda: np.exp(STRICT),
    lambda: np.asarray(STRICT),
    lambda: np.concatenate([STRICT]), lambda: np.array([STRICT, STRICT]), lambda: NUMPY[STRICT],
    lambda: strict.exp(NUMPY), lambda: strict.concatenate([STRICT, NUMPY]),
    lambda: strict.where(NUMPY > 0, STRICT, 0.0), lambda: strict.add.at(STRICT, NUMPY, 1.0),
])  # fmt: skip
def test_stand_in_refuses_to_mix_with_numpy(act):
    with pytest.raises((TypeError, IndexError)):
        act()


@pytest.mark.parametrize("act", [
    lambda x, y: x + y, lambda x, y: y * x, lambda x, y: x @ y,
])  # fmt: skip
def test_tensor_of_the_device_refuses_a_numpy_array(act, xp):
    with pytest.raises(TypeError):
        act(Tensor(StrictArray(draw(3))), draw(3))


def test_stand_in_counts_every_wait(xp):
    x = xp.asarray(np.array([2.0]))
    assert (float(x[0]), int(x[0]), bool(x[0]), x.item(), x.tolist()) == (2, 2, True, 2, [2])
    assert xp.asnumpy(x[x > 0]) == 2 == x.get()
    assert syncs == Counter(float=1, int=1, bool=1, item=1, tolist=1, mask=1, asnumpy=2)


def test_stand_in_has_views_in_place_operators_and_poisoned_memory(xp):
    flat = xp.zeros(6)
    flat[2:].reshape(2, 2)[...] = 5
    flat[:2] += 1.5
    assert flat.tolist() == [1.5, 1.5, 5, 5, 5, 5]
    assert bool(xp.isnan(xp.empty(3)).all()) and type(flat.sum()) is StrictArray
    with pytest.raises(IndexError):
        flat[xp.asarray(np.array([6]))]


@pytest.mark.parametrize("library", [np, strict])
def test_uniform_depends_on_the_seed_and_lies_in_0_1(library, xp):
    a, b, c = (to_numpy(uniform(library, (50, 20), seed)) for seed in (3, 3, 4))
    assert (a == b).all() and (a != c).mean() > 0.99 and a.dtype == np.float32
    assert a.min() >= 0 and a.max() < 1 and abs(a.mean() - 0.5) < 0.05  # error 0.009


def test_arrays_move_between_the_libraries(xp):
    there = xp.asarray(draw(3))
    assert module_of(there) is xp and module_of(draw(3)) is np and module_of(1.0) is np
    np.testing.assert_array_equal(to_numpy(there), draw(3))
    here = draw(3)
    assert to_numpy(here) is here


def fake_cupy(monkeypatch, ones):
    cupy = ModuleType("cupy")
    cupy.ones, cupy.ndarray, cupy.__version__ = ones, StrictArray, "14.2.0"
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def no_driver(shape, dtype):
    raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected\nmore")


@pytest.mark.parametrize("reason", ["not installed", "cudaErrorNoDevice"])
def test_without_a_gpu_gpu_raises_in_one_line_and_auto_gives_numpy_with_the_reason(
    reason, monkeypatch
):
    if reason == "not installed":
        monkeypatch.setitem(sys.modules, "cupy", None)
    else:
        fake_cupy(monkeypatch, no_driver)
    with pytest.raises(ValueError, match=reason) as caught:
        select("gpu")
    assert "\n" not in str(caught.value) and "--device cpu" in str(caught.value)
    library, line = select("auto")
    assert library is np and reason in line and "\n" not in line


def answering(monkeypatch, capability):
    """A CuPy whose GPU answers, of this compute capability; notes how products are computed."""
    cupy = fake_cupy(monkeypatch, lambda shape, dtype: strict.ones(shape, dtype))
    cupy.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability=capability))
    linalg = SimpleNamespace(COMPUTE_TYPE_DEFAULT="default", COMPUTE_TYPE_TF32="tf32")
    cupy.computed = {}
    cupy._core = SimpleNamespace(
        _routines_linalg=linalg, set_compute_type=lambda *given: cupy.computed.update([given])
    )
    libraries = dict(LIBRARIES)
    for module in ("arrays", "device"):
        monkeypatch.setattr(f"minigpt.engine.{module}.LIBRARIES", libraries)
    monkeypatch.setattr(fast_cupy, "precision", "float32")
    return cupy


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_precision_is_that_of_both_kinds_of_products(precision, monkeypatch):
    cupy = answering(monkeypatch, "80")
    assert select("gpu", precision)[1] == f"GPU, CuPy 14.2.0, products in {precision}"
    assert cupy.computed == {np.float32: {"float32": "default", "tf32": "tf32"}[precision]}
    assert fast_cupy.precision == precision


@pytest.mark.parametrize("name", ["auto", "gpu"])
def test_tf32_is_refused_on_a_gpu_that_has_none(name, monkeypatch):
    cupy = answering(monkeypatch, "75")
    with pytest.raises(ValueError, match="compute capability 8.0, got one of 7.5"):
        select(name, "tf32")
    assert not cupy.computed and fast_cupy.precision == "float32"


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_tf32_is_refused_on_the_cpu(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match="--precision tf32: expected a GPU, got the CPU"):
        select(name, "tf32")


@pytest.mark.parametrize("name", ["auto", "gpu"])
def test_gpu_that_answers_is_selected_and_its_arrays_are_known(name, monkeypatch):
    cupy = answering(monkeypatch, "90")
    assert select(name) == (cupy, "GPU, CuPy 14.2.0, products in float32")
    assert module_of(StrictArray(draw(3))) is cupy


def test_unknown_device_raises():
    with pytest.raises(ValueError, match="expected auto, cpu or gpu, got 'tpu'"):
        select("tpu")
