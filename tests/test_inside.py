"""What a trained model sees: surprise, the shares of attention, and what answers hang on."""

import io
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from test_cli import TEXT

import sample
import train
from minigpt import inside
from minigpt.datasets.bpe import BPETokenizer
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine.autograd import raw
from minigpt.engine.functional import attention, log_softmax
from minigpt.nn import attention as mixer
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.nn.recipe import GPT

TINY = "--steps 4 --eval-every 2 --n-layer 2 --n-embd 16 --n-head 2 --block-size 16".split()
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run that writes and two that classify."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "text.txt").write_text(TEXT)
        train.main(["--data", "text.txt", "--out", "text", *TINY])
        small = "--steps 4 --eval-every 2".split()
        train.main(["--data", "digits", "--model", "conv", "--out", "digits", *small])
        train.main(["--data", "credit", "--out", "credit", *small])
    return folder


def page_of(runs, name, *words):
    sample.main([str(runs / name), "--look", *words])
    text = (runs / name / "look.html").read_text("utf-8")
    return text, json.loads(re.search(r"const D = (.*)", text)[1])


@pytest.mark.parametrize("form", [GPT2, GPT])
def test_shares_add_up_to_one_and_give_what_attention_gives(form, monkeypatch):
    rng = np.random.default_rng(0)
    model, ids = form(GPTConfig(7, 12, 2, 2, 8), rng).eval(), rng.integers(7, size=12)
    seen = []

    def noting(q, k, v, *options):
        y = attention(q, k, v, *options)
        seen.append((raw(v)[0], raw(y)[0]))
        return y

    monkeypatch.setattr(mixer, "attention", noting)
    p, shares = inside.read(model, ids)
    assert mixer.attention is noting  # as it was before
    assert p.shape == (11, 7) and len(shares) == 2
    for share, (v, y) in zip(shares, seen[1::2], strict=True):  # every first one asks for shares
        assert share.shape == (2, 12, 12) and not np.triu(share, 1).any()
        np.testing.assert_allclose(share.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(share @ v, y, atol=1e-5)


def test_surprise_is_the_loss_of_each_token():
    rng = np.random.default_rng(0)
    tokenizer = CharTokenizer.train("abcdefg")
    model, ids = GPT2(GPTConfig(7, 12, 1, 2, 8), rng).eval(), rng.integers(7, size=12)
    found = inside.tokens(tokenizer, ids, 1, inside.read(model, ids)[0])
    expected = -log_softmax(model(ids[None, :-1])).data[0, range(11), ids[1:]]
    np.testing.assert_allclose([t["surprise"] for t in found[1:]], expected, rtol=1e-5)
    assert inside.mean_surprise(found) == pytest.approx(expected.mean(), rel=1e-5)
    assert found[0]["surprise"] is None and found[0]["likely"] == []
    for token in found[1:]:
        chances = [p for _, p in token["likely"]]
        assert len(chances) == 3 and chances == sorted(chances, reverse=True)


def test_a_terminal_gets_colours_and_everything_else_a_list(monkeypatch):
    found = [
        {"text": "a", "surprise": None, "likely": []},
        {"text": "b", "surprise": 0.2, "likely": [["b", 0.8]]},
        {"text": "c", "surprise": 9.0, "likely": [["b", 0.8]]},
    ]
    assert inside.coloured(found) == "ab\x1b[30;48;5;196mc\x1b[0m"
    assert inside.listed(found).splitlines()[2].split() == ["'c'", "9.00", "'b'", "80%"]
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert inside.wants_colour(terminal) and not inside.wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not inside.wants_colour(terminal)


def test_explain_prints_every_token_and_the_mean(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    sample.main(["text", "--explain", "the"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["'t'", "'h'", "'e'"]
    mean = np.mean([float(line.split()[1]) for line in lines[1:3]])
    assert float(re.search(r"mean surprise ([\d.]+) nats", lines[3])[1]) == pytest.approx(
        mean, abs=0.01
    )


def test_the_page_of_a_text_has_all_heads_and_needs_nothing_from_elsewhere(
    runs, monkeypatch, capsys
):
    monkeypatch.chdir(runs)
    page, data = page_of(runs, "text", "the fox")
    assert "look.html" in capsys.readouterr().out
    assert [len(layer) for layer in data["heads"]] == [2, 2] and len(data["tokens"]) == 7
    assert [len(row) for row in data["heads"][0][0]] == [1, 2, 3, 4, 5, 6, 7]
    assert not re.findall(r"https?:|<link|src=", page) and len(page) < 1e6


def test_a_model_that_answers_is_surprised_by_its_answer_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{a} plus {b}\t{a + b}" for a in range(6) for b in range(6)]
    (tmp_path / "sums.tsv").write_text("\n".join(lines))
    train.main(["--data", "sums.tsv", "--out", "sums", "--steps", "4", "--eval-every", "2"])
    _, data = page_of(tmp_path, "sums", "1 plus 2")
    told = [token["surprise"] is not None for token in data["tokens"]]
    assert told.index(True) == len(" 1 plus 2\t") and all(told[told.index(True) :])


def test_a_character_of_several_tokens_counts_once():
    tokenizer = BPETokenizer.train("aab", 257)
    ids = tokenizer.encode("a中b")  # one byte, three bytes, one byte
    p = np.full((len(ids) - 1, tokenizer.vocab_size), 1 / tokenizer.vocab_size)
    found = inside.tokens(tokenizer, ids, 1, p)
    assert [token["text"] for token in found] == ["a", "", "", "中", "b"]
    assert inside.mean_surprise(found) == pytest.approx(4 * np.log(tokenizer.vocab_size) / 2)


def test_a_text_longer_than_the_context_is_cut_and_that_is_said(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    _, data = page_of(runs, "text", "the fox and the dog in the fog")
    assert len(data["tokens"]) == 16
    assert "the text has 30 tokens" in capsys.readouterr().err


def test_a_text_of_stray_bytes_is_shown_as_far_as_it_is_known(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    _, data = page_of(runs, "text", "the\udcff fox")
    assert "".join(token["text"] for token in data["tokens"]) == "the fox"
    assert "left out, unknown to" in capsys.readouterr().err


def test_what_a_classifiers_answer_hangs_on_is_gradient_times_input(runs, monkeypatch):
    monkeypatch.chdir(runs)
    _, data = page_of(runs, "digits")
    assert np.sum(data["confusion"]) == 360 and len(data["examples"]) == inside.EXAMPLES
    model, application = sample.load(runs / "digits", np)
    application.read_again()
    x, y = application.examples.test
    shown = data["examples"][0]
    place = next(i for i in range(len(y)) if np.allclose(x[i].ravel(), shown["x"], atol=1e-2))
    pixel = int(np.abs(shown["blame"]).argmax())
    near = np.stack([x[place].astype(np.float64)] * 2)
    near.reshape(2, -1)[:, pixel] += [1e-2, -1e-2]
    z = model(near.astype(np.float32)).data[:, shown["answer"]]
    slope = (z[0] - z[1]) / 2e-2
    # The page has three digits, and float32 leaves the difference of two logits as many.
    assert shown["blame"][pixel] == pytest.approx(slope * x[place].ravel()[pixel], rel=0.05)


def test_a_table_has_one_number_per_column(runs, monkeypatch):
    monkeypatch.chdir(runs)
    _, data = page_of(runs, "credit")
    shown = data["examples"][0]
    assert len(shown["names"]) == len(shown["blame"]) == 18 and "age" in " ".join(shown["names"])


@pytest.mark.parametrize(
    "words, says",
    [
        (["digits", "--explain", "abc"], "--explain: expected a model that writes"),
        (["digits", "--look", "abc"], "--look: expected a model that writes"),
        (["text", "--look"], "--look: expected 2 tokens or more"),
        (["text", "--look", "the", "--prompt", "x"], "expected one of these, got --prompt and"),
        (["text", "--explain", "the", "--interactive"], "got --interactive and --explain"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(runs, words, says, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit) as stop:
        sample.main(words)
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and last.startswith("sample.py: ") and says in last


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words, says",
    [
        ("text", ["the"], r"“.” surprised by \d\.\d+ nats"),
        ("digits", [], r"\d, \d+ %, but it is \d"),
    ],
)
def test_a_browser_shows_the_page(runs, name, words, says, monkeypatch):
    monkeypatch.chdir(runs)
    page_of(runs, name, *words)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    page = (runs / name / "look.html").as_uri()
    dom = subprocess.check_output([*command, page], stderr=subprocess.DEVNULL, text=True)
    seen = re.sub(r"<script>.*?</script>", "", dom, flags=re.S)
    assert re.search(says, seen)
