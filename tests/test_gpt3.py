"""GPT-3: the survey's class, the window of every second block, the papers' sizes and costs."""

import os

import numpy as np
import pytest
from test_cli import SMALL, child, folder, mistake

import sample
import train
from minigpt import no_grad
from minigpt.applications import options, plan
from minigpt.datasets import text
from minigpt.engine import fast_numpy
from minigpt.generate import generate
from minigpt.nn import MODELS, model_class
from minigpt.nn.gpt import GPT2, GPT3, BandedGPT, GPTConfig
from minigpt.nn.presets import SIZES
from minigpt.training import OPTIMIZERS, checkpoint, costs, optimizer_class

place = folder  # the fixture, by a name that hides no import
SHAPE = {"vocab_size": 11, "model_dim": 12, "num_layers": 2, "num_heads": 2}


def gpt3(**options):
    """A model in float64 whose weights are all away from their start."""
    rng = np.random.default_rng(0)
    model = GPT3(**SHAPE | {"context": 16, "window": 3, "rng": rng} | options).to(dtype=float)
    for p in model.named_parameters().values():
        p.data += rng.normal(0, 0.3, p.shape)
    return model


def ids(*shape):
    return np.random.default_rng(2).integers(0, 11, shape)


# the class


def test_the_surveys_arguments_are_attributes_and_none_is_derived():
    model = GPT3(11, 12, 2, 3)
    derived = {"num_attention_heads": 3, "num_heads_per_decoder_layer": 3}
    expected = SHAPE | {"num_heads": 3, "num_intermediate_size": 48} | derived
    assert {name: getattr(model, name) for name in expected} == expected
    assert (model.config.block_size, model.window) == (2048, 256)


def test_all_seven_arguments_go_by_place_and_shape_the_model():
    model = GPT3(11, 12, 2, 3, 3, 20, 3)
    assert model.blocks[1].mlp.up.weight.shape == (12, 20)
    assert [block.mixer.n_head for block in model.blocks] == [3, 3]


def test_gpt3_is_the_banded_form_drawn_from_seed_1337():
    twin, x = BandedGPT(GPTConfig(11, 2048, 2, 2, 12), np.random.default_rng(1337)), ids(2, 8)
    np.testing.assert_array_equal(GPT3(**SHAPE)(x).data, twin(x).data)


@pytest.mark.parametrize("heads", [(4, 2, 4), (4, 4, 2), (4, None, 2), (4, 0, None)])
def test_heads_that_disagree_are_refused(heads):
    got = ", ".join(str(4 if n is None else n) for n in heads)
    with pytest.raises(ValueError, match=f"GPT3: expected .* to agree, got {got}; leave"):
        GPT3(11, 12, 2, heads[0], heads[1], None, heads[2])


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected a mask of shape \(2, 4\), got \(2, 3\)"):
        gpt3()(ids(2, 4), np.ones((2, 3), int))


def test_a_window_of_no_place_is_refused():
    with pytest.raises(ValueError, match="window: expected at least 1, got 0"):
        gpt3(window=0)


# the window


def test_even_blocks_are_dense_and_odd_ones_banded():
    model = gpt3(num_layers=5)
    assert [block.mixer.window for block in model.blocks] == [None, 3, None, 3, None]
    assert {block.mixer.window for block in gpt3(window=None).blocks} == {None}


def test_a_banded_block_alone_sees_nothing_beyond_its_window():
    model, x = gpt3(), ids(1, 16)
    model.blocks = model.blocks[1:]
    changed = x.copy()
    changed[0, 5] = (x[0, 5] + 1) % 11
    differs = (np.abs(model(changed).data - model(x).data) > 1e-9).any(axis=2)[0]
    np.testing.assert_array_equal(np.flatnonzero(differs), [5, 6, 7])


def test_a_window_as_wide_as_the_context_hides_nothing():
    x = ids(2, 16)
    np.testing.assert_array_equal(gpt3(window=16)(x).data, gpt3(window=None)(x).data)


