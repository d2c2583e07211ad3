"""How a model learns: optimizers, schedules, the loop, checkpoints, configuration."""

import contextlib
import csv
import json
import math
import os
import signal
import struct
import tracemalloc
from dataclasses import asdict, fields
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from strict import registered, strict

from minigpt.datasets import TOKENIZERS
from minigpt.datasets.text import Windows, windows_in_order
from minigpt.engine.arrays import module_of, to_numpy
from minigpt.engine.autograd import Tensor, plain
from minigpt.generate import generate
from minigpt.nn import MODELS
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.nn.language import LanguageModel
from minigpt.nn.layers import Linear
from minigpt.nn.module import Flat, Module
from minigpt.training import (
    OPTIMIZERS,
    checkpoint,
    fast_optim,
    muon,
    optimizer_class,
    trainer,
)
from minigpt.training.checkpoint import CheckpointError
from minigpt.training.config import Config, Parser, add_options
from minigpt.training.muon import Muon
from minigpt.training.optim import SCHEDULES, SGD, AdamW, clip, rate_at
from minigpt.training.trainer import Trainer, mean_loss

both = pytest.mark.parametrize(  # the formulas alone, and the fast steps in their place
    "mode", [plain, contextlib.nullcontext], ids=["formula", "fast"]
)
IDS = np.random.default_rng(7).integers(0, 11, 300).astype(np.int32)


class Pair(Module):
    """A matrix, which decays, and a vector, which does not; float64."""

    def __init__(self, shape=(2, 3)):
        rng = np.random.default_rng(0)
        self.vector = Tensor(rng.normal(size=3), requires_grad=True)
        self.matrix = Tensor(rng.normal(size=shape), requires_grad=True)


def optimizer_of(name, *args):
    return optimizer_class(name)(*args)


def updated(make, steps=7):
    """[(weights before, gradients of each step, weights after)] of matrix and vector."""
    model, rng = Pair(), np.random.default_rng(1)
    flat = Flat(model)
    optimizer, both = make(flat), (model.matrix, model.vector)
    before, given = [p.data.copy() for p in both], [[], []]
    for number in range(1, steps + 1):
        for p, gradients in zip(both, given, strict=True):
            gradients.append(rng.normal(size=p.shape))
            p.grad += gradients[-1]
        optimizer.step(0.1 / number, number)
        assert not flat.grad.any()  # zero again, ready for the next to be added up
    return list(zip(before, given, [p.data for p in both], strict=True))


def slow_adamw(w, gradients, decay):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        w -= 0.1 / t * (m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.99**t)) + 1e-8) + decay * w)
    return w


def slow_sgd(w, gradients, decay):
    v = 0.0
    for t, g in enumerate(gradients, 1):
        v = 0.9 * v + g
        w -= 0.1 / t * (v + decay * w)
    return w


@both
@pytest.mark.parametrize("optimizer, slow", [(AdamW, slow_adamw), (SGD, slow_sgd)])
def test_an_optimizer_is_its_formula_number_by_number_and_only_matrices_decay(
    optimizer, slow, mode
):
    with mode():
        runs = updated(lambda flat: optimizer(flat, 0.2))
    for decay, (before, given, after) in zip((0.2, 0), runs, strict=True):
        for at in np.ndindex(before.shape):
            w = slow(before[at], [g[at] for g in given], decay)
            assert math.isclose(after[at], w, rel_tol=1e-12)


orthogonals = pytest.mark.parametrize(
    "orthogonal", [muon.orthogonal, fast_optim.orthogonal], ids=["formula", "fast"]
)


def slow_orthogonal(x):
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


@both
def test_muon_is_its_formula_for_matrices_and_adamw_for_the_rest(mode):
    with mode():
        matrix, (vector, given, after) = updated(lambda flat: Muon(flat, 0.2))
    for at in range(3):
        expected = slow_adamw(vector[at], [g[at] for g in given], 0)
        assert math.isclose(after[at], expected, rel_tol=1e-12)
    (w, given, after), m = matrix, 0.0
    for t, g in enumerate(given, 1):
        m = 0.95 * m + g
        w -= 0.1 / t * (0.2 * 3**0.5 * slow_orthogonal(g + 0.95 * m) + 0.2 * w)
    np.testing.assert_allclose(after, w, rtol=1e-11)


