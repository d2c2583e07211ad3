"""The benchmarks: figures and tables that the pages show are those of results.json."""

import math
import subprocess
import sys

import numpy as np
import pytest
from gradcheck import draw, gradcheck

from minigpt.datasets import text
from minigpt.engine.autograd import Tensor
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.nn.layers import Linear
from minigpt.nn.recipe import GPT
from tests.benchmarks import __main__ as command
from tests.benchmarks import learning, measure, suite, tables
from tests.benchmarks.products import products

MACHINE = {
    "cpu": "A CPU", "cores": 2, "python": "3.11.7", "numpy": "2.4.6", "torch": "2.13.0",
    "transformers": "5.24.0",
}  # fmt: skip
ON = "A CPU, 2 cores, Python 3.11.7, NumPy 2.4.6, PyTorch 2.13.0, transformers 5.24.0."


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_the_pages_show_what_the_results_say(page):
    text = page.read_text(encoding="utf-8")
    assert tables.fill(text, tables.load()) == text
    assert len(tables.BLOCK.findall(text)) == text.count("benchmark: ")


def test_every_result_stands_on_the_page_of_benchmarks():
    text = tables.PAGES[-1].read_text(encoding="utf-8")
    assert {name for _, name, _ in tables.BLOCK.findall(text)} == tables.load().keys()


def test_a_block_is_replaced_and_the_text_around_it_stays():
    result = {"seconds": {"minigpt": 0.061, "torch": 1.0}, "machine": MACHINE}
    text = "a\n<!-- benchmark: import -->\n{}<!-- /benchmark -->\nb\n"
    rows = "|  | s |\n| --- | --: |\n| `import minigpt` | 0.06 |\n| `import torch` | 1.00 |\n"
    for before in ("", "old\n"):
        filled = tables.fill(text.format(before), {"import": result})
        assert filled == text.format(f"{rows}\n{ON}\n")


def test_a_training_result_becomes_a_table():
    rows = {
        "minigpt, pairs": {"ms": [40, 35, 45], "ratio": [0.8, 0.7, 0.9], "mb": 90.2},
        suite.TORCH: {"ms": [50, 48, 60.04], "ratio": [1.0, 1.0, 1.0], "mb": 360.8},
        suite.FLOOR: {"ms": [20, 19, 21], "ratio": [0.4, 0.4, 0.4], "mb": None},
    }
    for name, row in rows.items():
        row["lines"] = 214 if "pairs" in name else None
        row["tokens_per_s"] = 1000 * 768 / row["ms"][0]
    result = {"rows": rows, "steps": 130, "loss_difference": 7.4e-7, "machine": MACHINE}
    head, _, *body, empty, losses, machine = tables.render("gpt", result).splitlines()
    assert head.count("|") == body[0].count("|") == 9 and not empty
    assert body[0].startswith(
        "| minigpt, pairs | 40.0 (35.0 to 45.0) | 19,200 | 0.80 (0.70 to 0.90)"
    )
    assert [row.split(" | ", 4)[4] for row in body] == [
        "50% | 90 | 0.25 | 214 |", "40% | 361 | 1.00 |  |", "100% | - | - |  |"
    ]  # fmt: skip
    assert losses == "In 130 steps losses differ by at most 7e-07." and machine == ON


def test_a_result_of_the_pairs_says_how_much_longer_a_step_takes_without_each():
    rows = {
        "a step": {"ms": [40, 35, 45], "ratio": [1.0, 1.0, 1.0]},
        "a step without gelu": {"ms": [50, 48, 60.04], "ratio": [1.25, 1.2, 1.3]},
    }
    lines = tables.render("pairs", {"rows": rows, "machine": MACHINE}).splitlines()
    assert lines[2:4] == [
        "| a step | 40 (35 to 45) | 0 (0 to 0) |",
        "| a step without gelu | 50 (48 to 60) | 25 (20 to 30) |",
    ]


