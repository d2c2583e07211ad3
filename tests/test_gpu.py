"""What only a GPU shows: pytest -m gpu

MINIGPT_GPU=emulated pytest -m gpu runs the same on the stand-in of tests/emulator, to find mistakes
of the tests themselves. Tolerances: of float64 a few hundred roundings of 1e-16, as exp and tanh
are other ones and sums have another order; of float32 the same number of roundings of 6e-8.
"""

import os
import shutil
import subprocess
import sys

import card
import numpy as np
import pytest
from gradcheck import draw, run
from test_classifier import NAMES, SHAPES, examples, made
from test_functional import CASES, CUPY, cases_of, definition, forwards
from test_models import MODELS, gpt, ids_of
from test_models import scrambled as scrambled_model
from test_training import new_trainer

import sample
import train
from minigpt.engine import device, fast_cupy
from minigpt.engine.arrays import to_numpy
from minigpt.engine.autograd import no_grad, plain
from minigpt.engine.functional import cross_entropy
from minigpt.generate import generate
from minigpt.nn.module import Flat
from minigpt.training import OPTIMIZERS, checkpoint, optimizer_class
from minigpt.training.gpu import Queued
from minigpt.training.optim import clip

pytestmark = pytest.mark.gpu
TOLERANCES = {"float64": 1e-11, "float32": 5e-5}
PAIRS = sum(map(forwards, CUPY), [])
FORMULAS = [*dict.fromkeys(case.split(":")[0] for case in CASES)]
RATE = 0.01


@pytest.fixture(scope="module")
def gpu():
    try:
        return card.answering()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def real(gpu):
    """A test that the stand-in has no part in."""
    if card.EMULATED:
        pytest.skip("the emulator has none of it")
    return gpu


def same(got, expected, tolerance, what=""):
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        assert y.shape == e.shape and y.dtype == e.dtype, what
        np.testing.assert_allclose(y, e, rtol=tolerance, atol=tolerance, err_msg=what)


# formulas


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", PAIRS)
def test_pair_equals_its_definition_on_the_gpu(name, dtype, gpu):
    for case in cases_of(name):
        args = definition(case), *CASES[case]
        with plain():
            expected = run(*args, dtype=dtype, put=gpu.xp.asarray)
        same(run(*args, dtype=dtype, put=gpu.xp.asarray), expected, TOLERANCES[dtype], case)


# Dropout has no part: CuPy's Philox draws other numbers from a seed than NumPy's.
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "dropout"])
def test_formula_has_numpys_values_and_gradients(name, dtype, gpu):
    for case in cases_of(name):
        args = definition(case), *CASES[case]
        with plain():
            expected = run(*args, dtype=dtype)
        same(run(*args, dtype=dtype, put=gpu.xp.asarray), expected, TOLERANCES[dtype], case)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_gives_the_same_bits_again(name, gpu):
    for case in cases_of(name):
        args = definition(case), *CASES[case]
        one, two = (sum(run(*args, dtype="float32", put=gpu.xp.asarray), []) for _ in range(2))
        assert [y.tobytes() for y in one] == [y.tobytes() for y in two], case


