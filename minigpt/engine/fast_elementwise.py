"""Fast pairs on CuPy arrays for formulas in which each number is on its own.

CuPy makes a kernel of a formula: a thread computes it for one element of all arrays. It walks
arrays with strides and repeats numbers that broadcast, so that no copy is needed; what the
definition does in several passes over memory is one.
"""

import numpy as np

from minigpt.engine.arrays import module_of, uniform
from minigpt.engine.fast_cupy import new

# name -> inputs, outputs, and the formula for an element of each. T is float or double. A raw input
# is the whole array, of which i is the place of this element, counted row by row.
FORMULAS = {
    "gelu_forward": ("T x", "T y", """
        T u = T(0.7978845608028654) * (x + T(0.044715) * x * x * x);
        y = x / 2 * (1 + tanh(u))"""),
    "gelu_backward": ("T dy, T x", "T dx", """
        T u = T(0.7978845608028654) * (x + T(0.044715) * x * x * x), t = tanh(u);
        T du = T(0.7978845608028654) * (1 + T(0.134145) * x * x);  // the derivative of u
        dx = dy * ((1 + t) / 2 + x / 2 * (1 - t * t) * du)"""),
    "relu2_forward": ("T x", "T y", "T r = x <= 0 ? T(0) : x; y = r * r"),
    "relu2_backward": ("T dy, T x", "T dx", "T r = x <= 0 ? T(0) : x; dx = 2 * r * dy"),
    "relu_forward": ("T x", "T y", "y = x <= 0 ? T(0) : x"),
    "relu_backward": ("T dy, T x", "T dx", "dx = x <= 0 ? T(0) : dy"),
    "rotary": ("T a, T b, T cos, T sin", "T c, T d", """
        c = a * cos - b * sin;
        d = a * sin + b * cos"""),
    "dropout": ("T x, bool keep, T scale", "T y", "y = x * (keep * scale)"),
    "token_shift": ("raw T x, int64 tokens, int64 C, int64 lags, int64 sign", "T y", """
        long long c = i % C, t = i / C % tokens, n = C / (2 * lags);
        long long back = c < lags * n ? sign * (c / n + 1) : 0;
        y = t >= back && t - back < tokens ? x[i - back * C] : T(0)"""),
    "adamw": (
        "raw T norm2, int64 decayed, T limit, T rate, T b1, T b2, T left1, T left2, T eps, T kept",
        "T w, T g, T m, T v", """
        T norm = sqrt(norm2[0]);
        if (isfinite(norm)) {
            T clipped = norm > limit ? g * (limit / norm) : g;
            m = b1 * m + (1 - b1) * clipped;
            v = b2 * v + (1 - b2) * clipped * clipped;
            T m_hat = m / left1, v_hat = v / left2;
            w = (i < decayed ? w * kept : w) - rate * m_hat / (sqrt(v_hat) + eps);
            g = 0;
        }"""),
    "judged": (
        "T norm2, T loss, int64 number, T scale, T share", "T verdict, T recent, int64 failed", """
        if (failed == 0) recent += share * (scale * loss - recent);
        if (failed == 0 && !isfinite(norm2 + loss)) failed = number, recent = loss;
        verdict = failed ? T(nan("")) : norm2"""),
    "sgd": (
        "raw T norm2, int64 decayed, T limit, T rate, T momentum, T kept", "T w, T g, T v", """
        T norm = sqrt(norm2[0]);
        if (isfinite(norm)) {
            v = momentum * v + (norm > limit ? g * (limit / norm) : g);
            w = (i < decayed ? w * kept : w) - rate * v;
            g = 0;
        }"""),
    "muon_ahead": ("raw T norm2, T limit, T momentum", "T g, T m", """
        T norm = sqrt(norm2[0]);
        if (isfinite(norm)) {
            T clipped = norm > limit ? g * (limit / norm) : g;
            m = momentum * m + clipped;
            g = clipped + momentum * m;
        }"""),
    "muon_apply": ("raw T norm2, T direction, T rate, T kept", "T w, T g", """
        if (isfinite(norm2[0])) {
            w = kept * w - rate * direction;
            g = 0;
        }"""),
}  # fmt: skip