@both
def test_with_muon_tables_fade_twenty_times_as_fast_as_matrices_and_vectors_do_not(mode):
    rng = np.random.default_rng(0)
    model = LanguageModel(GPTConfig(11, 8, 1, 1, 8), [], rng)
    model.up = Linear(8, 8, rng)
    flat = Flat(model)
    before = {name: p.data.copy() for name, p in model.named_parameters().items()}
    with mode():
        Muon(flat, 0.2).step(0.1, 1)  # no gradient has come
    left = {"up.weight": 1 - 0.1 * 0.2, "embedding.weight": 1 - 0.1 * 4}
    for name, p in model.named_parameters().items():
        np.testing.assert_allclose(p.data, left.get(name, 1) * before[name], rtol=1e-6)


@both
@pytest.mark.parametrize("n", [1, 2**15, 2**16 + 3])
def test_adamw_in_blocks_is_adamw_of_the_whole(mode, n):
    rng, w, g = np.random.default_rng(0), *np.random.default_rng(1).normal(size=(2, n))
    flat = SimpleNamespace(data=w.copy(), grad=g.copy(), decayed=n // 2)
    optimizer = AdamW(flat, 0.2)
    with mode():
        for number in (1, 2):
            flat.grad[:] = g
            optimizer.step(0.1, number)
    for at in {0, n // 2, n - 1, *rng.integers(n, size=20).tolist()}:
        decay, expected = 0.2 if at < n // 2 else 0, w[at]
        for _ in range(2):  # equal gradients: m_hat = g, v_hat = g^2
            expected -= 0.1 * (g[at] / (abs(g[at]) + 1e-8) + decay * expected)
        assert math.isclose(flat.data[at], expected, rel_tol=1e-9)


@both
def test_muon_equals_pytorchs(mode):
    torch = pytest.importorskip("torch")
    with mode():
        matrix, _ = updated(lambda flat: Muon(flat, 0.2))
    twin = torch.nn.Parameter(torch.from_numpy(matrix[0]))
    optimizer = torch.optim.Muon([twin], weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for t, g in enumerate(matrix[1]):
        twin.grad, optimizer.param_groups[0]["lr"] = torch.from_numpy(g), 0.1 / (t + 1)
        optimizer.step()
    # PyTorch multiplies in bfloat16, 3 digits; the steps add up to 0.6
    np.testing.assert_allclose(matrix[2], twin.detach().numpy(), atol=5e-3)


@orthogonals
@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30), (1, 7)])
def test_orthogonal_keeps_directions_and_levels_their_sizes(shape, orthogonal):
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    s = np.geomspace(100, 1, min(shape))  # five turns, each by up to 3.4, lift the last one as well
    levelled = u.T @ orthogonal(((u * s) @ vt).astype(np.float32)) @ vt.T
    assert ((0.6 < np.diag(levelled)) & (np.diag(levelled) < 1.25)).all()
    np.testing.assert_allclose(levelled, np.diag(np.diag(levelled)), atol=5e-3)
    # s^2 is rounded at 6e-8, and each turn lifts small ones by up to 3.4^2


@orthogonals
def test_orthogonal_of_zeros_is_zeros(orthogonal):
    assert not orthogonal(np.zeros((3, 5), np.float32)).any()


