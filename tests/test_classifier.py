"""Classifiers of every kind and model: their first loss, learning, gradients, and PyTorch's CNN."""

import contextlib
import math

import numpy as np
import pytest

from minigpt import no_grad
from minigpt.engine.autograd import plain
from minigpt.engine.functional import cross_entropy
from minigpt.nn import model_class
from minigpt.nn.attention import Attention
from minigpt.nn.classifier import Columns, classifier
from minigpt.nn.gpt import GPTConfig
from minigpt.nn.module import Flat
from minigpt.training.optim import AdamW, clip

SHAPES = {"image": (8, 8, 1), "sound": (400,), "table": (2, 2, 2)}  # three columns of two features
ARRAYS = SHAPES | {"table": (6,)}
NAMES = ["gpt", "lstm", "gru", "rnn", "conv"]
every = pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind in SHAPES for name in NAMES]
)  # fmt: skip
tokens = pytest.mark.parametrize("kind", SHAPES)


def made(kind, name, classes=3, dtype=np.float32, seed=0, **shape):
    shape = {"block_size": 1, "n_layer": 2, "n_head": 2, "n_embd": 16} | shape
    rng = np.random.default_rng(seed)
    config = GPTConfig(classes, **shape)
    return classifier(kind, model_class(name), SHAPES[kind], config, rng).to(dtype=dtype)


def examples(kind, n=12, classes=3, seed=1, dtype=np.float32):
    """Noise around one pattern per class -> x (n, ...), y (n,)"""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % classes).astype(np.int32)
    patterns = rng.standard_normal((classes, *ARRAYS[kind]))
    return (patterns[y] + 0.1 * rng.standard_normal((n, *ARRAYS[kind]))).astype(dtype), y


def scrambled(model, seed=3, std=0.2):
    rng = np.random.default_rng(seed)
    for p in model.named_parameters().values():
        p.data += rng.normal(0, std, p.shape)
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SHAPES)
def test_the_first_loss_is_that_of_guessing(kind, name):
    x, y = examples(kind, 60)
    x = (x - x.mean()) / x.std()  # as the encoders leave it
    loss = cross_entropy(made(kind, name, n_embd=64)(x), y).item()
    assert abs(loss / math.log(3) - 1) < 0.3


@every
def test_a_few_separable_examples_are_learned_in_a_few_steps(kind, name):
    model, (x, y) = made(kind, name), examples(kind)
    flat, losses = Flat(model), []
    optimizer = AdamW(flat, 0.0)
    for step in range(15):
        loss = cross_entropy(model(x), y)
        loss.backward()
        clip(flat.grad, 1.0)
        optimizer.step(1e-2, step + 1)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@every
def test_a_row_is_classified_alike_alone_and_among_others(kind, name):
    model, (x, _) = scrambled(made(kind, name, dtype=np.float64)), examples(kind, dtype=np.float64)
    together = model(x).data
    for row, z in zip(x, together, strict=True):
        np.testing.assert_allclose(model(row[None]).data[0], z, rtol=1e-10, atol=1e-12)


@every
def test_every_parameter_gets_a_gradient_(kind, name):
    model, (x, y) = scrambled(made(kind, name)), examples(kind)
    cross_entropy(model(x), y).backward()
    for parameter, p in model.named_parameters().items():
        assert p.grad is not None and (p.grad != 0).any(), parameter


@every
def test_dropout_draws_in_training_only(kind, name):
    model, (x, _) = made(kind, name, dropout=0.5), examples(kind)
    assert np.abs(model(x).data - model(x).data).max() > 1e-4
    model.eval()
    np.testing.assert_array_equal(model(x).data, model(x).data)


@every
def test_the_same_seed_makes_the_same_classifier(kind, name):
    one, two = (made(kind, name).state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[parameter], two[parameter]) for parameter in one)


@every
def test_a_hidden_weight_is_to_muon_a_matrix_of_its_last_axis_and_the_rest(kind, name):
    model = made(kind, name)
    tables = {id(m.weight) for m in model.modules() if m.table}
    parameters = [p for p in model.named_parameters().values() if id(p) not in tables]
    expected = [(math.prod(p.shape[:-1]), p.shape[-1]) for p in parameters if p.ndim > 1]
    assert [shape for _, shape in Flat(model).matrices] == expected


@tokens
def test_attention_of_a_classifier_sees_what_follows(kind):
    mixers = [m for m in made(kind, "gpt").modules() if isinstance(m, Attention)]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 16), np.float32)
    changed = x.copy()
    changed[0, 4] += 1
    assert len(mixers) == 2
    for mixer in mixers:
        with no_grad():
            before, after = mixer(x)[0].data, mixer(changed)[0].data
        assert (np.abs(before - after) > 0).any(axis=2).all()


