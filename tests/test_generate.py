"""Sampling: what is drawn, what the model reads for it, and how text comes out."""

import contextlib
import itertools
import math
import tracemalloc
from functools import partial

import numpy as np
import pytest

from minigpt import Tensor, generate, no_grad
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine.autograd import bare, plain
from minigpt.generate import choose, stream, streams
from minigpt.nn import FAMILIES, model_class
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.nn.recipe import GPT

MODELS = {name: model_class(name) for name in (*FAMILIES, "gpt2")}

LOGITS = [1.3, -0.4, 2.9, 0.8, 2.2, -3.0]


class Ladder:
    """In place of a Generator: numbers evenly spread over [0, 1), so that shares are exact."""

    def random(self, shape):
        return ((np.arange(math.prod(shape)) + 0.5) / math.prod(shape)).reshape(shape)


def shares(n=10_000, **how):
    """The share of each id among n draws; evenly spread numbers miss none by more than 1/n."""
    rows = np.tile(np.float32(LOGITS), (n, 1))
    return np.bincount(choose(rows, Ladder(), **how), minlength=len(LOGITS)) / n


def slow_distribution(temperature=1.0, top_k=None, top_p=None):
    """The same distribution, written out."""
    ranked = sorted(range(len(LOGITS)), key=lambda i: -LOGITS[i])[:top_k]
    weight = {i: math.exp(LOGITS[i] / temperature) for i in ranked}
    p = {i: w / sum(weight.values()) for i, w in weight.items()}
    kept, together = {}, 0.0
    for i in ranked:
        if top_p is not None and together >= top_p:
            break
        kept[i] = p[i]
        together += p[i]
    return [kept.get(i, 0.0) / together for i in range(len(LOGITS))]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 100])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.93, 1.0])
def test_ids_are_drawn_from_the_distribution_that_the_slow_loop_gives(temperature, top_k, top_p):
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    np.testing.assert_allclose(shares(**how), slow_distribution(**how), atol=1.01e-4)  # 1/n


def test_top_p_keeps_the_id_that_crosses_it():
    logits = np.log([[0.5, 0.3, 0.2]] * 1000)
    for top_p, kept in ((0.49, [0]), (0.51, [0, 1]), (0.79, [0, 1]), (0.81, [0, 1, 2])):
        assert sorted(set(choose(logits, Ladder(), top_p=top_p).tolist())) == kept


def test_temperature_zero_takes_the_first_of_the_likeliest_without_a_draw():
    logits = np.random.default_rng(0).normal(size=(5, 9))
    logits[3, [2, 6]] = 9
    chosen = choose(logits, None, temperature=0)
    assert chosen.dtype == np.int32
    assert chosen.tolist() == [max(range(9), key=lambda i, row=row: row[i]) for row in logits]


def test_the_highest_draw_stays_within_what_is_kept():
    class Highest:
        def random(self, shape):
            return np.full(shape, 1 - 2**-53)  # sums of ten times 0.1 end below it

    logits = np.zeros((1, 20), np.float32)
    for k in range(1, 21):
        assert choose(logits, Highest(), top_k=k).tolist() == [k - 1]


@pytest.fixture(params=MODELS)
def wild(request):
    return partial(make_wild, MODELS[request.param])


def make_wild(form, block_size=8, seed=0):
    """A small random model in float64, its weights so large that every token matters."""
    shape = GPTConfig(vocab_size=11, block_size=block_size, n_layer=2, n_head=2, n_embd=12)
    model = form(shape, np.random.default_rng(seed)).to(dtype=np.float64).eval()
    rng = np.random.default_rng(seed + 1)
    for p in model.named_parameters().values():
        p.data += rng.normal(0, 0.7, p.shape)
    return model


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 11, n).astype(np.int32)


class Shared:
    """A Generator that gives every row of a batch the same number."""

    def __init__(self):
        self.rng = np.random.default_rng(5)

    def random(self, shape):
        return np.full(shape, self.rng.random())


def written(model, prompts, tokens, temperature=2.0):
    """The ids (B, tokens) that generate yields."""
    how = {"rng": Shared(), "temperature": temperature}
    return np.array(list(generate.generate(model, prompts, tokens, **how))).T