@both
def test_adamw_equals_pytorchs(mode):
    torch = pytest.importorskip("torch")
    with mode():
        runs = updated(lambda flat: AdamW(flat, 0.2, betas=(0.8, 0.95)))
    twins = [torch.nn.Parameter(torch.from_numpy(before)) for before, _, _ in runs]
    groups = [
        {"params": [twin], "weight_decay": d} for twin, d in zip(twins, (0.2, 0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95))
    for t in range(7):
        for twin, (_, given, _) in zip(twins, runs, strict=True):
            twin.grad = torch.from_numpy(given[t])
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (t + 1)
        optimizer.step()
    for twin, (_, _, after) in zip(twins, runs, strict=True):
        np.testing.assert_allclose(after, twin.detach().numpy(), rtol=1e-10)


@both
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_updates_weights_and_moments_in_place(name, mode):
    model = Pair()
    flat = Flat(model)
    optimizer, weights = optimizer_of(name, flat), model.matrix.data
    arrays = {**optimizer.moments, "data": flat.data, "grad": flat.grad}
    flat.grad += 1
    with mode():
        optimizer.step(0.1, 1)
    assert model.matrix.data is weights and np.shares_memory(weights, flat.data)
    for key, array in {**optimizer.moments, "data": flat.data, "grad": flat.grad}.items():
        assert array is arrays[key]
    assert all(moment.any() for moment in optimizer.moments.values())


def stepped(name, shape=(20, 50), dtype=np.float64, xp=np, steps=7):
    """[weights, moments of each name] after some steps with random gradients, as NumPy arrays"""
    model, rng = Pair(shape).to(xp, dtype), np.random.default_rng(1)
    flat = Flat(model)
    optimizer = optimizer_of(name, flat, 0.2)
    for number in range(1, steps + 1):
        for p in (model.matrix, model.vector):
            p.grad += xp.asarray(rng.normal(size=p.shape).astype(dtype))
        optimizer.step(0.1 / number, number)
    return [to_numpy(a) for a in (flat.data, *optimizer.moments.values())]


# In float32 a rounding is 6e-8, and a step has a dozen. The fast `orthogonal` of Muon squares the
# singular values, of which the smallest here is a fifth of the largest, and lifts their rounding.
@pytest.mark.parametrize(
    "name, dtype, tolerance",
    [
        ("adamw", np.float64, 1e-14),
        ("muon", np.float64, 1e-14),
        ("adamw", np.float32, 1e-6),
        ("muon", np.float32, 2e-6),
    ],
)
@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_the_formula_and_the_fast_step_agree(name, shape, dtype, tolerance):
    fast = stepped(name, shape, dtype)
    with plain():
        formula = stepped(name, shape, dtype)
    for a, b in zip(fast, formula, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "limit, expected", [(10.0, [3.0, 4.0]), (5.0, [3.0, 4.0]), (1.0, [0.6, 0.8])]
)
def test_clipping_shortens_only_what_is_longer_and_returns_the_length_before(limit, expected):
    gradient = np.array([3.0, 4.0])
    assert clip(gradient, limit) == 5.0
    np.testing.assert_allclose(gradient, expected, rtol=1e-15)


def test_schedules_go_from_one_to_their_floor():
    assert [SCHEDULES["cosine"](x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1], rel=1e-12)
    stable = [SCHEDULES["stable"](x) for x in (0, 0.4, 0.7, 1)]
    assert stable == pytest.approx([1, 1, 0.5, 0], rel=1e-12)


@pytest.mark.parametrize("schedule, last", [("stable", 0.2 / 3.6), ("cosine", 0.2 * 0.16029)])
def test_the_rate_climbs_in_a_line_to_its_peak_and_falls_from_there(schedule, last):
    rates = [rate_at(step, 10, 0.2, 4, schedule) for step in range(10)]
    assert rates[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2], rel=1e-12)
    falling = rates[6:] if schedule == "stable" else rates[4:]  # flat before, up to 40 %
    assert rates[6] == rates[4] or schedule == "cosine"
    assert all(a > b for a, b in zip(falling, falling[1:], strict=False))
    assert rates[-1] == pytest.approx(last, rel=1e-4)  # 0.1 + 0.45 (1 + cos(5/6 pi)), to 5 figures


def test_a_warm_up_longer_than_the_run_only_climbs():
    rates = [rate_at(step, 3, 1.0, 10, "cosine") for step in range(3)]
    assert rates == pytest.approx([0.1, 0.2, 0.3], rel=1e-12)


def new_trainer(
    out, seed=0, dtype=np.float32, xp=np, on_evaluate=lambda *_: None, ranks=None, **options
):
    """A small GPT on random ids: 26 windows, so that seven batches of 4 begin a second epoch."""
    short = {"steps": 8, "batch_size": 4, "eval_every": 3, "warmup": 2, "dropout": 0.2}
    short |= {"patience": 99}
    c, rng = Config(**short | options), np.random.default_rng(seed)
    model = GPT2(GPTConfig(11, 8, 1, 2, 16, dropout=c.dropout), rng).to(xp, dtype)
    flat = Flat(model, ranks)
    optimizer, out = optimizer_of(c.optimizer, flat, c.weight_decay), out / f"{options}"
    out.mkdir(exist_ok=True)
    stream = Windows(IDS[:220], 8, 3)
    validation = [xp.asarray(ids) for ids in windows_in_order(IDS[220:], 8)]
    return Trainer(model, optimizer, stream, validation, c, rng, out, {}, on_evaluate, ranks)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def files(run):
    """What a run leaves behind, but for the seconds in the log."""
    found = contents(run.out)
    rows = csv.DictReader(found.pop("log.csv").decode().splitlines())
    return found, [{**row, "seconds": None} for row in rows]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", range(9))
def test_a_resumed_run_is_the_undisturbed_run_bit_for_bit(tmp_path, stop, optimizer):
    undisturbed = new_trainer(tmp_path, optimizer=optimizer)
    undisturbed.run()
    expected = files(undisturbed)
    for file in undisturbed.out.iterdir():
        file.unlink()
    first = new_trainer(tmp_path, optimizer=optimizer)
    step = first.train_step
    first.train_step = lambda: (step(), setattr(first, "stopped", first.step == stop))
    first.stopped = stop == 0
    first.run()
    assert first.step == stop
    second = new_trainer(tmp_path, seed=99, optimizer=optimizer)  # all it has, the file must give
    second.restore(*checkpoint.load(first.out / "last.safetensors"))
    second.run()
    assert files(second) == expected


