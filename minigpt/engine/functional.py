"""The formulas of deep learning, each defined once, in primitive ops.

Under `@fused` a definition gives way to a fast pair of its name (`f_forward`, `f_backward` in
fast_numpy or fast_cupy) where the library that owns the arrays has one. Any pair may be deleted:
the same values come out, only later. Convolution and recurrence follow in files of their own.
"""

from functools import wraps
from importlib import import_module
from inspect import signature

from minigpt.engine.arrays import module_of, uniform
from minigpt.engine.autograd import Tensor, mode, raw, record
from minigpt.engine.ops import (
    concatenate,
    exp,
    log,
    matmul,
    max,
    mean,
    reshape,
    sqrt,
    stack,
    sum,
    tanh,
    where,
)

PAIRS = {}  # name of the library -> the module with its fast pairs
FILES = {"numpy": [], "cupy": []}  # library -> names of modules with fast functions, for fast()
IGNORED = -100  # a target that is not scored, as in PyTorch and Hugging Face


def fused(definition, files=PAIRS):
    """Let the fast pair of this name, if the arrays have one, stand in for the definition."""
    name, parameters = definition.__name__, signature(definition)
    forward_name, backward_name = f"{name}_forward", f"{name}_backward"

    @wraps(definition)
    def call(*args, **options):
        if options:  # to their places: a pair's gradients come in the order of the parameters
            bound = parameters.bind(*args, **options)
            bound.apply_defaults()
            args = bound.args
        bare = [x.data if isinstance(x, Tensor) else x for x in args]
        pairs = files.get(module_of(bare[0]).__name__) if mode.fast else None
        forward = getattr(pairs, forward_name, None)
        if forward is None:
            return definition(*args)
        y, saved = forward(*bare)
        if mode.bare:
            return y
        backward, rest = getattr(pairs, backward_name), (None,) * len(args)

        def gradients(*dy):
            dy = dy if len(dy) > 1 else dy[0]  # a pair of several outputs gets a tuple
            return (*backward(dy, saved), *rest)[: len(rest)]

        return record(y, args, gradients, name)

    return call


def fast(name, x):
    """The function `name` of the files for the library that owns x; None if plain or none has it"""
    files = FILES.get(module_of(x).__name__, ()) if mode.fast else ()
    found = (getattr(import_module(file), name, None) for file in files)
    return next(filter(None, found), None)


@fused
def linear(x, w, b):
    """y = x w + b.  x (..., I), w (I, O), b (O,) or None -> (..., O)"""
    y = matmul(x, w)
    return y if b is None else y + b


@fused
def embedding(w, ids):
    """y = the rows of w that ids name.  w (V, C), ids (...) integers -> (..., C)"""
    return w[ids]


@fused
def softmax(x, axis=-1):
    """y = e^x / sum e^x along axis.  Source: Goodfellow et al. 2016, section 6.2.2.3"""
    y = exp(x - max(raw(x), axis, keepdims=True))  # the shift cancels; e^x cannot overflow
    return y / sum(y, axis, keepdims=True)


@fused
def log_softmax(x, axis=-1):
    """y = ln softmax(x) along axis, safe where the softmax itself would round to 0"""
    x = x - max(raw(x), axis, keepdims=True)
    return x - log(sum(exp(x), axis, keepdims=True))


@fused
def cross_entropy(z, targets, count=None):
    """-sum ln softmax(z)[target] / count.  z (..., V), targets (...) ids -> () in nats per target

    Targets of -100 are not scored. `count` is what the sum is divided by: the scored targets here,
    unless the caller knows those of the whole batch, of which this is a part.
    Raises ValueError if the shapes disagree. Source: Goodfellow et al. 2016, section 6.2.2.3.
    """
    if targets.shape != z.shape[:-1]:
        raise ValueError(f"targets: expected shape {z.shape[:-1]}, got {targets.shape}")
    xp, targets = module_of(raw(z)), targets.reshape(-1)
    scored = targets != IGNORED
    logp = log_softmax(reshape(z, (targets.size, z.shape[-1])))
    hit = logp[xp.arange(targets.size), xp.where(scored, targets, 0)]
    return -sum(where(scored, hit, 0.0)) / float(count or scored.sum() or 1)