@pytest.mark.parametrize(
    "words, there, told",
    [
        (["gtp"], True, "got 'gtp'"),
        (["gpt", "--rounds", "1"], True, "at least 2"),
        (["gpt", "--rounds", "0"], True, "at least 2"),
        ([], False, "needs PyTorch"),
    ],
)
def test_a_mistake_is_told(words, there, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks", *words])
    monkeypatch.setattr(command, "find_spec", lambda name: there)
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2 and told in capsys.readouterr().err


def test_all_are_run_by_default(monkeypatch, capsys):
    run, saved = [], []
    fakes = {n: (lambda rounds, n=n: run.append((n, rounds)) or {}, 3) for n in "ab"}
    monkeypatch.setattr(command, "BENCHMARKS", fakes)
    monkeypatch.setattr(command, "LEARNING", {})
    monkeypatch.setattr(command, "machine", dict)
    monkeypatch.setattr(command, "find_spec", lambda name: True)
    monkeypatch.setattr(command.tables, "save", lambda name, result: saved.append(name))
    monkeypatch.setattr(command.tables, "load", lambda: {"a": 0, "b": 0})
    monkeypatch.setattr(command.tables, "render", lambda name, result: "")
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks"])
    command.main()
    assert run == [("a", 3), ("b", 3)] and saved == ["a", "b"]


def test_a_sampling_result_becomes_two_tables():
    rows = {
        "minigpt, T 64": {"tokens_per_s": [2400, 2300.4, 2500], "ratio": [4.0, 3.9, 4.1]},
        "nanoGPT, T 64": {"tokens_per_s": [600, 580, 610], "ratio": [1.0, 1.0, 1.0]},
    }
    result = {"rows": rows, "best": "nanoGPT, T 64", "tokens": 500, "agree": 499}
    result |= {"batches": [[1, 0.4, 1.6], [64, 3.2, 6.4]], "machine": MACHINE}
    lines = tables.render("sampling", result).splitlines()
    assert "| minigpt, T 64 | 2,400 (2,300 to 2,500) | 4.00 (3.90 to 4.10) |" in lines
    assert "| 1 | 0.40 | 2,500 | 1.60 | 625 | 4.00 |" in lines
    assert "| 64 | 3.20 | 20,000 | 6.40 | 10,000 | 2.00 |" in lines
    assert "Of 500 greedy tokens, the first 499 are Hugging Face's." in lines


@pytest.mark.parametrize("shape, batch", [(suite.SMALL, 12), (suite.LARGE, 16)])
def test_the_floor_does_the_products_that_the_model_counts(shape, batch):
    done = sum(3 * 2 * math.prod(a) * b[-1] * times for a, b, times in products(shape, batch))
    model = GPT2(GPTConfig(**shape), np.random.default_rng(0))
    counted = model.flops_per_token() * batch * shape["block_size"]
    assert done == counted  # y = a b forward, dy b^T and a^T dy backward: three products each


def test_a_spread_is_the_median_with_the_outer_tenths():
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    np.testing.assert_allclose(measure.spread(values), np.percentile(values, [50, 10, 90]))


def test_a_ratio_compares_the_medians_of_turns_that_followed_one_another():
    mine, theirs = [[2, 4, 90], [6, 6, 6]], [[2, 2, 2], [1, 3, 70]]  # quotients 4 / 2, 6 / 3
    assert measure.ratio(mine, theirs) == [2.0, 2.0, 2.0]


def test_the_driver_maps_no_library_that_a_competitor_measures():
    code = "import sys, tests.benchmarks.__main__; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=measure.ROOT).returncode == 0


@pytest.mark.slow
def test_every_competitor_of_a_training_step_computes_the_same_losses():
    pytest.importorskip("torch")
    benchmark, _ = suite.BENCHMARKS["gpt"]
    result = benchmark(rounds=2)
    assert len(result["rows"]) == 5 and result["steps"] == 30
    assert result["loss_difference"] < 1e-5  # float32, thirty updates


def row(loss, steps=100):
    figures = {"loss": loss, "steps": steps, "seconds": 66.02, "tokens_per_s": 12345.6}
    return figures | {"parameters": 1_250_000}


def test_an_ablation_says_what_each_row_changes():
    seeds = {"losses": [1.5, 1.75, 2.0]}
    result = {"rows": {"a": row(2.0) | seeds, "b": row(1.75) | seeds}}
    result["left_out"] = {"c": row(1.76) | seeds}
    result |= {"data": "some.txt", "machine": MACHINE}
    lines = tables.render("ablation", result).splitlines()
    assert lines[2:5] == [
        "| a | 2.000 |  | 1.500, 1.750, 2.000 | 12,346 | 100 | 1,250,000 |",
        "| b | 1.750 | -0.250 | 1.500, 1.750, 2.000 | 12,346 | 100 | 1,250,000 |",
        "| with c: left out | 1.760 | +0.010 | 1.500, 1.750, 2.000 | 12,346 | 100 | 1,250,000 |",
    ]
    assert lines[6] == "The text is some.txt; the loss that of its whole validation split."


def test_model_and_n_gram_vote_with_the_best_share_of_the_first_tenth(monkeypatch):
    def model(x):  # the share 0.8 for the token after x, of three, and 0.1 for the others
        return Tensor(np.log(np.where(np.arange(3) == (x[..., None] + 1) % 3, 0.8, 0.1)))

    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, 1001)
    q = rng.uniform(0.2, 0.9, 1001)
    orders = [np.full(1001, 0.1), q, np.full(1001, 0.2)]
    monkeypatch.setattr(learning.text, "n_grams", lambda *_: iter(orders))
    loss = learning.together(model, text.windows_in_order(ids, 64), ids, ids, 3)
    losses = {}
    for a in np.arange(51) / 100:
        vote = [
            -math.log((1 - a) * (0.8 if ids[i] == (ids[i - 1] + 1) % 3 else 0.1) + a * q[i])
            for i in range(1, 1001)
        ]
        losses[sum(vote[:100])] = sum(vote[100:]) / 900
    assert loss == pytest.approx(losses[min(losses)])