def test_a_run_killed_between_its_two_checkpoints_keeps_the_best(tmp_path, monkeypatch):
    run, save, saved = new_trainer(tmp_path), checkpoint.save, []

    def killed(*given):
        if len(saved) == 3:  # two evaluations: best, last, best ...
            raise KeyboardInterrupt
        saved.append(given[0])
        save(*given)

    falling = iter([3.0, 2.0])
    monkeypatch.setattr(trainer, "mean_loss", lambda *_: next(falling))
    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    _, last = checkpoint.load(run.out / "last.safetensors")
    _, best = checkpoint.load(run.out / "best.safetensors")
    assert (best["state"]["best"], last["state"]["best"]) == (2.0, 3.0)


def test_definitions_alone_train_to_the_same_losses(tmp_path):
    pairs, definitions = (new_trainer(tmp_path, dtype=np.float64, seed=i) for i in (0, 0))
    losses = [pairs.train_step() for _ in range(8)]
    with plain():
        np.testing.assert_allclose([definitions.train_step() for _ in range(8)], losses, rtol=1e-10)


def test_a_whole_run_on_another_library_than_numpy_ends_the_same(tmp_path):
    ends = []
    for xp, setting in ((np, plain()), (strict, registered())):
        with setting:
            run = new_trainer(tmp_path, dtype=np.float64, xp=xp)
            run.run()
            assert module_of(run.flat.data) is module_of(run.validation[0]) is xp
            ends.append(checkpoint.load(run.out / "best.safetensors")[0])
    for name, array in ends[0].items():
        np.testing.assert_allclose(ends[1][name], array, rtol=1e-10, atol=1e-12)


def test_evaluating_and_sampling_do_not_disturb_the_run(tmp_path):
    def write(run, loss, best):
        dice = np.random.default_rng(run.step)
        assert len(list(generate(run.model.eval(), [IDS[:3]], 12, dice))) == 12
        run.model.train()

    ends = []
    for often in ({"eval_every": 1, "on_evaluate": write}, {"eval_every": 8}):
        run = new_trainer(tmp_path, **often)
        run.run()
        arrays, about = checkpoint.load(run.out / "last.safetensors")
        ends.append(
            {k: a.tobytes() for k, a in arrays.items()}
            | about["state"]
            | {"best": None, "stale": None, "rows": None}
        )
    assert ends[0] == ends[1]


