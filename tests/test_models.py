"""Language models: values, gradients, state and padding, against PyTorch and by other paths."""

import contextlib
import math

import numpy as np
import pytest
from strict import registered, strict, syncs

from minigpt import Tensor, no_grad
from minigpt.engine.arrays import module_of, to_numpy
from minigpt.engine.autograd import plain
from minigpt.engine.functional import cross_entropy
from minigpt.generate import generate
from minigpt.hub import hub_name
from minigpt.nn import FAMILIES, model_class
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.nn.module import Flat
from minigpt.nn.ngrams import BEFORE, ORDERS, NGrams, hashed
from minigpt.nn.recurrence import CELLS, Recurrence
from minigpt.training.muon import Muon
from minigpt.training.optim import AdamW, clip

TEXT = "the quick brown fox jumps over the lazy dog; a large language model learns to spell it. "


MODELS = {name: model_class(name) for name in (*FAMILIES, "gpt2")}
every = pytest.mark.parametrize("form", MODELS.values(), ids=MODELS)
endless = {name: form for name, form in MODELS.items() if name not in ("gpt", "gpt2")}
beyond = pytest.mark.parametrize("form", endless.values(), ids=endless)


def gpt(seed=0, dtype=np.float64, form=GPT2, **shape):
    shape = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12} | shape
    return form(GPTConfig(**shape), np.random.default_rng(seed)).to(dtype=dtype)


def scrambled(model, seed=1, std=0.3):
    """Every parameter away from its start, so that none hides behind a zero or a one."""
    rng, named = np.random.default_rng(seed), model.named_parameters()
    tables = [name for name in named if name.startswith(("embedding", "position"))]
    for name in [*tables, *(name for name in named if name not in tables)]:  # as RECORDED was drawn
        named[name].data += rng.normal(0, std, named[name].shape)
    return model


def ids_of(model, *shape, seed=2):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, shape)


def gradients(model, loss):
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters().items()}