@pytest.mark.parametrize("seed", range(3))
def test_ragged_prompts_in_one_batch_go_on_as_each_alone(seed, wild):
    model, prompts = wild(16, seed), [ids_of(n, n) for n in (7, 1, 4, 10)]
    together = written(model, prompts, 6)
    for row, prompt in zip(together, prompts, strict=True):
        assert row.tolist() == written(model, [prompt], 6)[0].tolist()
    assert len({tuple(row) for row in together}) > 1  # all but attention soon forget the prompt


def test_recurrence_and_convolution_have_no_limit_and_attention_that_of_its_config():
    sizes = {name: make_wild(form, 8).block_size for name, form in MODELS.items()}
    assert [name for name, size in sizes.items() if size == 8] == ["gpt", "gpt2"]
    assert all(size > 10**9 for size in sizes.values() if size != 8)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 3, 8, 30])
def test_text_past_the_context_equals_that_of_a_model_without_memory(size, length, wild):
    model, prompt, rng, expected = wild(size), ids_of(length), Shared(), []
    most = model.block_size  # size, or without a limit
    seen = prompt.tolist()[-most:]
    for _ in range(4 * size + 3):
        if len(seen) > most:  # read again from position 0
            seen = seen[-max(1, size // 2) :]
        logits = model(np.array([seen])).data[:, -1]
        expected.append(int(choose(logits, rng, temperature=2.0)[0]))
        seen.append(expected[-1])
    assert written(model, [prompt], 4 * size + 3)[0].tolist() == expected


@pytest.mark.parametrize("form", [GPT, GPT2])
def test_the_padding_of_a_ragged_batch_is_forgotten_when_its_context_is_full(form):
    model, prompts = (
        make_wild(form, 8),
        [ids_of(20), ids_of(3)],
    )  # 8 positions, 5 of the second row's padding
    rows = written(model, prompts, 20)
    assert rows[0].tolist() == written(model, prompts[:1], 20)[0].tolist()
    seen, rng = prompts[1].tolist(), Shared()
    for t, chosen in enumerate(rows[1].tolist()):
        n = 4 + (t - 1) % 5 if t else 3  # full at once: 4 are read again, then up to 8, then 4
        assert [chosen] == choose(model(np.array([seen[-n:]])).data[:, -1], rng, 2.0).tolist()
        seen.append(chosen)


def test_an_empty_prompt_is_refused(wild):
    model = wild()
    for prompts in ([ids_of(0)], [ids_of(3), ids_of(0)]):
        with pytest.raises(ValueError, match="at least one token"):
            written(model, prompts, 1)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, plain])
def test_a_model_of_arrays_computes_what_a_model_of_tensors_does(mode, wild):
    model, ids = wild(), np.array([ids_of(8), ids_of(8, seed=1)])
    with mode():
        expected = model(ids)
        with bare():
            logits, again = model(ids), model(ids, state=model.new_state(2))[0]
    assert isinstance(expected, Tensor) and type(logits) is type(again) is np.ndarray
    for got in (logits, again):
        np.testing.assert_allclose(got, expected.data, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", [GPT, GPT2])
def test_a_token_allocates_next_to_nothing_however_long_the_text(form):
    model = form(GPTConfig(65, 2048, 2, 4, 64), np.random.default_rng(0)).eval()
    tokens = generate.generate(model, [np.zeros(3, np.int32)], 2000, np.random.default_rng(0))
    peaks = {}
    tracemalloc.start()
    for position in range(1990):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        next(tokens)
        peaks[position] = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    state = 2 * 2 * 2048 * 64 * 4  # bytes of keys and values, 2 MB, allocated once
    keys = state // 4  # of one layer; copying them once a token would be half a megabyte
    assert peaks[0] > state and peaks[1900] < 0.8 * keys


@pytest.mark.parametrize("name", ["conv", "rnn", "lstm", "gru"])
def test_a_token_of_recurrence_or_convolution_costs_as_much_late_as_early(name):
    model = MODELS[name](GPTConfig(65, 8, 2, 4, 64), np.random.default_rng(0)).eval()
    tokens = generate.generate(model, [np.zeros(3, np.int32)], 500, np.random.default_rng(0))
    peaks = []
    tracemalloc.start()
    for _ in range(500):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]  # slices, which Python keeps for reuse, add up
        next(tokens)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert max(peaks[-50:]) < max(peaks[50:100]) + 20_000  # bytes; the ids themselves take 2,000