def test_gradients_of_parts_add_up_to_those_of_the_batch(tmp_path):
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-13)):
        weights = []
        for parts in (1, 2, 3, 12):
            options = {"batch_size": 12, "accumulate": parts, "dropout": 0.0, "optimizer": "sgd"}
            run = new_trainer(tmp_path, dtype=dtype, **options)
            losses = [run.train_step() for _ in range(3)]
            weights.append(np.append(run.flat.data, losses))
        for other in weights[1:]:
            np.testing.assert_allclose(other, weights[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_mean_loss_is_that_of_a_slow_loop_over_the_scored_targets(batch_size):
    model = GPT2(GPTConfig(11, 8, 1, 2, 16, dropout=0.5), np.random.default_rng(0)).to(dtype=float)
    x, y = windows_in_order(IDS[:31], 8)  # 30 targets in 4 windows: two are padding
    losses = []
    for i, t in np.argwhere(y != -100):
        z = model.eval()(x[i : i + 1, : t + 1]).data[0, -1]
        losses.append(math.log(sum(math.exp(a) for a in z)) - z[y[i, t]])
    assert len(losses) == 30
    assert mean_loss(model.train(), x, y, batch_size) == pytest.approx(sum(losses) / 30, rel=1e-12)
    assert model.training and model.blocks[0].mlp.dropout.training


@pytest.mark.parametrize("where", ["embedding.weight", "blocks.0.mlp.up.weight", "norm.weight"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, where):
    run = new_trainer(tmp_path)
    step, before = run.train_step, {}

    def poisoned():
        if run.step == 4:  # the fifth step meets it; the checkpoint is of the third
            before.update(contents(run.out))
            run.model.named_parameters()[where].data[...] = math.nan
        return step()

    run.train_step = poisoned
    with pytest.raises(FloatingPointError, match=f"^step 5: .* weight of {where} is not finite"):
        run.run()
    assert contents(run.out) == before and len(before) == 3


def test_weights_gone_wrong_in_an_update_are_not_saved_by_the_evaluation_after_it(tmp_path):
    run = new_trainer(tmp_path, eval_every=1)
    step, before = run.train_step, {}

    def blown_up():
        before.update(contents(run.out))
        step()
        if run.step == 3:
            run.flat.data *= np.float32(1e30)  # finite, but no prediction can be made with them

    run.train_step = blown_up
    with pytest.raises(FloatingPointError, match="^step 3: loss nan"):
        run.run()
    assert contents(run.out) == before and len(before) == 3


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(tmp_path, monkeypatch):
    losses, last, best = [3.0, 2.0, 2.5, 2.0, 4.0], [], []

    def remember(run, loss, before):
        last.append((run.out / "last.safetensors").read_bytes())
        best.append(before)

    monkeypatch.setattr(trainer, "mean_loss", lambda *_: losses[len(last)])
    run = new_trainer(tmp_path, steps=5, eval_every=1, on_evaluate=remember)
    run.run()
    assert (run.out / "best.safetensors").read_bytes() == last[1]
    assert best == [trainer.NEVER, 3.0, 2.0, 2.0, 2.0]


def by_the_clock(monkeypatch, run, seconds=lambda step: 1.0):
    """Let a step of the run take so many seconds, and nothing else any."""
    now, step = [0.0], run.train_step

    def timed():
        step()
        now[0] += seconds(run.step)

    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now[0])
    run.train_step = timed
    return now


def test_minutes_become_the_steps_that_fit_and_the_run_is_that_of_so_many_steps(
    tmp_path, monkeypatch, capsys
):
    run = new_trainer(tmp_path, steps=None, minutes=0.5, eval_every=30)
    by_the_clock(monkeypatch, run)
    run.run()
    expected = new_trainer(tmp_path, steps=30, minutes=0.5, eval_every=30)
    by_the_clock(monkeypatch, expected)
    expected.run()
    assert run.step == 30 and (run.flat.data == expected.flat.data).all()
    assert checkpoint.load(run.out / "last.safetensors")[1]["state"]["steps"] == 30
    assert capsys.readouterr().out.strip() == "30 steps fit in 0.5 min"


@pytest.mark.parametrize("factor", [0.25, 0.5, 2, 4])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8])
def test_minutes_keep_their_word_if_the_machine_changes_its_speed(
    tmp_path, monkeypatch, share, factor
):
    run = new_trainer(tmp_path, steps=None, minutes=5.0, eval_every=500)
    run.stream.epochs = 1000
    run.train_step = lambda: setattr(run, "step", run.step + 1)
    monkeypatch.setattr(run, "evaluate", lambda: None)
    now = by_the_clock(monkeypatch, run, lambda _: factor if now[0] > 300 * share else 1.0)
    run.run()
    assert 270 < now[0] < 330
    assert run.rate() < 0.05 * run.config.learning_rate  # the schedule has landed


def test_a_run_that_slows_down_while_the_rate_is_flat_is_that_of_its_steps(tmp_path, monkeypatch):
    run = new_trainer(tmp_path, steps=None, minutes=1.5, eval_every=1000)
    run.stream.epochs = 1000
    by_the_clock(monkeypatch, run, lambda step: 2.0 if step > 10 else 1.0)
    run.run()
    expected = new_trainer(tmp_path, steps=run.step, eval_every=1000)
    by_the_clock(monkeypatch, expected)
    expected.run()
    assert run.step == 50 and (run.flat.data == expected.flat.data).all()  # 10 + 80 / 2


def test_a_few_slow_steps_while_the_rate_falls_do_not_change_the_plan(tmp_path, monkeypatch):
    run = new_trainer(tmp_path, steps=None, minutes=1.5, eval_every=1000)
    run.stream.epochs = 1000
    by_the_clock(monkeypatch, run, lambda step: 2.0 if step in (50, 60) else 1.0)
    run.run()
    assert run.step == 90


def test_minutes_read_a_small_text_only_so_often(tmp_path, monkeypatch, capsys):
    run = new_trainer(tmp_path, steps=None, minutes=1.0)
    by_the_clock(monkeypatch, run)
    run.run()
    assert run.step == run.stream.epochs * 26 // 4 == 39  # of the 60 that fit
    assert capsys.readouterr().out.strip().startswith("39 steps read this data 6 times")


def test_minutes_that_are_over_before_they_are_measured_end_there(tmp_path, monkeypatch):
    run = new_trainer(tmp_path, steps=None, minutes=0.1)
    by_the_clock(monkeypatch, run)
    run.run()
    assert run.step == 6  # a second each