def hugging_face_twin(model):
    """transformers' GPT-2 with the weights of the model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    twin = transformers.GPT2LMHeadModel(config).double()
    weights = dict(twin.named_parameters())
    assert weights.keys() == {hub_name(name) for name in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters().items():
            weights[hub_name(name)].copy_(torch.from_numpy(p.data))
    return torch, twin, weights


def test_logits_and_all_gradients_equal_those_of_a_pytorch_gpt2():
    model = scrambled(gpt(vocab_size=65, block_size=16, n_layer=3, n_head=4, n_embd=32))
    torch, twin, weights = hugging_face_twin(model)
    x, y = ids_of(model, 3, 13), ids_of(model, 3, 13, seed=3)
    y[1, 5:] = -100
    z, expected = model(x), twin(torch.from_numpy(x)).logits
    np.testing.assert_allclose(z.data, expected.detach().numpy(), rtol=1e-9, atol=1e-9)
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.from_numpy(y).flatten())
    loss.backward()
    for name, grad in gradients(model, cross_entropy(z, y)).items():
        other = weights[hub_name(name)].grad.numpy()
        np.testing.assert_allclose(grad, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


def test_padded_logits_equal_those_of_a_pytorch_gpt2_given_the_same_positions():
    model = scrambled(gpt())
    torch, twin, _ = hugging_face_twin(model)
    x, mask = ids_of(model, 3, 8), np.ones((3, 8), int)
    mask[1, :3], mask[2, 5:] = 0, 0
    positions = torch.from_numpy(np.clip(mask.cumsum(1) - 1, 0, None))
    expected = twin(
        torch.from_numpy(x), attention_mask=torch.from_numpy(mask), position_ids=positions
    ).logits.detach()
    real = mask == 1
    np.testing.assert_allclose(model(x, mask).data[real], expected.numpy()[real], rtol=1e-9)


@every
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_exactly_the_rows_alone(side, form):
    model, lengths, T = scrambled(gpt(form=form)), (8, 5, 1), 8
    x, y, mask = np.zeros((3, T), int), np.full((3, T), -100), np.zeros((3, T), int)
    total = sum(lengths)
    alone, summed = [], {}
    for row, n in enumerate(lengths):
        tokens, part = (
            ids_of(model, n + 1, seed=row),
            slice(T - n, T) if side == "left" else slice(n),
        )
        x[row, part], y[row, part], mask[row, part] = tokens[:-1], tokens[1:], 1
        z = model(tokens[None, :-1])
        alone.append((part, z.data[0]))
        for name, grad in gradients(model, cross_entropy(z, tokens[None, 1:], count=total)).items():
            summed[name] = grad.copy()  # backward adds up row after row
    for p in model.named_parameters().values():
        p.grad = None
    z = model(x, mask)
    for row, (part, expected) in enumerate(alone):
        np.testing.assert_allclose(z.data[row, part], expected, rtol=1e-12, atol=1e-12)
    for name, grad in gradients(model, cross_entropy(z, y)).items():
        np.testing.assert_allclose(grad, summed[name], rtol=1e-12, atol=1e-12)


@every
def test_a_row_of_padding_alone_is_finite_and_changes_nothing(form):
    model = scrambled(gpt(form=form))
    x, mask = ids_of(model, 2, 8), np.ones((2, 8), int)
    mask[1] = 0
    y = np.where(mask, ids_of(model, 2, 8, seed=3), -100)
    alone = model(x[:1])
    expected = gradients(model, cross_entropy(alone, y[:1]))
    expected = {name: grad.copy() for name, grad in expected.items()}
    for p in model.named_parameters().values():
        p.grad = None
    z = model(x, mask)
    np.testing.assert_allclose(z.data[0], alone.data[0], rtol=1e-12, atol=1e-12)
    assert np.isfinite(z.data).all()
    for name, grad in gradients(model, cross_entropy(z, y)).items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-12, atol=1e-12)


def read_in(pieces, model, x):
    """Logits of x (B, T), read with a state, so many tokens at a time."""
    at, state, parts = 0, model.new_state(len(x)), []
    with no_grad():
        for n in pieces:
            z, state = model(x[:, at : at + n], state=state)
            parts.append(z.data)
            at += n
    return np.concatenate(parts, 1)


@every
@pytest.mark.parametrize("pieces", [[1] * 8, [3, 1, 4], [8]])
def test_logits_with_state_equal_those_without_at_every_position(pieces, form):
    model = scrambled(gpt(dtype=np.float32, form=form))
    x = ids_of(model, 2, 8)
    got, expected = read_in(pieces, model, x), model(x).data
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize("padding", [slice(0, 3), slice(2, 5), slice(1, 5)])
def test_a_state_remembers_the_padding_and_positions_of_a_ragged_batch(padding, form):
    """Padding in front of the first part of a text, or behind it: the rest as in the row alone"""
    model = scrambled(gpt(form=form))
    x, mask = ids_of(model, 2, 8), np.ones((2, 8), int)
    mask[0, padding] = 0
    with no_grad():
        first, state = model(x[:, :5], mask[:, :5], model.new_state(2))
        rest = [model(x[:, t : t + 1], state=state)[0].data for t in range(5, 8)]
        together = np.concatenate([first.data, *rest], 1)
        for row, real in enumerate(mask == 1):
            expected = model(x[row : row + 1, real]).data[0]
            np.testing.assert_allclose(together[row, real], expected, rtol=1e-12, atol=1e-12)


@every
def test_a_token_never_sees_the_tokens_after_it(form):
    model = scrambled(gpt(form=form))
    x = ids_of(model, 1, 8)
    changed = x.copy()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    before, after = model(x).data, model(changed).data
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[:, 5:] > 1e-6).any(axis=2).all()


@beyond
@pytest.mark.parametrize("pieces", [[1] * 30, [11, 1, 18]])
def test_recurrence_and_convolution_go_on_past_block_size_as_in_one_pass(pieces, form):
    model = scrambled(gpt(form=form))  # whose block_size is 8
    x = ids_of(model, 2, 30)
    got, expected = read_in(pieces, model, x), model(x).data
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def leaves(state):
    """Whatever stands in nested tuples and lists."""
    if isinstance(state, (tuple, list)):
        return [leaf for part in state for leaf in leaves(part)]
    return [state]


@beyond
def test_a_state_is_arrays_without_history_or_the_rest_of_the_text(form):
    model = gpt(form=form)
    z, state = model(ids_of(model, 2, 40), state=model.new_state(2))
    assert z.requires_grad  # the graph that the state must not keep
    for array in leaves(state.blocks):
        assert type(array) is np.ndarray
        assert array.base is None or array.base.nbytes == array.nbytes


@beyond
def test_a_state_is_a_constant_to_the_gradients(form):
    model = scrambled(gpt(form=form))
    x, y = ids_of(model, 2, 8), ids_of(model, 2, 3, seed=3)
    got = []
    for mode in (no_grad, contextlib.nullcontext):
        with mode():
            _, state = model(x[:, :5], state=model.new_state(2))
        z, _ = model(x[:, 5:], state=state)
        got.append({n: g.copy() for n, g in gradients(model, cross_entropy(z, y)).items()})
        for p in model.named_parameters().values():
            p.grad = None
    for name, grad in got[0].items():
        np.testing.assert_array_equal(got[1][name], grad, name)


@every
def test_every_parameter_gets_a_gradient(form):
    model = gpt(form=form, block_size=16)  # a convolution reaches 12 positions back
    x, y = ids_of(model, 4, 16), ids_of(model, 4, 16, seed=3)
    for name, grad in gradients(model, cross_entropy(model(x), y)).items():
        rows = grad.reshape(len(grad), -1)
        if name.endswith("qkv.bias"):  # a bias on the keys shifts all scores of a query alike
            rows = np.delete(rows, slice(12, 24), axis=0)
        if name == "ngrams.vectors.weight":  # the rows of the n-grams that occur
            rows = rows[hashed(np.pad(x + 1, ((0, 0), (BEFORE, 0))), model.ngrams.rows)]
            rows = rows.reshape(-1, rows.shape[-1])
        assert (rows != 0).any(axis=1).all(), name


def test_the_first_loss_is_that_of_guessing():
    model = gpt(dtype=np.float32, vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128)
    loss = cross_entropy(model(ids_of(model, 12, 64)), ids_of(model, 12, 64, seed=3)).item()
    assert abs(loss / math.log(65) - 1) < 0.02


def train(model, x, y, steps, rate):
    flat = Flat(model)
    optimizer, losses = AdamW(flat, 0.1), []
    for step in range(steps):
        loss = cross_entropy(model(x), y)
        loss.backward()
        clip(flat.grad, 1.0)
        optimizer.step(rate, step + 1)
        losses.append(loss.item())
    return losses


def test_one_batch_is_learned_by_heart():
    model = gpt(dtype=np.float32, n_embd=32, block_size=16)
    x, y = ids_of(model, 4, 16), ids_of(model, 4, 16, seed=3)
    assert train(model, x, y, 150, 1e-2)[-1] < 0.05


def fixed_run():
    """A model and a batch of the text above, all in float64."""
    characters = sorted(set(TEXT))
    ids = np.array([characters.index(c) for c in TEXT])
    model = scrambled(gpt(vocab_size=len(characters), block_size=16, n_embd=16), std=0.02)
    starts = np.arange(0, 64, 16)[:, None] + np.arange(16)
    return model, ids[starts], ids[starts + 1]


RECORDED = [
    3.362157835925,
    3.227707467309,
    3.138357825977,
    3.050079855618,
    2.957286181440,
    2.853717604919,
    2.727762041845,
    2.607049466584,
    2.516615038511,
    2.407501956786,
]  # by PyTorch: test_pytorch_records_the_same_ten_losses


def test_ten_losses_of_a_fixed_run_are_those_recorded():
    np.testing.assert_allclose(train(*fixed_run(), 10, 1e-2), RECORDED, rtol=1e-10)


def test_pytorch_records_the_same_ten_losses():
    model, x, y = fixed_run()
    torch, twin, _ = hugging_face_twin(model)
    matrices = [p for p in twin.parameters() if p.ndim >= 2]
    rest = [p for p in twin.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99)), []
    for _ in range(10):
        z = twin(torch.from_numpy(x)).logits
        loss = torch.nn.functional.cross_entropy(z.flatten(0, 1), torch.from_numpy(y).flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = sum((p.grad**2).sum() for p in twin.parameters()) ** 0.5
        for p in twin.parameters():  # PyTorch's own clipping adds 1e-6 to the norm
            p.grad /= max(1.0, norm)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, RECORDED, rtol=1e-10)


def test_counts_follow_the_closed_form():
    c = GPTConfig(vocab_size=50, block_size=32, n_layer=3, n_head=2, n_embd=8)
    model, C = GPT2(c, np.random.default_rng(0)), 8
    block = 12 * C * C + 13 * C  # four C x C of attention, two C x 4C; 9C biases, 4C of two norms
    assert model.parameter_count() == (50 + 32) * C + 3 * block + 2 * C
    assert model.flops_per_token() == 6 * (3 * 12 * C * C + 50 * C) + 6 * 3 * C * 32


def test_too_many_tokens_are_refused_with_and_without_state():
    model = gpt()
    with pytest.raises(ValueError, match="at most block_size = 8 tokens, got 9"):
        model(ids_of(model, 1, 9))
    with no_grad():
        _, state = model(ids_of(model, 1, 8), state=model.new_state(1))
        with pytest.raises(ValueError, match="got 9"):
            model(ids_of(model, 1, 1), state=state)


def test_a_mask_of_another_shape_is_refused():
    model = gpt()
    with pytest.raises(ValueError, match=r"expected a mask of shape \(2, 4\), got \(2, 3\)"):
        model(ids_of(model, 2, 4), np.ones((2, 3), int))


@pytest.mark.parametrize("kind", [bool, float, lambda x: 7 * x])
def test_whatever_is_not_zero_in_a_mask_is_a_token(kind):
    model, mask = gpt(), np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    other = kind(mask) if kind not in (bool, float) else mask.astype(kind)
    ids = ids_of(model, 2, 4)
    np.testing.assert_array_equal(model(ids, other).data, model(ids, mask).data)


def test_a_state_is_refused_while_gradients_are_recorded():
    model = gpt()
    with pytest.raises(ValueError, match="no_grad"):
        model(ids_of(model, 1, 3), state=model.new_state(1))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of n_head = 3, got 16; try 18"):
        GPTConfig(vocab_size=5, n_head=3, n_embd=16)


def test_dropout_acts_in_training_only_and_draws_from_the_models_generator():
    model = gpt(dropout=0.5)
    x = ids_of(model, 2, 8)
    a, b = model(x).data, model(x).data
    assert np.abs(a - b).max() > 1e-3
    model.eval()
    np.testing.assert_array_equal(model(x).data, model(x).data)
    first = [scrambled(gpt(dropout=0.5))(x).data for _ in range(2)]
    np.testing.assert_array_equal(*first)


def test_weights_of_another_model_are_refused():
    model = gpt()
    arrays = model.state_dict()
    with pytest.raises(
        ValueError, match=r"blocks.2.mixer.out.bias: expected shape none, got \(12,\)"
    ):
        model.load_state_dict(gpt(n_layer=3).state_dict())
    with pytest.raises(ValueError, match=r" norm.weight: expected shape \(12,\), got none; they"):
        model.load_state_dict({n: a for n, a in arrays.items() if n != "norm.weight"})
    with pytest.raises(ValueError, match=r"embedding.weight: expected shape \(11, 12\), got"):
        model.load_state_dict(arrays | {"embedding.weight": np.zeros((10, 12))})


def test_loaded_weights_give_the_same_logits():
    model, other = scrambled(gpt()), gpt(seed=5)
    other.load_state_dict(model.state_dict())
    x = ids_of(model, 2, 8)
    np.testing.assert_array_equal(model(x).data, other(x).data)


def test_flat_vectors_hold_every_parameter_once_hidden_matrices_first_then_embeddings():
    model = gpt()
    parameters, flat = model.named_parameters(), Flat(model)
    for name, p in parameters.items():
        assert np.shares_memory(p.data, flat.data) and np.shares_memory(p.grad, flat.grad)
        start = (p.data.ctypes.data - flat.data.ctypes.data) // 8
        assert start % 16 == 0 and (start < flat.decayed) == (p.ndim >= 2)
        assert (start < flat.hidden) == (p.ndim >= 2 and name.startswith("blocks."))
    shapes = [flat.data[place].reshape(shape).shape for place, shape in flat.matrices]
    assert shapes == [(12, 36), (12, 12), (12, 48), (48, 12)] * 2
    covered = np.zeros(flat.data.size, int)
    for p in parameters.values():
        start = (p.data.ctypes.data - flat.data.ctypes.data) // 8
        covered[start : start + p.size] += 1
    assert covered.max() == 1 and (flat.data[covered == 0] == 0).all()


@every
def test_a_hidden_weight_is_to_muon_a_matrix_of_its_last_axis_and_the_rest(form):
    model = gpt(form=form)
    named = model.named_parameters().items()
    shapes = [p.shape for n, p in named if n.startswith(("blocks.", "ngrams.out."))]
    expected = [(math.prod(shape[:-1]), shape[-1]) for shape in shapes if len(shape) > 1]
    assert [shape for _, shape in Flat(model).matrices] == expected


def test_a_convolution_of_three_axes_is_a_matrix_of_four_inputs_by_twice_the_width():
    flat = Flat(gpt(form=MODELS["conv"]))
    assert [shape for _, shape in flat.matrices][:4] == [(4 * 12, 24), (12, 12), (12, 48), (48, 12)]


def two_layers(kind, seed=0):
    rng = np.random.default_rng(seed)
    return [scrambled(Recurrence(kind, n, 5, rng).to(dtype=np.float64)) for n in (3, 5)]


def in_torch(layers):
    return {name: a for i, layer in enumerate(layers) for name, a in layer.to_torch(i).items()}


@pytest.mark.parametrize("kind", CELLS)
def test_two_layers_of_recurrence_equal_pytorchs_network_of_two(kind):
    torch = pytest.importorskip("torch")
    layers, x = two_layers(kind), np.random.default_rng(2).normal(size=(4, 7, 3))
    twin = getattr(torch.nn, kind.upper())(3, 5, 2, batch_first=True, dtype=torch.float64)
    twin.load_state_dict({name: torch.from_numpy(a) for name, a in in_torch(layers).items()})
    expected, last = twin(torch.from_numpy(x))
    y, states = Tensor(x), []
    with no_grad():
        for layer in layers:
            y, state = layer(y, state=layer.new_state(4))
            states.append(state)
    np.testing.assert_allclose(y.data, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    for part, theirs in enumerate(last if kind == "lstm" else [last]):
        ours = np.stack([state[part] for state in states])
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
def test_weights_come_back_from_pytorchs_names_as_they_went(kind):
    layers, others = two_layers(kind), two_layers(kind, seed=7)
    arrays = in_torch(layers)
    for i, (layer, other) in enumerate(zip(layers, others, strict=True)):
        other.from_torch(arrays, i)
        for name, expected in layer.state_dict().items():
            np.testing.assert_array_equal(other.state_dict()[name], expected)


def test_a_tied_weight_is_listed_once():
    model = gpt()
    model.head = model.embedding
    assert "head.weight" not in model.named_parameters()
    assert "embedding.weight" in model.named_parameters()


def steps_and_tokens(xp, form):
    """Two training steps with dropout and accumulation, then ragged sampling, on library xp."""
    model = scrambled(gpt(dropout=0.2, form=form)).to(xp, np.float64)
    x, y = (xp.asarray(ids_of(model, 4, 8, seed=seed)) for seed in (2, 3))
    flat = Flat(model)
    optimizer, losses = Muon(flat), []
    for number in (1, 2):
        for part in (slice(0, 2), slice(2, 4)):
            loss = cross_entropy(model(x[part]), y[part], count=32)
            loss.backward()
            losses.append(loss.item())
        clip(flat.grad, 0.1)
        optimizer.step(1e-2, number)
    assert module_of(flat.data) is xp and module_of(model.norm.weight.data) is xp
    waits = dict(syncs)
    prompts = [np.array([1, 2, 3]), np.array([4])]
    tokens = list(generate(model.eval(), prompts, 20, np.random.default_rng(0)))
    return to_numpy(flat.data), losses, np.array(tokens), waits


@every
def test_training_and_sampling_are_the_same_on_another_library_than_numpy(form):
    with plain():
        weights, losses, tokens, _ = steps_and_tokens(np, form)
    with registered():
        others, other_losses, other_tokens, waits = steps_and_tokens(strict, form)
    np.testing.assert_allclose(others, weights, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-12)
    np.testing.assert_array_equal(other_tokens, tokens)
    assert waits == {"item": 4, "float": 2}  # the losses, and the norms that clip() compares


def test_each_ngram_has_the_row_that_its_tokens_name_as_digits():
    tokens, rows = np.random.default_rng(0).integers(0, 4000, (3, BEFORE + 7)), 1000
    found = hashed(tokens, rows)
    assert found.shape == (3, 7, len(ORDERS))
    for b, t, k in np.ndindex(found.shape):
        end = BEFORE + t + 1
        digits = tokens[b, end - ORDERS[k] : end].tolist()  # Python's own integers have no limit
        number = sum(digit * 1_000_003**place for place, digit in enumerate(digits))
        assert found[b, t, k] == k * rows + number % (2**31 - 1) % rows


def test_ngrams_of_a_text_rarely_share_a_row():
    text = np.random.default_rng(0).integers(1, 66, (1, 1000 + BEFORE))
    rows = hashed(text, 1 << 14)[0, :, -1]
    # 1,000 balls in 16,384 boxes: about 1000^2 / 2 / 16384 = 30 of them share one
    assert len({*text[0].tolist()}) == 65 and 950 < len(np.unique(rows)) < 990


def test_a_token_sees_the_ngrams_that_end_at_it_and_no_later_token():
    ngrams = NGrams(8, np.random.default_rng(0)).to(np, np.float64)
    tokens = np.random.default_rng(1).integers(1, 9, (1, BEFORE + 10))
    y = ngrams(tokens).data
    for at in range(tokens.shape[1]):
        other = tokens.copy()
        other[0, at] = 20
        changed = np.flatnonzero((ngrams(other).data != y).any(2)[0])
        expected = [t for t in range(10) if at <= t + BEFORE and t + BEFORE - at <= BEFORE]
        assert changed.tolist() == expected