_made = {}  # (library, name, ..) -> kernel, or table of angles, made when it is first used


def run(name, *args):
    """Apply a formula -> a new array, unless the outputs are given behind the inputs."""
    xp = module_of(args[0])
    if (xp.__name__, name) not in _made:
        _made[xp.__name__, name] = xp.ElementwiseKernel(*FORMULAS[name], name)
    exact = [np.int64(x) if isinstance(x, int) else x for x in args]
    return _made[xp.__name__, name](*exact)


def gelu_forward(x):
    """Keeps x alone."""
    return run("gelu_forward", x), x


def gelu_backward(dy, saved):
    """y = x (1 + tanh u) / 2, and the derivative of tanh u by u is 1 - tanh^2 u."""
    return (run("gelu_backward", dy, saved),)


def relu2_forward(x):
    """Keeps x alone."""
    return run("relu2_forward", x), x


def relu2_backward(dy, saved):
    """dx = 2 r dy, r = max(x, 0)"""
    return (run("relu2_backward", dy, saved),)


def relu_forward(x):
    """Keeps x alone."""
    return run("relu_forward", x), x


def relu_backward(dy, saved):
    """dx = dy where x > 0"""
    return (run("relu_backward", dy, saved),)


def dropout_forward(x, p, seed):
    """Keeps a byte per number: whether it stays."""
    keep, scale = uniform(module_of(x), x.shape, seed) >= p, x.dtype.type(1 / (1 - p))
    return run("dropout", x, keep, scale), (keep, scale)


def dropout_backward(dy, saved):
    """dx = 0 where x was dropped"""
    return (run("dropout", dy, *saved),)


def rotary_forward(x, positions, base=1e4):
    """Turns the pairs where they lie: a and b are views of x, c and d of y."""
    cos, sin = _turns(x, positions, base)
    return _turned(x, cos, sin), (cos, sin)


def rotary_backward(dy, saved):
    """The turn back is the turn by the negative angle."""
    cos, sin = saved
    return (_turned(dy, cos, -sin),)


def _turned(x, cos, sin):
    y = new(x, *x.shape)
    run("rotary", x[..., 0::2], x[..., 1::2], cos, sin, y[..., 0::2], y[..., 1::2])
    return y


def _turns(x, positions, base):
    """cos and sin (.., T, 1, D / 2) of the angles; for a slice from a table, made once for all
    layers and steps, of 2, 4, 8, ... positions: a text that grows needs few of them"""
    if not isinstance(positions, slice):
        return _table(x, positions, base)
    end = 1 << int(positions.stop).bit_length()
    key = module_of(x).__name__, "rotary", end, x.shape[3], base, x.dtype.name
    if key not in _made:
        _made[key] = _table(x, module_of(x).arange(end), base)
    return [table[positions] for table in _made[key]]


def _table(x, positions, base):
    xp, D = module_of(x), x.shape[3]
    angle = positions[..., None, None] * base ** (xp.arange(0, D, 2) / -D)
    return xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype)


def token_shift_forward(x, past=None, lags=5):
    """One pass, which copies nothing twice; tokens before the first are 0."""
    if past is None:
        return _shifted(x, lags, 1), lags
    return _shifted(module_of(x).concatenate([past, x], 1), lags, 1)[:, lags:], lags


def token_shift_backward(dy, saved):
    """Each channel's gradient returns to the token it came from: a shift to the other side."""
    return (_shifted(dy, saved, -1),)


def _shifted(x, lags, sign):
    return run("token_shift", x, x.shape[1], x.shape[2], lags, sign, new(x, *x.shape))