def test_a_column_becomes_the_sum_of_its_features_vectors_by_their_numbers():
    columns = Columns([1, 3, 2], 2, np.random.default_rng(0))
    columns.weight.data[...] = [[1, 2], [3, 4], [5, 6], [7, 8], [1, 0], [0, 1]]
    x = np.array([[2, 0, 1, 0, -1, 4], [0, 1, 0, 1, 0, 0]], np.float32)
    expected = [[[2, 4], [5, 6], [-1, 4]], [[0, 0], [10, 12], [0, 0]]]
    np.testing.assert_array_equal(columns(x).data, expected)


def test_columns_in_another_order_are_the_same_if_their_weights_and_positions_move_along():
    model = scrambled(made("table", "gpt", dtype=np.float64))
    x, order = examples("table", dtype=np.float64)[0], np.array([2, 0, 1])
    before, features = model(x).data, np.array([4, 5, 0, 1, 2, 3])
    for p, places in ((model.position.weight, order), (model.tokens.weight, features)):
        p.data[...] = p.data[places]
    np.testing.assert_allclose(model(x[:, features]).data, before, rtol=1e-10, atol=1e-12)
    assert np.abs(model(x).data - before).max() > 1e-3


@every
def test_gradients_match_differences_along_a_line_through_all_weights(kind, name):
    """d loss / d s at w + s v, v random, without and with the fast pairs."""
    model = scrambled(made(kind, name, dtype=np.float64, n_embd=8))
    x, y = examples(kind, 4, dtype=np.float64)
    parameters = model.named_parameters()
    rng = np.random.default_rng(5)
    line = {n: rng.standard_normal(p.shape) for n, p in parameters.items()}

    def loss(s):
        for n, p in parameters.items():
            p.data += s * line[n]
        with no_grad():
            value = cross_entropy(model(x), y).item()
        for n, p in parameters.items():
            p.data -= s * line[n]
        return value

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    for mode in (plain, contextlib.nullcontext):
        with mode():
            cross_entropy(model(x), y).backward()
        got = sum((p.grad * line[n]).sum() for n, p in parameters.items())
        np.testing.assert_allclose(got, slope, rtol=1e-5)  # the differences' own error
        for p in parameters.values():
            p.grad = None


@pytest.mark.parametrize("name", ["position.weight", "blocks.0.mixer.qkv.weight"])
def test_each_gradient_of_a_small_classifier_matches_differences(name):
    model = scrambled(made("table", "gpt", dtype=np.float64, n_embd=4, n_layer=1))
    x, y = examples("table", 4, dtype=np.float64)
    cross_entropy(model(x), y).backward()
    p = model.named_parameters()[name]
    for index in np.ndindex(p.shape):
        sides, kept = [], p.data[index]
        for change in (1e-5, -1e-5):
            p.data[index] = kept + change
            with no_grad():
                sides.append(cross_entropy(model(x), y).item())
        p.data[index] = kept
        slope = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(p.grad[index], slope, rtol=1e-6, atol=1e-9)


def in_torch(torch, model, x):
    """The CNN composed of PyTorch's functions, which want channels first; weights (O, C, ...)"""
    F, kind = torch.nn.functional, model.kind
    conv = F.conv2d if kind == "image" else F.conv1d
    x = torch.from_numpy(x).movedim(-1, 1) if kind == "image" else torch.from_numpy(x)[:, None]
    for i, layer in enumerate(model.layers):
        w, b = (torch.from_numpy(p.data) for p in (layer.weight, layer.bias))
        x = conv(x, w.movedim((-1, -2), (0, 1)), b, **layer.options).relu()
        if kind == "image" and i == len(model.layers) - 1:
            x = F.max_pool2d(x, 2)
    x = x.mean(2) if kind == "sound" else x.movedim(1, -1).flatten(1)
    for i, layer in enumerate((model.hidden, model.head)):
        w, b = (torch.from_numpy(p.data) for p in (layer.weight, layer.bias))
        x = F.linear(x, w.T, b)
        x = x if i else x.relu()
    return x.numpy()


@tokens
def test_the_logits_of_a_cnn_equal_those_composed_of_pytorchs_functions(kind):
    torch = pytest.importorskip("torch")
    model = scrambled(made(kind, "conv", dtype=np.float64), std=0.05)
    x, _ = examples(kind, dtype=np.float64)
    z = model(x).data
    np.testing.assert_allclose(z, in_torch(torch, model, x), rtol=1e-10, atol=1e-12)
