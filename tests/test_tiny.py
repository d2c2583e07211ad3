"""tiny.py is GPT-2: with the same weights, minigpt's own GPT2 says and learns the same."""

import bz2
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigpt import tiny
from minigpt.engine.functional import cross_entropy
from minigpt.engine.ops import mean
from minigpt.nn.gpt import GPT2, GPTConfig

ROOT = Path(__file__).resolve().parents[1]


def test_with_the_same_weights_it_has_the_logits_loss_and_gradients_of_gpt2(monkeypatch):
    for name, value in {"T": 7, "C": 12, "H": 3, "L": 2}.items():
        monkeypatch.setattr(tiny, name, value)
    V, rng = 11, np.random.default_rng(0)
    model, weights = GPT2(GPTConfig(V, 7, 2, 3, 12), rng), tiny.parameters(V)
    theirs = model.named_parameters().values()
    letter, place, *rest = weights
    weights_in_their_order = [letter, *rest, place]
    for w, p in zip(weights_in_their_order, theirs, strict=True):
        w.data = rng.standard_normal(w.shape)
        p.data = w.data.copy()
    ids = rng.integers(V, size=(3, 8))
    logits, expected = tiny.gpt(weights, ids[:, :-1]), model(ids[:, :-1])
    loss = mean(tiny.surprise(weights, ids))
    reference = cross_entropy(expected, ids[:, 1:])
    loss.backward()
    reference.backward()
    np.testing.assert_allclose(logits.data, expected.data, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(loss.data, reference.data, rtol=1e-10)
    for w, p in zip(weights_in_their_order, theirs, strict=True):
        assert np.abs(w.grad).max() > 0
        np.testing.assert_allclose(w.grad, p.grad, rtol=1e-9, atol=1e-10)


def test_a_huge_score_of_a_later_letter_cannot_be_felt(monkeypatch):
    """The largest score is subtracted before the exponential: of those that are seen."""
    monkeypatch.setattr(tiny, "T", 6)
    weights = tiny.parameters(5)
    for w in weights[2:]:
        w.data *= 40
    ids = np.array([[0, 1, 2, 3, 4, 0]])
    assert np.isfinite(tiny.gpt(weights, ids).data).all()


def test_without_a_text_or_with_too_short_a_one_it_says_so_in_one_line(tmp_path):
    (tmp_path / "short.txt").write_text("to be")
    for words, says in (([], "python -m minigpt.tiny FILE"), (["short.txt"], "than 640 letters")):
        command = [sys.executable, "-m", "minigpt.tiny", *(str(tmp_path / w) for w in words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and says in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_shortest_text_is_long_enough(tmp_path):
    source = (ROOT / "minigpt/tiny.py").read_text("utf-8").replace("3000, 8e-3", "2, 8e-3")
    (tmp_path / "tiny.py").write_text(source, encoding="utf-8")
    (tmp_path / "text.txt").write_text("to be, or not to be. " * 31)  # 651 letters
    command = [sys.executable, str(tmp_path / "tiny.py"), str(tmp_path / "text.txt")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert "nats" in subprocess.check_output(command, text=True, env=environment)


@pytest.mark.slow
def test_it_predicts_better_than_bzip2_compresses_and_writes_the_same_every_time(tmp_path):
    from minigpt.datasets.text import load

    text = load(["manual"], tmp_path)[:1_000_000]
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "minigpt.tiny", str(file)]
    first, second = (subprocess.check_output(command, cwd=ROOT, text=True) for _ in range(2))
    assert first == second
    rest = text[len(text) * 9 // 10 :]
    bits = 8 * len(bz2.compress(rest.encode(), 9))
    assert float(re.search(r"([\d.]+) nats", first)[1]) < bits / len(rest) * np.log(2)