def test_a_run_stops_after_validations_without_a_new_best_also_across_a_resume(
    tmp_path, monkeypatch
):
    losses = iter([3.0, 2.0, 2.5, 1.9, 1.9, 2.0, 2.0])
    monkeypatch.setattr(trainer, "mean_loss", lambda *_: next(losses))
    options = {"eval_every": 2, "patience": 3, "schedule": "cosine"}
    run = new_trainer(tmp_path, steps=50, **options)
    step = run.train_step
    run.train_step = lambda: (step(), setattr(run, "stopped", run.step == 11))
    run.run()
    assert (run.step, run.stale) == (11, 1)
    for _ in range(2):  # the second resume finds nothing to do
        run = new_trainer(tmp_path, steps=50, **options)
        run.restore(*checkpoint.load(run.out / "last.safetensors"))
        run.run()
        assert (run.step, run.stale, run.stopped) == (14, 3, False)
    assert checkpoint.load(run.out / "best.safetensors")[1]["state"]["step"] == 8


def test_patience_begins_when_the_rate_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "mean_loss", lambda *_: 2.0)
    run = new_trainer(tmp_path, steps=100, eval_every=1, patience=3)
    run.run()
    assert run.step == 44  # 2 + 0.4 x 98 = 41.2: 42 is the first validation at a lower rate


def test_a_run_of_minutes_resumes_bit_for_bit_and_spends_what_is_left_of_them(
    tmp_path, monkeypatch
):
    options = {"steps": None, "minutes": 0.6, "eval_every": 12}
    undisturbed = new_trainer(tmp_path, **options)
    by_the_clock(monkeypatch, undisturbed)
    undisturbed.run()
    expected = files(undisturbed)
    first = new_trainer(tmp_path, **options)
    by_the_clock(monkeypatch, first)
    step = first.train_step
    first.train_step = lambda: (step(), setattr(first, "stopped", first.step == 30))
    first.run()
    second = new_trainer(tmp_path, **options)
    second.out = first.out
    second.restore(*checkpoint.load(first.out / "last.safetensors"))
    by_the_clock(monkeypatch, second)
    second.run()
    assert files(second) == expected and (second.step, second.seconds) == (36, 36.0)


@pytest.mark.parametrize(("stop", "steps"), [(10, 50), (60, 75)])  # 10 + 80 / 2, 60 + 30 / 2
def test_the_rest_of_the_minutes_counts_on_a_slower_machine(tmp_path, monkeypatch, stop, steps):
    first = new_trainer(tmp_path, steps=None, minutes=1.5, eval_every=1000)
    first.stream.epochs = 1000
    by_the_clock(monkeypatch, first)
    step = first.train_step
    first.train_step = lambda: (step(), setattr(first, "stopped", first.step == stop))
    first.run()
    second = new_trainer(tmp_path, steps=None, minutes=1.5, eval_every=1000)
    second.stream.epochs = 1000
    second.restore(*checkpoint.load(first.out / "last.safetensors"))
    by_the_clock(monkeypatch, second, lambda _: 2.0)
    second.run()
    assert abs(second.step - steps) <= 2 and 81 < second.seconds < 99


