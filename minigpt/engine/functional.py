"""The formulas of deep learning that GPT-2 needs, each defined once, in primitive ops.

A definition says what is computed. Under `@fused` it gives way to a fast pair of its name, where
there is one: functions `f_forward` and `f_backward` in a fast_* file, which compute the same in
fewer steps. Any pair may be deleted: the same values come out, only later. Whoever changes a
definition deletes its pair, or gives the new formula a name of its own: the pair would go on
computing the old one. engine/__init__.py says which files are searched.
"""

from functools import wraps
from importlib import import_module
from inspect import signature

from minigpt.engine.arrays import module_of, uniform
from minigpt.engine.autograd import FLOATS, Tensor, mode, raw, record_joint
from minigpt.engine.guards import GUARDS, IGNORED
from minigpt.engine.ops import exp, log, matmul, max, mean, reshape, sqrt, sum, tanh, where

PAIRS = {}  # name of a library -> its files of fast functions: modules, or names of modules


def fast(name, x):
    """The fast function of this name for the library that owns array x, or None if there is none.

    Within plain() there is none, and then no file of fast functions is imported either.
    """
    files = PAIRS.get(module_of(x).__name__, []) if mode.fast else []
    for place, file in enumerate(files):
        if isinstance(file, str):  # the name of a module that is searched for the first time
            file = files[place] = import_module(file)
        if name in file.__dict__:
            return file.__dict__[name]
    return None


def fused(definition):
    """Let the fast pair of this name, where there is one, stand in for the definition.

    `f_forward(*arrays)` returns y and what `f_backward(dy, saved)` needs for the gradients of all
    inputs. These two know nothing of Tensors; here their work becomes a step of history.
    """
    name, parameters = definition.__name__, signature(definition)
    forward_name, backward_name = f"{name}_forward", f"{name}_backward"
    guard = GUARDS.get(name)

    @wraps(definition)
    def call(*args, **options):
        if options:  # by position: a pair's gradients come in the order of the parameters
            bound = parameters.bind(*args, **options)
            bound.apply_defaults()
            args = bound.args
        arrays = [x.data if isinstance(x, Tensor) else x for x in args]  # raw(x), without its call
        if guard:
            guard(*arrays)
        forward = fast(forward_name, arrays[0])
        if forward is None or arrays[0].dtype not in FLOATS:
            return definition(*args)
        try:
            y, saved = forward(*arrays)
        except ValueError as error:
            shapes = ", ".join(str(x.shape) for x in arrays if hasattr(x, "shape"))
            raise ValueError(f"{name} of shapes {shapes}: {error}") from None
        if mode.bare:
            return y
        if (y[0] if type(y) is list else y).dtype != arrays[0].dtype:  # integers among the floats
            return definition(*args)
        backward = fast(backward_name, arrays[0])

        def rule(*dys):  # the gradients of several outputs are given to the pair as one tuple
            return backward(dys[0] if len(dys) == 1 else dys, saved)

        return record_joint(y, args, rule, name)

    return call


@fused
def linear(x, w, b):
    """y = x w + b: each output is a weighted sum of the inputs, plus a bias.

    x (..., I), w (I, O), b (O,) or None -> (..., O)
    """
    y = matmul(x, w)
    return y if b is None else y + b


@fused
def embedding(w, ids):
    """y = the rows of w that ids name: each token's own vector, learned as any other weight.

    w (V, C), ids (...) integers -> (..., C)
    """
    return w[ids]


@fused
def softmax(x, axis=-1):
    """y = e^x / sum e^x along axis: any numbers, called logits, become probabilities that add to 1.

    Shifting all logits of a row by the same amount changes nothing: the factor e^shift is in the
    numerator and in the denominator. So the largest is shifted to 0, and no e^x can overflow.
    Source: Goodfellow et al. 2016, section 6.2.2.3
    """
    y = exp(x - max(raw(x), axis, keepdims=True))
    return y / sum(y, axis, keepdims=True)