def test_budgets_become_the_mean_and_each_seed():
    result = {"data": "some.txt", "machine": MACHINE}
    result["rows"] = [[[13.1, 13.3], [400, 410], [1.7, 1.72]], [[300.2], [9000], [1.5]]]
    assert tables.render("budgets", result).splitlines()[2:4] == [
        "| 13 s | 405 | 1.710 | 1.700, 1.720 |", "| 300 s | 9,000 | 1.500 | 1.500 |"
    ]  # fmt: skip


def test_a_scale_says_where_validation_turns():
    small = row(2.0) | {"characters": 50_000, "stop": 400}
    small["curve"] = [[100, 2.5, 2.4], [200, 1.9, 2.2], [300, 1.0, 2.9]]
    result = {"seconds": 60, "sizes": [[2, 96, row(2.2), row(2.1)]], "small": small}
    lines = tables.render("scale", result | {"data": "manual", "machine": MACHINE}).splitlines()
    assert lines[2] == "| 2 x 96 | 1,250,000 | 2.200 | 66 | 100 | 2.100 | 66 | 100 |"
    assert "best at step 200 (2.200; training 1.900), then rises to 300 (2.900; tr" in lines[4]
    assert lines[4].endswith("`--patience` stops at step 400.")


def test_patience_stops_where_the_trainer_would():
    curve = [(10 * i, 0, loss) for i, loss in enumerate([3, 2, 2.5, 1.9, 2, 2, 2, 1], 1)]
    assert learning.stopped(curve, 3, 0) == 70 and learning.stopped(curve, 4, 0) is None
    assert learning.stopped(curve, 1, 0) == 30 and learning.stopped(curve, 1, 40) == 50


@pytest.mark.parametrize("part", learning.LEFT_OUT)
def test_a_part_that_is_left_out_still_works_where_it_is_tried(part):
    model = GPT(GPTConfig(11, 8, 2, 2, 16), np.random.default_rng(0)).to(dtype=np.float64)
    for p in model.named_parameters().values():
        p.data += 0.1  # biases start at zero
    x = np.arange(16).reshape(2, 8) % 11
    before, count = model(x).data, model.parameter_count()
    learning.change(model, part)
    model(x).sum().backward()
    assert np.abs(model(x).data - before).max() > 1e-6
    assert model.parameter_count() == count - {"no biases": 2 * (48 + 16 + 64 + 16),
                                               "RMSNorm": 5 * 16}.get(part, 0)  # fmt: skip
    tried = [p for name, p in model.named_parameters().items() if "blocks" in name]
    assert all(p.grad is not None for p in tried)