@pytest.mark.parametrize("pieces", [[1] * 16, [5, 1, 10], [16]])
def test_logits_with_a_state_equal_those_without(pieces):
    model, x, at, parts = gpt3(), ids(2, 16), 0, []
    state = model.new_state(2)
    with no_grad():
        for n in pieces:
            z, state = model(x[:, at : at + n], state=state)
            parts.append(z.data)
            at += n
    np.testing.assert_allclose(np.concatenate(parts, 1), model(x).data, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padding", [1, 4, 9])
def test_a_text_behind_padding_gives_the_logits_of_the_text_alone(padding):
    model, x, mask = gpt3(), ids(2, 12), np.ones((2, 12), int)
    mask[0, :padding] = 0
    alone = model(x[:1, padding:]).data[0]
    np.testing.assert_allclose(model(x, mask).data[0, padding:], alone, rtol=1e-10, atol=1e-12)
    with no_grad():
        first, state = model(x[:, :10], mask[:, :10], model.new_state(2))
        rest = [model(x[:, t : t + 1], state=state)[0].data for t in (10, 11)]
    together = np.concatenate([first.data, *rest], 1)
    np.testing.assert_allclose(together[0, padding:], alone, rtol=1e-10, atol=1e-12)


def test_ragged_prompts_go_on_as_each_alone_does():
    prompts, rng = [ids(7), ids(2)], np.random.default_rng(0)
    together = np.array(list(generate(gpt3(), prompts, 9, rng, temperature=0)))
    for row, prompt in enumerate(prompts):
        alone = np.array(list(generate(gpt3(), [prompt], 9, rng, temperature=0)))
        np.testing.assert_array_equal(together[:, row], alone[:, 0])


@pytest.mark.parametrize("T, window", [(200, 70), (256, 64), (130, 1)])
def test_attention_does_no_work_outside_the_window(T, window, monkeypatch):
    """Scores computed, forward and backward: of tiles that a window touches, and no other"""
    sizes, scores = [], fast_numpy._scores

    def counting(*args):
        s = scores(*args)
        sizes.append(s.shape[2] * s.shape[3])
        return s

    monkeypatch.setattr(fast_numpy, "_scores", counting)
    q, k, v, dy = np.random.default_rng(0).normal(size=(4, 1, 1, T, 4))
    _, saved = fast_numpy.attention_forward(q, k, v, None, window)
    assert sum(sizes) <= T * (window + fast_numpy._TILE)
    fast_numpy.attention_backward(dy, saved)
    assert sum(sizes) <= 2 * T * (window + fast_numpy._TILE)


@pytest.mark.parametrize("T, window", [(7, 3), (32, 8), (8, 8), (8, 20)])
def test_operations_of_a_window_are_those_of_the_keys_that_are_seen(T, window):
    """12 C per query and key; a causal query counts as half of the key it stands on."""
    mixer = gpt3(window=window).blocks[1].mixer
    query, key = np.arange(T)[:, None], np.arange(T)
    seen = (key <= query) & (key > query - window)
    first = min(window, T)  # queries see 1/2, 3/2, ... keys until the window is full
    pairs = seen.sum() - first / 2
    assert mixer.flops(T) == int(12 * 12 * pairs / T)


# sizes


def outline(name):
    """The paper's model of this name, without its weights."""
    return plan.outline(options.fitted("text", {"model": name}), 50257)


def counted(model):
    """How many numbers it learns, added up from the parts that --dry-run prints."""
    parts = plan.parts_of(model)
    assert sum(parts.values()) == model.parameter_count()
    return sum(parts.values())


def test_gpt2_built_and_outlined_has_the_parameters_of_the_released_one():
    config = GPTConfig(50257, 1024, 12, 12, 768)
    model = GPT2(config, np.random.default_rng(0))
    assert model.parameter_count() == counted(outline("gpt2")) == 124_439_808


@pytest.mark.parametrize(
    "name, expected",
    [("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)  # of Hugging Face's models
def test_larger_gpt2s_have_the_parameters_of_the_released_ones(name, expected):
    assert counted(outline(name)) == expected


@pytest.mark.parametrize(
    "name, millions, off",
    [
        ("gpt3-125m", 125, 0.01),
        ("gpt3-350m", 356, 0.01),
        ("gpt3-760m", 760, 0.01),
        ("gpt3-1.3b", 1320, 0.01),
        ("gpt3-2.7b", 2650, 0.01),
        ("gpt3-6.7b", 6660, 0.01),
        ("gpt3-13b", 12850, 0.01),
        ("gpt3-175b", 174600, 0.001),
    ],
)  # Brown et al. 2020, table D.1
def test_gpt3s_have_the_parameters_of_the_paper(name, millions, off):
    assert counted(outline(name)) == pytest.approx(millions * 1e6, rel=off)


def test_a_gpt3_has_a_context_of_2048_and_a_window_a_gpt2_1024_and_none():
    for name, shape in SIZES.items():
        if name != "gpt2-mini":
            expected = (2048, 256) if name.startswith("gpt3") else (1024, None)
            assert (shape[3], getattr(outline(name), "window", None)) == expected


@pytest.mark.parametrize("name", ["gpt", "lstm", "gru", "rnn", "conv", "gpt2", "gpt3-125m"])
@pytest.mark.parametrize("n_layer", [1, 2, 5])
def test_an_outline_counts_as_the_model_does_and_takes_no_memory(name, n_layer):
    config = GPTConfig(50, 32, n_layer, 2, 12, n_inner=40)
    model = model_class(name)(config, np.random.default_rng(0))
    drawn = model_class(name)(config, plan.Unwritten())
    assert counted(drawn) == model.parameter_count()
    assert drawn.flops_per_token() == model.flops_per_token()
    shapes = [{n: p.shape for n, p in m.named_parameters().items()} for m in (model, drawn)]
    assert shapes[0] == shapes[1]
    matrices = [
        p.size
        for n, p in model.named_parameters().items()
        if (n.startswith("blocks") or n == "ngrams.out.weight") and p.ndim > 1
    ]
    muon = 4 * (sum(matrices) + 2 * (drawn.parameter_count() - sum(matrices)))
    assert plan.memory(drawn, "muon")["moments of muon"] == muon
    assert all(p.data.base.size == 1 for p in drawn.named_parameters().values() if p.ndim > 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_memory_is_what_the_optimizer_really_holds(optimizer):
    from minigpt.nn.module import Flat

    config = GPTConfig(48, 32, 2, 2, 16)  # all sizes are multiples of 16: Flat adds no room
    model = GPT2(config, np.random.default_rng(0))
    flat = Flat(model)
    moments = optimizer_class(optimizer)(flat).moments.values()
    expected = [flat.data.nbytes, flat.grad.nbytes, sum(a.nbytes for a in moments)]
    assert [*plan.memory(model, optimizer).values()] == expected


# costs


def test_the_training_of_gpt3_costs_what_patterson_et_al_found():
    days, energy, carbon = 14.8, 1287, 552  # table 4
    seconds, *rest = costs.training(3.14e23, costs.V100)
    assert [seconds / 86400, *rest] == pytest.approx([days, energy, carbon], rel=0.01)


def dry(words, capsys):
    assert train.main([*words.split(), "--dry-run"]) is None
    printed = capsys.readouterr()
    assert printed.err == "" and max(map(len, printed.out.splitlines())) <= 100
    return printed.out


def test_a_dry_run_of_gpt3_says_size_memory_and_cost_and_touches_nothing(place, capsys):
    before = sorted(place.iterdir())
    printed = dry("--model gpt3-175b --optimizer adamw", capsys)
    assert "174,604,259,328" in printed and "vocabulary 50,257" in printed
    assert f"{16 * 174.604259328e9 / 1e12:.3g} TB to train" in printed
    assert "3.17e+23 FLOPs" in printed and "+0.9% beside the paper's 3.14e+23" in printed
    assert "14.9 days" in printed and "t CO2e" in printed and "years" in printed
    assert sorted(place.iterdir()) == before


def test_a_dry_run_takes_less_than_a_second_of_the_processor():
    before = os.times()
    done = child("train.py", "--model", "gpt3-175b", "--dry-run")
    after = os.times()
    spent = after.children_user + after.children_system
    assert done.returncode == 0 and spent - before.children_user - before.children_system < 1


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_dry_run_that_its_options_change(name, capsys):
    words = f"--model {name} --n-layer 3 --n-head 2 --n-embd 32 --block-size 64"
    printed = dry(words, capsys)
    model = model_class(name)(GPTConfig(50257, 64, 3, 2, 32), np.random.default_rng(0))
    assert f"{model.parameter_count():,}" in printed
    assert "3 layers" in printed and "32 wide, context 64" in printed
    assert ("keys and values" in printed) == name.startswith("gpt")


# the command line


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--model gpt3-175 --dry-run", "did you mean gpt3-175b?"),
        ("--model gtp2", "did you mean gpt2?"),
        ("--model gpt2 --n-embd 100 --dry-run", "n_embd: expected a multiple of n_head = 12"),
        ("--dry-run --n-embd 0", "argument --n-embd: expected a whole number >= 1"),
        ("--dry-run --data digits", "--dry-run: expected a model of text, got digits"),
        ("--dry-run --resume", "not allowed with argument"),
        ("--data digits --model gpt3-125m", "--model: expected gpt, lstm, gru, rnn or conv for"),
    ],
)
def test_words_that_do_not_fit_are_told_in_one_line(place, capsys, words, expected):
    assert expected in mistake(train.main, words.split(), capsys, place)


def test_a_model_that_memory_cannot_hold_is_refused_before_anything_is_read(
    place, capsys, monkeypatch
):
    monkeypatch.setattr(costs, "room", lambda: 1.6e10)
    monkeypatch.setattr(text, "load", None)  # nobody calls it
    words = "--data text.txt --model gpt3-175b --optimizer adamw".split()
    error = mistake(train.main, words, capsys, place)
    assert "within 16 GB of memory, got 2.78 TB; " in error and "--dry-run" in error


def test_the_papers_size_holds_where_no_option_says_otherwise():
    shape = {"n_layer": 24, "n_head": 16, "n_embd": 2048, "block_size": 2048}
    for kind in ("text", "task"):
        config = vars(options.fitted(kind, {"model": "gpt3-1.3b"}))
        assert {name: config[name] for name in shape} == shape
        config = vars(options.fitted(kind, {"model": "gpt3-1.3b", "n_layer": 2}))
        assert {name: config[name] for name in shape} == shape | {"n_layer": 2}


def test_a_shrunken_gpt3_trains_samples_and_resumes_with_its_window(place, capsys):
    train.main(["--data", "text.txt", *SMALL, "--model", "gpt3-125m", "--n-layer", "2"])
    about = checkpoint.load("out/text-gpt3-125m/last.safetensors")[1]
    assert about["config"]["model"] == "gpt3-125m"
    blocks = sample.load("out/text-gpt3-125m", np)[0].blocks
    assert [block.mixer.window for block in blocks] == [None, 256]
    sample.main(["out/text-gpt3-125m", "--prompt", "the", "--tokens", "30"])
    train.main("--resume --out out/text-gpt3-125m --steps 8".split())
    assert "continues after step 6 of 8" in capsys.readouterr().out