@fused
def log_softmax(x, axis=-1):
    """y = ln softmax(x) along axis, safe where the softmax itself would round to 0"""
    x = x - max(raw(x), axis, keepdims=True)
    return x - log(sum(exp(x), axis, keepdims=True))


@fused
def cross_entropy(z, targets, count=None):
    """How surprised logits z are by the targets: -sum ln softmax(z)[target] / count.

    z (..., V), targets (...) ids -> (), in nats per target. A nat is the surprise at an event of
    probability 1 / e; a model that gives all V tokens the same probability has a loss of ln V.
    Targets of -100 are not scored. count is the number of targets scored here unless it is given:
    with the number of the whole batch, the losses of its parts add up to the mean.
    Raises ValueError if the shapes disagree. Source: Goodfellow et al. 2016, section 6.2.2.3.
    """
    xp, t = module_of(raw(z)), targets.reshape(-1)
    scored = t != IGNORED
    logp = log_softmax(reshape(z, (t.size, z.shape[-1])))
    hit = logp[xp.arange(t.size), xp.where(scored, t, 0)]  # ln p of each target; any if not scored
    return -sum(where(scored, hit, 0.0)) / float(count or scored.sum() or 1)


@fused
def layer_norm(x, w, b, eps=1e-5):
    """Bring each row to mean 0 and variance 1; then w and b, which are learned, set the scale.

    y = (x - mean) / sqrt(variance + eps) w + b over the last axis.  x (..., C), w, b (C,)
    eps keeps a row of equal numbers from being divided by 0. Source: Ba et al. 2016, arXiv
    1607.06450.
    """
    x = x - raw(x)[..., :1]  # a shift cancels; nearly equal numbers, far from 0, keep their digits
    x = x - mean(x, -1, keepdims=True)
    return x / sqrt(mean(x * x, -1, keepdims=True) + eps) * w + b


@fused
def gelu(x):
    """y = x where x is large, 0 where it is very negative, and a smooth bend between.

    y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).  Source: Hendrycks & Gimpel 2016
    """
    return x * 0.5 * (tanh((x + x * x * x * 0.044715) * 0.7978845608028654) + 1.0)


@fused
def dropout(x, p, seed):
    """y = x / (1 - p), or 0 with probability p; the integer seed fixes which.

    As any number may be missing, the next layer cannot rely on a single one. The factor keeps the
    mean of y at x. Source: Srivastava et al. 2014, section 10, scaled during training as is usual.
    """
    keep = uniform(module_of(raw(x)), x.shape, seed) >= p
    return x * (keep.astype(x.dtype) * (1 / (1 - p)))


@fused
def attention(q, k, v, mask=None, window=None, causal=True):
    """Each position asks with its query q which keys k fit, and gets the mean of the values v
    there, weighted by how well they fit: y = softmax(q k^T / sqrt(D)) v.

    q (B, H, T, D), k, v (B, H, S, D) -> (B, H, T, D); H heads ask independently. The queries are
    the last T of S positions. causal: each sees keys up to its own position, so that no position
    knows what follows it; with a window, the last `window` of these. mask (B, S): keys with 0 are
    padding, never seen. A query that sees nothing gets zeros.
    The product of two vectors of D standard normal numbers has variance D: the division by sqrt(D)
    brings it to 1.
    Source: Vaswani et al. 2017, section 3.2.1; window: Brown et al. 2020, section 2.1.
    """
    xp, T, S = module_of(raw(q)), q.shape[2], k.shape[2]
    query, key = xp.arange(S - T, S)[:, None], xp.arange(S)  # their positions, as column and row
    seen = key <= query if causal else xp.ones((T, S), bool)  # (T, S)
    if window is not None:
        seen = seen & (key > query - window)
    if mask is not None:
        seen = seen & (mask[:, None, None, :] != 0)  # (B, 1, T, S)
    z = matmul(q, k.transpose((0, 1, 3, 2))) * q.shape[3] ** -0.5  # (B, H, T, S)
    lowest = xp.finfo(z.dtype).min  # not -inf: -inf - (-inf) of a row without keys is NaN
    p = softmax(where(seen, z, lowest))
    return matmul(where(seen, p, 0.0), v)