def test_the_mode_does_not_reach_the_caller_between_two_tokens(wild):
    x = Tensor([1.0], requires_grad=True)
    tokens = generate.generate(wild(), [ids_of(3)], 3, np.random.default_rng(0))
    for _ in tokens:
        assert (x * x).requires_grad
    with no_grad():
        for _ in generate.generate(wild(), [ids_of(3)], 3, np.random.default_rng(0)):
            assert not (x * x).requires_grad


def test_the_same_seed_writes_the_same_text_and_another_seed_another(wild):
    tokenizer = CharTokenizer("abcdefghijk")
    texts = []
    for seed in (1, 1, 2):
        rng = np.random.default_rng(seed)
        texts.append("".join(stream(wild(), tokenizer, "bad", 60, rng, temperature=2.0)))
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) == 60


class Pieces:
    """A tokenizer whose tokens are given pieces of text; scripted() makes a model write them."""

    def __init__(self, pieces):
        self.pieces = pieces

    def encode(self, text):
        return [0]

    def decoder(self):
        return lambda ids, final=False: "".join(self.pieces[i] for i in ids)


def streamed(monkeypatch, pieces, stop):
    def scripted(model, prompts, tokens, rng):
        yield from (np.array([i]) for i in range(len(pieces)))

    monkeypatch.setattr(generate, "generate", scripted)
    return list(stream(None, Pieces(pieces), "", len(pieces), None, stop=stop))


def test_text_ends_before_the_first_stop_however_tokens_split_it(monkeypatch):
    stops = ["".join(s) for n in (1, 2, 3) for s in itertools.product("ab", repeat=n)]
    for letters in itertools.product("ab", repeat=6):
        text = "".join(letters)
        for size, stop in itertools.product((1, 2, 4), stops):
            pieces = [text[i : i + size] for i in range(0, 6, size)]
            assert "".join(streamed(monkeypatch, pieces, stop)) == text.partition(stop)[0]


@pytest.mark.parametrize(
    "pieces, stop, expected",
    [
        ("aaab", "aab", ["", "", "a", ""]),  # the third a shows that the first is text
        ("xstoy", "stop", ["x", "", "", "", "stoy", ""]),  # held until it cannot become the stop
        ("xsto", "stop", ["x", "", "", "", "sto"]),  # never completed: written at the end
        (["abc", "d<e", "nd>f"], "<end>", ["abc", "d", ""]),
        ("abc", "", ["a", "b", "c", ""]),
    ],
)
def test_only_what_may_become_the_stop_is_held_back(monkeypatch, pieces, stop, expected):
    assert streamed(monkeypatch, pieces, stop) == expected


def test_texts_drawn_together_are_those_of_each_prompt_alone_and_end_at_their_own_stops(wild):
    tokenizer, prompts = CharTokenizer("abcdefghijk"), ["bad", "a", "cafedeckhigh", "kid"]
    model, how = wild(64), {"temperature": 2.0}
    for stop in ("", "c", "ab"):
        steps = list(streams(model, tokenizer, prompts, 30, Shared(), stop, **how))
        together = ["".join(pieces) for pieces in zip(*steps, strict=True)]
        for prompt, text in zip(prompts, together, strict=True):
            alone = list(stream(model, tokenizer, prompt, 30, Shared(), stop, **how))
            assert text == "".join(alone) and len(alone) <= len(steps)
        assert stop not in text if stop else len(text) == 30


def test_no_token_is_drawn_once_every_text_has_ended(monkeypatch):
    rows = iter([np.array(ids) for ids in ([0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0])])
    monkeypatch.setattr(generate, "generate", lambda *_: rows)
    steps = list(streams(None, Pieces(["a", "b."]), ["", "", ""], 4, None, stop="."))
    assert steps == [["a", "a", "b"], ["a", "b", ""], ["b", "", ""]]
    assert next(rows).tolist() == [0, 0, 0]  # the fourth was not asked for