B, H, T, D, C, V = (1, 2, 8, 4, 32, 90) if card.EMULATED else (2, 12, 1024, 64, 768, 50257)
TARGETS = np.arange(B * T) * 7 % V
FULL = {  # at sizes of GPT-2 124M, for which a grid has thousands of blocks
    "attention": lambda: (draw(B, H, T, D, seed=seed) for seed in range(3)),
    "layer_norm": lambda: (draw(B * T, C), draw(C, seed=1), draw(C, seed=2)),
    "linear": lambda: (draw(B * T, C), draw(C, 3 * C, seed=1) / C**0.5, draw(3 * C, seed=2)),
    "cross_entropy": lambda: (draw(B * T, V), TARGETS),
    "embedding": lambda: (draw(V, C), TARGETS.reshape(B, T) // 50),
    "gelu": lambda: (draw(B * T, 4 * C),),
}


@pytest.mark.parametrize("name", FULL)
def test_pair_at_full_size_in_float32_has_the_values_of_its_definition_in_float64(name, gpu):
    args = definition(name), *FULL[name]()
    with plain():
        expected = run(*args, put=gpu.xp.asarray)
    got = run(*args, dtype="float32", put=gpu.xp.asarray)
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        # a sum of N = 2,048 terms: its rounding grows as sqrt(N) 6e-8 = 3e-6 of the largest
        assert np.abs(y - e).max() < 3e-5 * np.abs(e).max(), name


def test_kernels_count_beyond_the_31_bits_of_an_int(real):
    N, V = 43_000, 50_304  # 2.2e9 logits
    if real.room() < 3.2 * 4 * N * V:
        pytest.skip(f"needs {3.2e-9 * 4 * N * V:.0f} GB of the GPU's memory")
    xp = real.xp
    z, t = xp.zeros((N, V), "f"), xp.full(N, 7)
    z[-1, 7] = 3.0
    losses, saved = fast_cupy.cross_entropy_forward(z, t, N)
    dz, _ = fast_cupy.cross_entropy_backward(xp.ones((), "f"), saved)
    p = np.exp(3) / (np.exp(3) + V - 1)
    expected = ((N - 1) * np.log(V) + np.log(np.exp(3) + V - 1) - 3) / N
    assert float(losses) == pytest.approx(expected, rel=1e-5)
    assert float(dz[-1, 7]) == pytest.approx((p - 1) / N, rel=1e-5)
    assert float(dz[-1, 8]) == pytest.approx(p / np.exp(3) / N, rel=1e-4)
    del z, dz, saved
    real.free()


def test_tf32_rounds_factors_to_ten_bits_and_changes_no_type(gpu):
    a, b = (draw(2, 64, 64, seed=seed).astype("f") for seed in range(2))
    try:
        with gpu.precision("tf32"):
            many = fast_cupy.product(*map(gpu.xp.asarray, (a, b)))
            two = gpu.xp.asarray(a[0]) @ gpu.xp.asarray(b[0])
    except ValueError as error:
        pytest.skip(str(error))  # a GPU from before 2020
    assert many.dtype == two.dtype == np.float32
    off = np.abs(to_numpy(many) - a.astype(float) @ b).max()
    limit = 64 * 2**-10 * np.abs(a).max() * np.abs(b).max()  # each factor off by 2^-11 of itself
    assert 1e-4 < off < limit
    assert np.abs(to_numpy(two) - a[0].astype(float) @ b[0]).max() < limit


# whole steps


def stepper(model, xp, optimizer):
    """A function (x, y, number) that makes one step with clipping -> its loss, where it lies."""
    weights = optimizer_class(optimizer)(Flat(model))
    queued = None if xp is np else Queued(weights, 1.0)

    def step(x, y, number):
        loss = cross_entropy(model(x), y, count=y.size)
        loss.backward()
        if queued:
            queued.step(loss.data, RATE, number, 1.0, 0.5)
        else:
            clip(weights.flat.grad, 1.0)
            weights.step(RATE, number)
        return loss.data

    return step, weights.flat


def three_steps(model, x, y, xp, optimizer="muon"):
    """The weights after three steps with clipping, in float64."""
    model.to(xp, np.float64)
    x, y = xp.asarray(x), xp.asarray(y)
    step, flat = stepper(model, xp, optimizer)
    for number in (1, 2, 3):
        step(x, y, number)
    return to_numpy(flat.data)


def same_steps(gpu, make, x, y, optimizer="muon"):
    with plain():
        expected = three_steps(make(), x, y, np, optimizer)
    got = three_steps(make(), x, y, gpu.xp, optimizer)
    # Where a gradient is nearly 0, AdamW divides its rounding error, 1e-17, by eps = 1e-8.
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_training_of_every_family_equals_numpys(name, optimizer, gpu):
    def make():
        return scrambled_model(gpt(form=MODELS[name]))

    same_steps(gpu, make, *(ids_of(make(), 3, 8, seed=seed) for seed in (2, 3)), optimizer)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_training_of_every_classifier_equals_numpys(name, kind, gpu):
    x, y = examples(kind, 3, dtype=np.float64)
    same_steps(gpu, lambda: made(kind, name, dtype=np.float64, n_layer=1), x, y)


def curve(xp, name, steps):
    """The losses of so many steps in float32, on three batches in turn."""
    model = gpt(form=MODELS[name], dtype=np.float32, n_embd=16, n_layer=1).to(xp)
    step, _ = stepper(model, xp, "adamw")
    texts = [xp.asarray(ids_of(model, 4, 9, seed=seed)) for seed in range(3)]
    losses = []
    for number in range(1, steps + 1):
        text = texts[number % 3]
        losses.append(step(text[:, :-1], text[:, 1:], number))
    return np.array([float(loss) for loss in losses])


@pytest.mark.parametrize("name", ["gpt", "gpt2", "lstm"])
def test_fifty_losses_in_float32_are_those_of_the_cpu(name, gpu):
    expected = curve(np, name, 50)
    assert expected[-1] < expected[0] - 0.5  # it learns
    # A rounding of 6e-8 grows from step to step: fifty steps of the CPU's own pairs and definitions
    # are 1e-5 apart.
    np.testing.assert_allclose(curve(gpu.xp, name, 50), expected, rtol=1e-3)


def trained(gpu, name):
    """The bytes of the weights after ten steps in float32 with dropout."""
    model = gpt(form=MODELS[name], dtype=np.float32, dropout=0.2).to(gpu.xp)
    weights = optimizer_class("muon")(Flat(model))
    queued = Queued(weights, 1.0)
    x, y = (gpu.xp.asarray(ids_of(model, 4, 8, seed=seed)) for seed in (2, 3))
    for number in range(1, 11):
        loss = cross_entropy(model(x), y, count=y.size)
        loss.backward()
        queued.step(loss.data, RATE, number, 1.0, 0.5)
    return to_numpy(weights.flat.data).tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_bits_again(name, gpu):
    assert trained(gpu, name) == trained(gpu, name)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_step_does_not_wait_for_the_gpu(tmp_path, optimizer, dropout, gpu):
    options = {"optimizer": optimizer, "dropout": dropout, "steps": 99}
    training = new_trainer(tmp_path, xp=gpu.xp, **options)
    for _ in range(3):  # kernels are compiled, the pool of memory is filled
        training.train_step()
    gpu.finish()
    assert not gpu.waits(training.train_step)
    assert gpu.waits(training.queued.read)  # so it would have been seen


# runs, and what they leave behind


@pytest.mark.parametrize("way", ["to the CPU", "to the GPU"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_goes_on_elsewhere_ends_as_one_that_stayed(tmp_path, optimizer, way, gpu):
    options = {"dtype": np.float64, "dropout": 0.0, "steps": 8, "optimizer": optimizer}
    here, there = (gpu.xp, np) if way == "to the CPU" else (np, gpu.xp)
    stayed = new_trainer(tmp_path, xp=np, **options)
    stayed.run()
    expected = to_numpy(stayed.flat.data).copy()
    first = new_trainer(tmp_path, xp=here, **options)
    for _ in range(4):
        first.train_step()
    first.look(now=True)
    first.save("last")
    second = new_trainer(tmp_path, xp=there, **options)
    second.restore(*checkpoint.load(second.out / "last.safetensors"))
    second.run()
    assert second.step == 8
    np.testing.assert_allclose(to_numpy(second.flat.data), expected, rtol=1e-8, atol=1e-8)


@pytest.fixture
def commands(gpu, tmp_path, monkeypatch):
    """train.main and sample.main, in a folder with a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "CACHE", tmp_path / "cache")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    if card.EMULATED:
        answers = {"gpu": (gpu.xp, "GPU"), "cpu": (np, "CPU")}
        monkeypatch.setattr(device, "select", lambda name, precision="float32": answers[name])
    size = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --workers 1"
    words = f"--data text.txt --eval-every 3 {size}".split()
    return lambda *more: train.main([*words, *more])


@pytest.mark.parametrize("first, second", [("gpu", "cpu"), ("cpu", "gpu")])
def test_the_command_goes_on_on_another_device_and_the_other_one_writes(
    commands, first, second, capsys
):
    commands("--device", first, "--steps", "3")
    train.main(["--resume", "--out", "out/text-gpt", "--device", second, "--steps", "6"])
    sample.main(["out/text-gpt", "--tokens", "9", "--prompt", "the ", "--device", first])
    said = capsys.readouterr().out
    assert "continues after step 3 of 6" in said and len(said.splitlines()[-1]) == 13


def test_memory_that_does_not_suffice_ends_in_one_line_with_a_remedy(commands, real, capsys):
    real.free()
    real.pool.set_limit(size=real.pool.total_bytes() + (4 << 20))
    try:
        with pytest.raises(SystemExit) as caught:
            commands("--device", "gpu", "--steps", "3", "--batch-size", "512")
    finally:
        real.pool.set_limit(size=0)
    assert caught.value.code == 2 and "--accumulate 2 halves" in capsys.readouterr().err


def test_greedy_text_is_that_of_the_cpu(gpu):
    model = scrambled_model(gpt(form=MODELS["gpt"]))
    prompts = [np.array([3, 1, 4]), np.array([2])]

    def written():
        rng = np.random.default_rng(0)
        return np.stack([*generate(model, prompts, 20, rng, temperature=0.0)])

    expected = written()
    model.to(gpu.xp, np.float64)
    np.testing.assert_array_equal(written(), expected)


def test_logits_of_parts_with_a_state_are_those_of_the_whole_text(gpu):
    for name in MODELS:
        model = scrambled_model(gpt(form=MODELS[name]))
        text = ids_of(model, 2, 8)
        expected = model(text).data
        with no_grad():
            model.to(gpu.xp, np.float64)
            state, parts = model.new_state(2), []
            for part in (text[:, :3], text[:, 3:4], text[:, 4:]):
                parts.append(to_numpy(model(gpu.xp.asarray(part), None, state)[0].data))
        got = np.concatenate(parts, 1)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10, err_msg=name)


# NVIDIA's own watch over every kernel


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_sanitizer_finds_nothing_in_any_pair(tool, real):
    program = shutil.which("compute-sanitizer")
    if not program:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    if os.environ.get("MINIGPT_GPU"):
        pytest.skip("it is already watching")
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    tests += ["-k", "equals_its_definition and float32 or training_of_every_family"]
    command = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "9"]
    environment = os.environ | {"MINIGPT_GPU": "without a pool"}
    done = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-4000:]
