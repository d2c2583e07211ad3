"""look.html: every gradient is the difference of losses, and a wrong one is seen where it is."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from minigpt import look, tiny
from minigpt.drawing import page
from minigpt.engine import ops
from minigpt.engine.autograd import raw, record
from minigpt.engine.functional import layer_norm

TEXT = "to be, or not to be"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def data():
    return look.look(TEXT)


def values(data, line_begins):
    """The values of the line of tiny.py that begins with these words."""
    found = [n for n, line in enumerate(data["source"], 1) if line.strip().startswith(line_begins)]
    assert len(found) == 1
    return [v for v in data["values"] if v["line"] == found[0]]


def test_every_gradient_is_the_difference_of_losses_beside_it(data):
    assert len(data["values"]) > 100
    assert max(value["off"] for value in data["values"]) < 1e-9


def wrong_tanh(x):
    y = np.tanh(raw(x))
    return ops.record(y, (x, lambda dy: dy * (1 - y)))  # it should be 1 - y y


def test_a_wrong_derivative_is_seen_where_it_is(monkeypatch):
    """In the last layer: its result is right, as nothing wrong comes after it; its input is not."""
    monkeypatch.setattr(tiny, "tanh", wrong_tanh)
    gelu = values(look.look(TEXT), "h = h * 0.5")
    results = [v["off"] for v in gelu if "wrong_tanh" in v["ops"]]
    inputs = [v["off"] for v in gelu if v["ops"] == ["multiply"] and code(v).startswith("h * (h")]
    assert len(results) == len(inputs) == look.L
    assert results[-1] < 1e-9 and inputs[-1] > 1e-5


def code(value):
    return look.SOURCE.read_text("utf-8").splitlines()[value["line"] - 1][
        value["start"] : value["end"]
    ]


def test_arrays_bear_the_names_that_their_lines_give_them(data):
    assert [v["name"] for v in values(data, "q, k, v =") if v["ops"] == ["split"]] == 2 * [*"qkv"]
    weights = {v["name"] for v in data["values"] if v["ops"] == ["weight"]}
    assert {"letter", "place", "qkv", "down_b", "gain"} <= weights


def test_a_line_in_the_loop_over_layers_has_a_round_for_each(data):
    for line in ("q, k, v =", "h = h * 0.5"):
        assert len({v["round"] for v in values(data, line)}) == look.L
    norms = {v["round"] for v in values(data, "x = x - mean(")}
    assert len(norms) == 2 * look.L + 1  # it is called so often


def test_an_array_gives_blame_to_what_it_was_made_of(data):
    places = {v["name"]: i for i, v in enumerate(data["values"]) if v["name"] in ("k", "v")}
    share = max(i for i, v in enumerate(data["values"]) if v["name"] == "share")
    product = next(v for v in data["values"] if share in v["to"])
    assert places["v"] in product["to"]


def test_the_shares_of_attention_add_up_to_one_and_nobody_sees_what_comes_later(data):
    share = [v for v in data["values"] if v["name"] == "share"][-1]
    p = np.array(share["v"]).reshape(share["shape"])
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-2)
    assert (np.triu(p, 1) == 0).all()


def test_no_two_meanings_of_an_axis_have_the_same_size():
    for length in range(3, 30):
        for V in range(2, length + 1):
            n = look.sizes(length, V)
            widths = {n["C"] // n["H"], n["C"], 3 * n["C"], 4 * n["C"]}
            assert 1 <= n["T"] < length and len({n["T"], V} - widths) == 2


def test_looking_leaves_the_engine_and_tiny_as_they_were(data):
    assert ops.record is record
    assert (tiny.T, tiny.C, tiny.H, tiny.L) == (64, 64, 2, 2)


def test_a_long_text_of_many_letters_gives_a_small_page():
    text = "".join(chr(0x4E00 + i) for i in range(300))
    assert len(page(look.PAGE, look.look(text)).encode()) < 1e6


def test_the_page_needs_nothing_from_elsewhere_and_no_text_can_break_out_of_it():
    text = page(look.PAGE, look.look("</script><b>&é"))
    assert len(text.encode()) < 1e6
    assert not re.findall(r"https?:|<link|src=", text)
    inside = re.search(r"const D = (.*)", text)[1]
    assert "<" not in inside and "".join(json.loads(inside)["text"]).startswith("</script")


@pytest.mark.parametrize(
    "words, says",
    [
        (["aa"], "expected 3 letters"),
        (["aaa"], "different"),
        (["a" * 60 + "b"], "different"),  # of which the page reads 60
        (["abc", "--out", "no/such/folder/look.html"], "cannot write no/such/folder/look.html"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        look.main(words)
    assert stop.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("text", ["aab", "ab\udcff\ud800 a b", "to be, or not to be" * 9])
def test_any_text_can_be_looked_at_and_what_is_shown_of_it_is_said(text, tmp_path, capsys):
    look.main([text, "--out", str(tmp_path / "look.html")])
    shown, read = min(11, len(text)), min(60, len(text))
    said = capsys.readouterr().out
    assert re.search(rf"the first \d+ letters, by a model that learned from {read};", said)
    assert int(re.search(r"first (\d+)", said)[1]) <= shown


def test_formulas_of_the_engine_in_tiny_are_looked_into_as_well(monkeypatch):
    """A learner may write softmax instead of its three lines: its definition runs, not its pair."""
    monkeypatch.setattr(tiny, "norm", layer_norm)
    values = look.look(TEXT)["values"]
    assert max(value["off"] for value in values) < 1e-9
    assert "sqrt" in {op for value in values for op in value["ops"]}


def test_a_gradient_that_is_no_number_is_not_taken_for_right(monkeypatch):
    def broken(x):
        return ops.record(np.tanh(raw(x)), (x, lambda dy: dy * np.nan))

    monkeypatch.setattr(look, "STEPS", 0)
    monkeypatch.setattr(tiny, "tanh", broken)
    assert max(value["off"] for value in look.look(TEXT)["values"]) == np.inf


def shown(data, file):
    """What a browser shows of the page, without the scripts in it."""
    file.write_text(page(look.PAGE, data), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    dom = subprocess.check_output([*command, file.as_uri()], stderr=subprocess.DEVNULL, text=True)
    dom = re.sub(r"<script>.*?</script>", "", dom, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", " ", dom))


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.slow
def test_a_browser_names_the_lines_whose_gradients_are_wrong(data, monkeypatch, tmp_path):
    assert "are wrong" not in shown(data, tmp_path / "right.html")
    monkeypatch.setattr(tiny, "tanh", wrong_tanh)
    seen = shown(look.look(TEXT), tmp_path / "wrong.html")
    number = next(n for n, s in enumerate(data["source"], 1) if s.strip().startswith("h = h * 0.5"))
    assert re.search(rf"gradients of lines .*\b{number}\b.* are wrong", seen)


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.slow
def test_a_browser_shows_the_shares_of_attention_first(data, tmp_path):
    seen = shown(data, tmp_path / "look.html")
    assert re.search(r"Line \d+: share", seen)
    assert "The gradient came from" in seen and "10, 10" in seen