def test_rms_norm_of_the_benchmark_has_the_gradient_of_differences():
    gradcheck(learning.rms_norm, draw(2, 3, 4))


def test_normed_queries_and_keys_have_length_sqrt_d_and_values_are_left_alone():
    linear = Linear(6, 24, np.random.default_rng(0), std=1.0)
    x = Tensor(draw(2, 3, 6).astype(np.float32))
    z = learning.QKNorm(linear, 2)(x).data.reshape(2, 3, 3, 2, 4)
    np.testing.assert_allclose((z[:, :, :2] ** 2).sum(-1), 4, rtol=1e-3)
    np.testing.assert_array_equal(z[:, :, 2], linear(x).data.reshape(2, 3, 3, 2, 4)[:, :, 2])


def test_a_run_of_the_ablation_learns(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox " * 60)
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": 16, "steps": 12}
    got = learning.learn(str(tmp_path / "text.txt"), learning.GPT2, **shape)
    assert got["steps"] == 12 and got["curve"][-1] == (12, got["curve"][-1][1], got["loss"])
    assert got["loss"] < 2.9 and got["tokens_per_s"] > 0


def test_the_picture_of_the_scale_is_the_same_for_the_same_figures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(learning.measure, "ROOT", tmp_path)
    (tmp_path / "tests/benchmarks").mkdir(parents=True)
    small = {"curve": [[100, 2.5, 2.4], [200, 1.9, 2.2]], "characters": 9, "stop": 100}
    pictures = []
    for loss in (2.1, 2.1, 2.0):
        sizes = [[2, 96, row(2.2), row(2.1)], [2, 128, row(1.9), row(loss)]]
        learning.draw({"seconds": 40, "sizes": sizes, "small": small})
        pictures.append((tmp_path / "tests/benchmarks/scale.svg").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_counts_of_launches_become_two_tables_with_the_bars():
    kinds = {"copy": [3, 1_000_000, 1_000_000], "elementwise": [1200, 6_000_000, 2_000_000]}
    row = {"kinds": kinds, "unit": 4_000_000, "peak": 3_210_000_000, "waits": {"item": 2}}
    row |= {"uploads": [1000, 500], "predicted": {"float32": 12.4}, "tokens": 24_800}
    rows = {"a": row | {"bars": [900, 2, 3]}, "b": row | {"kinds": {}, "bars": None}}
    hardware = {"bandwidth": 2e12, "rates": {"float32": 5e13}, "cupys": 1.2e-5, "ours": 6e-6}
    lines = tables.render("launches", {"rows": rows, "hardware": hardware}).splitlines()
    assert lines[2:6] == [
        "| elementwise | 1,200 | 2.0 |  |  |",
        "| copy | 3 | 0.5 |  |  |",
        "| **all** | 1,203 | 2.5 |  |  |",
        "| bar | 900 | 2 |  |  |",
    ]
    assert "| a | 0.0 | 0.0 | 3.2 (bar 3) | 2 | 2 | 12 ms, 2,000k tokens/s |" in lines
    assert "predictions that nobody has measured: 2.00 TB/s, 50 TFLOP/s in float32" in lines[-1]


def test_what_is_counted_needs_no_other_library_and_no_machine(monkeypatch, capsys):
    saved = {}
    monkeypatch.setattr(command, "find_spec", lambda name: False)
    monkeypatch.setattr(command, "machine", None)
    monkeypatch.setattr(command, "BENCHMARKS", {"launches": (lambda rounds: {"rows": 1}, 1)})
    monkeypatch.setattr(command.tables, "save", saved.__setitem__)
    monkeypatch.setattr(command.tables, "load", lambda: {"launches": 0})
    monkeypatch.setattr(command.tables, "render", lambda name, result: "")
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks", "launches"])
    command.main()
    assert saved == {"launches": {"rows": 1}}
