"""train.py --check-gradients: a right model passes, and of a wrong one the parameter is named."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_cli import SMALL, folder, tree
from test_house import AverageModel

import train
from minigpt.engine import fast_numpy
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.nn.recipe import GPT
from minigpt.training import gradients

place = folder  # the fixture


def tiny(form=GPT2):
    rng = np.random.default_rng(0)
    model = form(GPTConfig(7, 8, 2, 2, 8), rng).to(np, np.float64).eval()
    ids = rng.integers(7, size=(2, 9))
    return model, ids[:, :-1], ids[:, 1:], rng


def test_a_right_model_agrees_and_keeps_its_weights():
    model, x, y, rng = tiny()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    found = gradients.check(model, x, y, rng)
    assert [off for off, *_ in found] == sorted((off for off, *_ in found), reverse=True)
    # The differences are right to about 1e-9, and some parameters have slopes of 1e-4 at most.
    assert found[0][0] < 1e-5 and len(found) == len(before)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    lines, right = gradients.report(found)
    assert right and lines[0].startswith(f"all {len(found)} parameters agree")


def test_a_wrong_rule_is_found_in_the_parameters_that_it_reaches(monkeypatch):
    backward = fast_numpy.gelu_backward
    monkeypatch.setattr(
        fast_numpy, "gelu_backward", lambda dy, saved: (backward(dy, saved)[0] * 2,)
    )
    found = {name: off for off, name, _ in gradients.check(*tiny())}
    assert found["blocks.1.mlp.up.weight"] > 0.1 and found["embedding.weight"] > 1e-3
    assert found["blocks.1.mlp.down.weight"] < 1e-6  # it stands behind the rule


def test_a_parameter_without_a_gradient_that_has_a_slope_is_wrong():
    class Cut(GPT2):
        def embed(self, ids, mask, state):
            return super().embed(ids, mask, state).detach()

    found = {name: off for off, name, _ in gradients.check(*tiny(Cut))}
    assert found["position.weight"] > 1


@pytest.mark.parametrize("form", [GPT2, GPT, AverageModel])
def test_a_right_model_has_no_bad_habits(form):
    model, x, y, _ = tiny(form)
    assert gradients.habits(model, x, y) == []


def test_a_model_that_sees_the_future_is_named(monkeypatch):
    model, x, y, _ = tiny()
    for block in model.blocks:
        block.mixer.causal = False
    assert gradients.habits(model, x, y) == ["position 0 sees the token at position 7, behind it"]


def test_a_state_that_forgets_is_named(monkeypatch):
    model, x, y, _ = tiny(AverageModel)
    mixer = type(model.blocks[0].mixer)
    forward = mixer.forward
    monkeypatch.setattr(
        mixer, "forward", lambda self, x, mask=None, state=None: (forward(self, x, mask)[0], state)
    )
    [line] = gradients.habits(model, x, y)
    assert line.startswith("other logits from position 4 on if 4 tokens are read first")


def test_a_pair_that_computes_another_formula_is_told(monkeypatch):
    model, x, y, _ = tiny()
    forward = fast_numpy.gelu_forward
    monkeypatch.setattr(fast_numpy, "gelu_forward", lambda x: forward(2 * x))
    [line] = gradients.habits(model, x, y)
    assert "with fast pairs" in line and "by the definitions" in line


def test_the_command_says_that_all_is_right_and_touches_nothing(place, capsys):
    words = ["--data", "text.txt", *SMALL, "--check-gradients"]
    before = tree(place)
    train.main(words)
    assert re.search(r"all \d+ parameters agree; the worst, \S+, is", capsys.readouterr().out)
    train.main([word for word in words if word != "--check-gradients"])
    trained = tree(place)
    train.main(words)  # a run that is there is no obstacle
    assert tree(place) == trained != before


def test_the_command_names_the_worst_parameter_and_ends_with_exit_code_1(
    place, capsys, monkeypatch
):
    backward = fast_numpy.relu2_backward
    wrong = lambda dy, saved: (backward(dy, saved)[0] * 1.1,)  # noqa: E731
    monkeypatch.setattr(fast_numpy, "relu2_backward", wrong)
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", "text.txt", *SMALL, "--check-gradients"])
    said = capsys.readouterr().out
    assert stop.value.code == 1
    assert re.search(r"\d+ of \d+ parameters are wrong; the worst:", said)
    assert re.search(r"mlp\.up\.\w+ at \[[\d, ]+\]: off by \d+\.\d% of its largest slope", said)


def test_a_gradient_that_is_no_number_is_the_worst_of_all(monkeypatch):
    backward = fast_numpy.gelu_backward
    monkeypatch.setattr(
        fast_numpy, "gelu_backward", lambda dy, saved: (backward(dy, saved)[0] * np.nan,)
    )
    found = gradients.check(*tiny())
    assert found[0][0] == np.inf
    lines, right = gradients.report(found)
    assert not right and "off by inf%" in lines[1]


@pytest.mark.parametrize(
    "words", ["--data digits --model conv", "--data credit --model conv", "--data credit",
              "--data text.txt --model rnn --n-embd 16", "--data sounds --n-embd 16 --n-layer 1"],
)  # fmt: skip
@pytest.mark.slow
def test_models_of_all_kinds_are_right(words, place, capsys, monkeypatch):
    monkeypatch.setattr(train, "CACHE", Path(train.__file__).parent / "data")
    train.main([*words.split(), "--check-gradients"])
    assert "parameters agree" in capsys.readouterr().out


def test_it_cannot_be_combined_with_resuming(place, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--check-gradients", "--resume"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err
