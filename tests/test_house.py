"""The house: names that lead somewhere, what a reader can add, and python -m minigpt."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import SMALL, folder, mistake

import minigpt
import sample
import train
from minigpt import __main__ as runs
from minigpt import nn
from minigpt.applications import options, plan
from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import raw
from minigpt.engine.ops import concatenate, split, where
from minigpt.messages import check, look_up, nearest
from minigpt.nn.attention import Attention
from minigpt.nn.gpt import GPTConfig
from minigpt.nn.layers import Linear
from minigpt.nn.module import Mixer
from minigpt.nn.recipe import Recipe
from minigpt.training import checkpoint

place = folder  # the fixture, by a name that hides no import


# names and messages


def test_a_name_leads_to_what_it_stands_for():
    table = {"square": "math:sqrt", "exponential": "math:exp"}
    assert look_up(table, "square", "--root")(16) == 4
    with pytest.raises(ValueError, match="--root: expected a known name, got 'squere'; did you"):
        look_up(table, "squere", "--root")
    with pytest.raises(ValueError, match="choose one of square, exponential"):
        look_up(table, "x", "--root")


def test_the_nearest_word_is_offered_or_else_another_remedy():
    assert nearest("manul", ["manual", "qa"]) == "did you mean manual?"
    assert nearest("zzz", ["manual"]) == "" and nearest("zzz", ["manual"], "look") == "look"


def test_a_check_says_where_what_and_what_to_do():
    check(True, "x", "a", "b", "c")
    with pytest.raises(ValueError, match="^rows: expected 3, got 2; add one$"):
        check(False, "rows", 3, 2, "add one")


# a mechanism that a reader adds


class Average(Mixer):
    """y_t = (y_t-1 + x_t) / 2, then a matrix; the state is the last y (B, 1, C), padding skips"""

    def __init__(self, n_embd, rng):
        self.out = Linear(n_embd, n_embd, rng)

    def forward(self, x, mask=None, state=None):
        T, ys = x.shape[1], []
        y = self.new_state(len(x)) if state is None else state
        for t, x_t in enumerate(split(x, T, 1)):
            after = (y + x_t) * 0.5
            y = after if mask is None else where(mask[:, t - T, None, None] != 0, after, y)
            ys.append(y)
        return self.out(concatenate(ys, 1)), None if state is None else raw(y)

    def new_state(self, B, block_size=None):
        w = self.out.weight.data
        return module_of(w).zeros((B, 1, len(w)), w.dtype)


class AverageModel(Recipe):
    @classmethod
    def mixer(cls, config, i, rng):
        return Average(config.n_embd, rng)


@pytest.fixture
def average(monkeypatch):
    """The mechanism in the table, as a line there would put it."""
    for table in (nn.FAMILIES, nn.MODELS):
        monkeypatch.setitem(table, "average", f"{__name__}:AverageModel")


@pytest.mark.parametrize("mistake, says", [
    (lambda self, x, mask, state: self.out(x), "expected 2"),
    (lambda self, x, mask, state: (concatenate([x, x], 2), None), r"add: shapes .* do not fit"),
    (lambda self, x, mask, state: (int("x"), None), "invalid literal for int"),
])  # fmt: skip
def test_a_mistake_in_a_mixer_of_ones_own_names_the_place(
    place, average, capsys, monkeypatch, mistake, says
):
    def forward(self, x, mask=None, state=None):
        return mistake(self, x, mask, state)

    monkeypatch.setattr(Average, "forward", forward)
    with pytest.raises(SystemExit):
        train.main(["--data", "text.txt", "--model", "average", *SMALL])
    err = capsys.readouterr().err
    assert re.search(says + r".* \(\w+\.py:\d+: .*\)\n$", err) and err.count("\n") == 1


def test_a_new_mixer_writes_classifies_and_is_counted_as_itself(
    place, average, capsys, monkeypatch
):
    train.main(["--data", "text.txt", "--model", "average", *SMALL])
    sample.main(["out/text-average", "--prompt", "the ", "--tokens", "40"])  # beyond its context
    assert len(capsys.readouterr().out.splitlines()[-1]) == 44
    monkeypatch.setattr(train, "CACHE", Path(train.__file__).parent / "data")  # for the digits
    words = "--data digits --model average --steps 2 --eval-every 1 --n-embd 16".split()
    train.main([*words, "--workers", "1"])
    assert "average: 16 wide" in capsys.readouterr().out
    model, _ = sample.load("out/digits-average", np)
    assert {type(block.mixer) for block in model.blocks} == {Average}
    train.main("--model average --n-layer 3 --n-embd 32 --dry-run".split())
    printed = capsys.readouterr().out
    outline = plan.outline(options.fitted("text", {"model": "average", "n_embd": 32}), 10)
    assert plan.parts_of(outline)["mixer"] == 2 * (32 * 32 + 32)
    assert re.search(rf"mixer +{3 * (32 * 32 + 32):,} ", printed) and "attention" not in printed


@pytest.mark.parametrize("name", nn.PAPERS)
def test_a_papers_model_does_not_classify_and_both_are_named(place, capsys, name):
    error = mistake(train.main, ["--data", "digits", "--model", name], capsys, place)
    *others, last = nn.FAMILIES
    expected = (
        f"expected {', '.join(others)} or {last} for examples, got {name}; choose one of these\n"
    )
    assert error == f"train.py: --model: {expected}"


@pytest.mark.parametrize("words", ["--tokenizer bpe", "--vocab-size 300"])
def test_examples_have_no_tokenizer_and_that_is_said(place, capsys, words):
    error = mistake(train.main, ["--data", "digits", *words.split()], capsys, place)
    name = words.split()[0]
    assert error == f"train.py: {name}: expected text or a task, got images; leave it out\n"


def test_a_resumed_run_keeps_workers_that_this_machine_would_not_start(place, monkeypatch):
    saved = {}, {"config": {"workers": 99}}
    config = options.fitted("text", {"workers": 4, "batch_size": 200})
    for workers, before in ((99, saved), (None, None), (1, None)):
        config.workers = workers
        train.check_room("text", config, np, before)
    config.workers = 99
    with pytest.raises(ValueError, match="--workers: expected at most"):
        train.check_room("text", config, np, None)


def test_options_of_another_version_are_told_in_one_line(place, capsys):
    train.main(["--data", "text.txt", *SMALL])
    arrays, about = checkpoint.load("out/text-gpt/best.safetensors")
    about["config"]["colour"] = "red"
    for name in ("best", "last"):
        checkpoint.save(f"out/text-gpt/{name}.safetensors", arrays, about)
    capsys.readouterr()
    for main, words in ((sample.main, []), (train.main, ["--resume", "--out", "out/text-gpt"])):
        error = mistake(main, words, capsys, place)
        assert "expected the options of this version, got" in error and "colour" in error


def test_attention_refuses_a_window_where_it_sees_all():
    mixer = Attention(4, 2, np.random.default_rng(0), causal=False)
    mixer.window = 2
    with pytest.raises(ValueError, match="expected causal=True with a window"):
        mixer(np.zeros((1, 3, 4), np.float32))


class Untied(Recipe):
    """A model with a part that --dry-run has no title for."""

    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.head = Linear(config.n_embd, config.vocab_size, rng)

    mixer = AverageModel.mixer


def test_a_part_without_a_title_is_counted_under_its_own_name():
    config = GPTConfig(vocab_size=50, n_layer=1, n_embd=8, n_head=1)
    model = Untied(config, plan.Unwritten())
    parts = plan.parts_of(model)
    assert parts["head"] == 50 * 8 + 50 and parts["norms"] == 6 * 8
    assert parts["n-grams"] == 4 * 128 * 8 * 1 + 4 * 8  # 128 C rows of C / 8 for each order
    hidden = 8 * 8 + 4 * 8 + 2 * 4 * 8 * 8 + 50 * 8  # as Flat, and so Muon, counts
    moments = plan.memory(model, "muon")["moments of muon"]
    assert moments == 4 * (hidden + 2 * (model.parameter_count() - hidden))


# python -m minigpt


@pytest.mark.parametrize("main", [train.main, sample.main, runs.main])
def test_every_command_says_its_version(main, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"minigpt {minigpt.__version__}\n"


def test_without_runs_the_next_step_is_to_train(place, capsys):
    runs.main([])
    assert capsys.readouterr().out == "no runs to go on with in out/; next: python train.py\n"


def test_a_misspelt_option_of_the_listing_is_told_in_one_line(place, capsys):
    assert "unknown option --versoin; did you mean --version?" in mistake(
        runs.main, ["--versoin"], capsys, place
    )


def test_runs_are_listed_with_what_they_are_the_latest_last(place, capsys):
    train.main(["--data", "text.txt", *SMALL])
    shutil.copytree("out/text-gpt", "out/a copy")
    Path("out/broken").mkdir()
    Path("out/broken/last.safetensors").write_text("nothing")
    for time, name in enumerate(("text-gpt", "a copy", "broken")):
        os.utime(f"out/{name}/last.safetensors", (1e9 + time, 1e9 + time))
    capsys.readouterr()
    runs.main([])
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d  out/", x) for x in lines)
    assert re.search(r"out/text-gpt  gpt on text.txt: step 6 of 6, loss \d\.\d{3}$", lines[0])
    assert "out/broken  cannot be read: out/broken/last.safetensors: damaged" in lines[2]
    assert (
        last
        == "next: python sample.py 'out/a copy', or python train.py --resume --out 'out/a copy'"
    )
