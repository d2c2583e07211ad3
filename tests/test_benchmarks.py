"""The benchmarks: figures and tables that README shows are those of results.json."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigpt.nn.gpt import GPT, GPTConfig
from tests.benchmarks import __main__ as command
from tests.benchmarks import measure, suite, tables
from tests.benchmarks.products import products

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
MACHINE = {
    "cpu": "A CPU", "cores": 2, "python": "3.11.7", "numpy": "2.4.6", "torch": "2.13.0",
    "transformers": "5.24.0",
}  # fmt: skip
ON = "A CPU, 2 cores, Python 3.11.7, NumPy 2.4.6, PyTorch 2.13.0, transformers 5.24.0."


def test_the_readme_shows_what_the_results_say():
    assert tables.fill(README, tables.load()) == README
    assert len(tables.BLOCK.findall(README)) == README.count("benchmark: ")


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
    model = GPT(GPTConfig(**shape), np.random.default_rng(0))
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