def test_every_evaluation_reads_the_same_few_windows_spread_over_the_split(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(trainer, "mean_loss", lambda model, x, y, *_: seen.append((x, y)) or 1.0)
    run = new_trainer(tmp_path, batch_size=5)
    run.run()
    assert len(seen) == 3 and {len(x) for x, _ in seen} == {3}  # 3 steps of 5 windows, a fifth
    x, y = windows_in_order(IDS[220:], 8)
    for part in seen:
        np.testing.assert_array_equal(part, (x[[0, 4, 9]], y[[0, 4, 9]]))


def test_the_log_has_a_row_for_every_evaluation(tmp_path):
    said = []
    run = new_trainer(tmp_path, on_evaluate=lambda run, *loss: said.append((run.recent, loss[0])))
    run.run()
    with open(run.out / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 6, 8]
    assert [int(row["tokens"]) for row in rows] == [step * 4 * 8 for step in (3, 6, 8)]
    for row, (recent, loss) in zip(rows, said, strict=True):
        assert (row["training"], row["validation"]) == (f"{recent:.4f}", f"{loss:.4f}")
        assert float(row["seconds"]) >= 0


def test_the_running_loss_is_the_mean_of_the_first_fifty_steps(tmp_path):
    run = new_trainer(tmp_path, steps=50)
    losses = [run.train_step() for _ in range(50)]
    assert run.recent == pytest.approx(np.mean(losses), rel=1e-12)


def test_ctrl_c_finishes_the_step_saves_and_gives_the_signal_back(tmp_path):
    run, before = new_trainer(tmp_path), signal.getsignal(signal.SIGINT)
    step = run.train_step
    run.train_step = lambda: (run.step == 3 and os.kill(os.getpid(), signal.SIGINT), step())
    run.run()
    assert run.stopped and signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(run.out / "last.safetensors")[1]["state"]["step"] == 4


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    run = new_trainer(tmp_path)
    run.train_step = lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert signal.getsignal(signal.SIGINT) is before


# checkpoints

ARRAYS = {
    "b.matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "sliced": np.arange(20.0)[::-3],
    "number": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "ids": np.array([-1, 2**31 - 1], np.int32),
}
ABOUT = {"text": "é \ud83c ☃ \n", "n": 10**30, "list": [1, None, 0.1, {"deep": True}]}


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    checkpoint.save(tmp_path / "c", ARRAYS, ABOUT)
    arrays, about = checkpoint.load(tmp_path / "c")
    assert about == ABOUT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()


def test_equal_states_give_equal_bytes_in_any_order(tmp_path):
    checkpoint.save(tmp_path / "c", ARRAYS, ABOUT)
    again = {name: array.copy() for name, array in reversed(ARRAYS.items())}
    checkpoint.save(tmp_path / "d", again, dict(reversed(ABOUT.items())))
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


def test_the_package_of_the_format_reads_what_was_saved(tmp_path):
    checkpoint.save(tmp_path / "c", ARRAYS, ABOUT)
    arrays = load_file(tmp_path / "c")
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_saving_makes_no_copy_of_the_arrays(tmp_path):
    big = {f"{i}": np.ones(1 << 20, np.float32) for i in range(4)}  # 16 MB
    tracemalloc.start()
    checkpoint.save(tmp_path / "c", big, ABOUT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_weights_alone_can_be_loaded_and_damage_among_the_moments_is_still_found(tmp_path):
    checkpoint.save(tmp_path / "c", {"w": np.ones(3), "optimizer.z": np.ones(5)}, ABOUT)
    assert checkpoint.load(tmp_path / "c", moments=False)[0].keys() == {"w"}
    whole = bytearray((tmp_path / "c").read_bytes())
    whole[8 + int.from_bytes(whole[:8], "little")] ^= 1  # the first array: optimizer.z
    (tmp_path / "c").write_bytes(whole)
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.load(tmp_path / "c", moments=False)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, function):
    checkpoint.save(tmp_path / "c", ARRAYS, ABOUT)
    before = (tmp_path / "c").read_bytes()

    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 2  # beside, not over it
        raise OSError("no space left")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(tmp_path / "c", {}, ABOUT)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def refused(path, content):
    """The message of the CheckpointError, and nothing but a CheckpointError, that content gives."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1
    return message


def forged(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", ARRAYS, ABOUT)
    whole = (tmp_path / "c").read_bytes()
    for end in [*range(0, len(whole), 7), len(whole) - 1]:
        assert "damaged" in refused(tmp_path / "c", whole[:end])


def test_a_checkpoint_with_any_byte_changed_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", {"x": np.ones((2, 3)), "y": np.ones(1)}, {"step": 3})
    whole = (tmp_path / "c").read_bytes()
    for at in range(len(whole)):
        for byte in (whole[at] ^ 1, whole[at] ^ 0xFF, ord("[")):
            if byte != whole[at]:
                refused(tmp_path / "c", whole[:at] + bytes([byte]) + whole[at + 1 :])


def of_type(name, size):
    about = {"minigpt": json.dumps({"version": checkpoint.VERSION})}
    tensor = {"dtype": name, "shape": [8], "data_offsets": [0, 8 * size]}
    return forged({"__metadata__": about, "x": tensor}, bytes(8 * size))


FOREIGN = {
    "empty file": (b"", "damaged"),
    "text": (b"Call me Ishmael. Some years ago", "damaged"),
    "zip": (b"PK\x03\x04" + bytes(200), "damaged"),
    "no metadata": (forged({}), "not written by minigpt"),
    "other metadata": (forged({"__metadata__": {"format": "pt"}}), "not written by minigpt"),
    "no object": (forged({"__metadata__": {"minigpt": "[1]"}}), "not written by minigpt"),
    "no JSON": (forged({"__metadata__": {"minigpt": "{'a': 1}"}}), "damaged"),
    "deep JSON": (forged({"__metadata__": {"minigpt": "[" * 100_000}}), "damaged"),
    "deep header": (forged(b'{"a":' * 100_000), "damaged"),
    "long number": (forged({"__metadata__": {"minigpt": "9" * 5000}}), "damaged"),
    "no version": (forged({"__metadata__": {"minigpt": "{}"}}), "got None"),
    "later version": (forged({"__metadata__": {"minigpt": '{"version": 99}'}}), "5, got 99"),
    "bfloat16": (of_type("BF16", 2), "damaged"),
    "float8": (of_type("F8_E4M3", 1), "damaged"),
    "unknown type": (of_type("F7", 1), "damaged"),
}


@pytest.mark.parametrize("what", [what for what in FOREIGN if "float" not in what])
def test_reading_the_json_part_alone_refuses_what_loading_refuses(tmp_path, what):
    expected = refused(tmp_path / "c", FOREIGN[what][0])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read_about(tmp_path / "c")
    assert str(caught.value) == expected


def test_the_json_part_can_be_read_without_the_arrays(tmp_path):
    checkpoint.save(tmp_path / "c", ARRAYS, ABOUT)
    whole = bytearray((tmp_path / "c").read_bytes())
    assert checkpoint.read_about(tmp_path / "c") == ABOUT
    whole[-1] ^= 1  # in an array
    assert "checksum" in refused(tmp_path / "c", bytes(whole))
    assert checkpoint.read_about(tmp_path / "c") == ABOUT


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_refused_in_one_line(tmp_path, what):
    content, expected = FOREIGN[what]
    assert expected in refused(tmp_path / "c", content)


def test_a_missing_checkpoint_is_a_missing_file(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        for read in (checkpoint.load, checkpoint.read_about):
            with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
                read(path)


# configuration


CHOICES = {"model": MODELS, "tokenizer": TOKENIZERS}


def parsed(*words):
    parser = Parser("train.py")
    add_options(parser, CHOICES)
    return parser, vars(parser.parse_args(words))


def option_of(f):
    return f"--{f.name.replace('_', '-')}"


def other(f, default):
    """Words for field f that mean something else than its default."""
    values = {list: ["a.txt", "b.txt"], str: ["else"], bool: []}
    if f.type in (int, float):
        values[f.type] = [str((default or 1) * 2 if f.type is int else default / 2 + 0.1)]
    known = CHOICES.get(f.name) or f.metadata["argument"].get("choices", [])
    choices = [c for c in known if c != default]
    return [option_of(f), *(choices[:1] or values[f.type])]


def test_a_config_survives_the_command_line_and_json():
    default = Config()
    changed = fields(Config)
    words = [word for f in changed for word in other(f, getattr(default, f.name))]
    config = Config(**parsed(*words)[1])
    assert all(getattr(config, f.name) != getattr(default, f.name) for f in changed)
    assert Config(**json.loads(json.dumps(asdict(config)))) == config


def test_only_options_that_were_given_reach_the_namespace():
    assert parsed("--steps", "5", "--plain")[1] == {"steps": 5, "plain": True}
    assert Config(**parsed()[1]) == Config()


def test_every_field_has_an_option_of_its_name_with_a_help_text():
    actions = {a.dest: a for a in parsed()[0]._actions}
    for f in fields(Config):
        assert actions[f.name].option_strings == [option_of(f)]
        assert len(actions[f.name].help.split()) > 1
    assert parsed()[0].format_help()


@pytest.mark.parametrize("f", [f for f in fields(Config) if f.type in (int, float)], ids=option_of)
def test_a_number_out_of_bounds_is_refused_in_one_line(f, capsys):
    words = ["nan", "inf", "-inf", "-1", "-1e-9", "", "many", "1e400"]
    words += ["1.5", "1e2", "1" + "0" * 400] if f.type is int else []
    words += ["0"] if f.metadata["bounds"][0] in ((">=", 1), (">", 0)) else []
    words += ["1"] if f.name == "dropout" else []
    for word in words:
        with pytest.raises(SystemExit) as caught:
            parsed(f"{option_of(f)}={word}")
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.count("\n") == 1
        assert option_of(f) in error and f"got {word!r}" in error


def test_the_lowest_allowed_numbers_are_allowed():
    assert parsed("--dropout=0", "--warmup=0", "--seed=0", "--steps=1")[1]["steps"] == 1


@pytest.mark.parametrize(
    "word, hint",
    [
        ("--n-heads", "did you mean --n-head?"),
        ("--learnin-rate=1", "did you mean --learning-rate?"),
        ("--zzzzzzzz", "--help lists them"),
    ],
)
def test_an_unknown_option_gets_the_nearest(word, hint, capsys):
    with pytest.raises(SystemExit):
        parsed(word)
    error = capsys.readouterr().err
    assert error == f"train.py: unknown option {word.partition('=')[0]}; {hint}\n"


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="divisor of --batch-size 8, got 5"):
        Config(accumulate=5)