@fused
def layer_norm(x, w, b, eps=1e-5):
    """y = (x - mean) / sqrt(variance + eps) w + b over the last axis.  x (..., C), w, b (C,)

    Source: Ba et al. 2016, arXiv 1607.06450.
    """
    x = x - mean(x, -1, keepdims=True)
    return x / sqrt(mean(x * x, -1, keepdims=True) + eps) * w + b


@fused
def gelu(x):
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).  Source: Hendrycks & Gimpel 2016"""
    return x * 0.5 * (tanh((x + x * x * x * 0.044715) * 0.7978845608028654) + 1.0)


@fused
def relu2(x):
    """y = max(x, 0)^2.  Source: So et al. 2021, arXiv 2109.08668, section 3.1"""
    x = where(raw(x) <= 0, 0.0, x)
    return x * x


@fused
def rotary(x, positions, base=1e4):
    """Turn each pair (x_2i, x_2i+1) by the angle base^(-2i/D) t, t its position.  x (B, T, H, D)

    positions: a slice, the same for every text, or (B, T). The product of two turned vectors
    depends on the difference of their positions. Source: Su et al. 2021, section 3.2.2.
    """
    xp, D = module_of(raw(x)), x.shape[3]
    if isinstance(positions, slice):
        positions = xp.arange(positions.start, positions.stop)
    angle = positions[..., None, None] * base ** (xp.arange(0, D, 2) / -D)
    cos, sin = xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return reshape(stack([a * cos - b * sin, a * sin + b * cos], -1), x.shape)


@fused
def token_shift(x, past=None):
    """A quarter of the channels comes from the token before, the second from the one before that.

    x (B, T, C), past (B, 2, C) the two tokens before x, None = zeros -> (B, T, C)
    Source: Lin et al. 2019, arXiv 1811.08383, section 3; in language models: Peng et al. 2023.
    """
    B, T, C = x.shape
    if past is None:
        past = module_of(raw(x)).zeros((B, 2, C), x.dtype)
    whole, n = concatenate([past, x], 1), C // 4
    return concatenate([whole[:, 1:-1, :n], whole[:, :-2, n : 2 * n], x[:, :, 2 * n :]], 2)


@fused
def dropout(x, p, seed):
    """y = x / (1 - p), or 0 with probability p; the integer seed fixes which.

    Source: Srivastava et al. 2014, section 10, scaled during training as is usual now.
    """
    keep = uniform(module_of(raw(x)), x.shape, seed) >= p
    return x * (keep.astype(x.dtype) * (1 / (1 - p)))


@fused
def attention(q, k, v, mask=None, window=None, causal=True):
    """y = softmax(q k^T / sqrt(D)) v.  q (B, H, T, D), k, v (B, H, S, D) -> (B, H, T, D)

    The queries are the last T of S positions; causal: each sees keys up to its own position, with a
    window the last `window` of them. mask (B, S): keys with 0 are padding, never seen.
    A query that sees nothing gets zeros.
    Source: Vaswani et al. 2017, section 3.2.1; window: Brown et al. 2020, section 2.1.
    """
    xp, T, S = module_of(raw(q)), q.shape[2], k.shape[2]
    query, key = xp.arange(S - T, S)[:, None], xp.arange(S)
    seen = key <= query if causal else xp.ones((T, S), bool)
    if window is not None:
        seen = seen & (key > query - window)
    if mask is not None:
        seen = seen & (mask[:, None, None, :] != 0)
    z = matmul(q, k.transpose((0, 1, 3, 2))) * q.shape[3] ** -0.5
    p = softmax(where(seen, z, -1e30))  # finite, so that a row without keys is no NaN
    return matmul(where(seen, p, 0.0), v)
