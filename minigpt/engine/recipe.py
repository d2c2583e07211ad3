"""The formulas that `--model gpt` adds to GPT-2's; GPT-2 itself is complete without them."""

from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import raw
from minigpt.engine.functional import fused
from minigpt.engine.ops import concatenate, reshape, stack, where


@fused
def relu2(x):
    """y = max(x, 0)^2, cheaper than GELU.  Source: So et al. 2021, arXiv 2109.08668, section 3.1"""
    x = where(raw(x) <= 0, 0.0, x)
    return x * x


@fused
def rotary(x, positions, base=1e4):
    """Write positions into queries and keys: turn each pair (x_2i, x_2i+1), a point in the plane.

    The angle is base^(-2i/D) t, t the position. The product of two vectors, turned by the angles of
    positions s and t, depends on s - t alone: attention then sees distances, not places.
    x (B, T, H, D) -> the same; positions: a slice, the same for every text, or (B, T).
    Source: Su et al. 2021, section 3.2.2.
    """
    xp, D = module_of(raw(x)), x.shape[3]
    if isinstance(positions, slice):
        positions = xp.arange(positions.start, positions.stop)
    angle = positions[..., None, None] * base ** (xp.arange(0, D, 2) / -D)  # (.., T, 1, D / 2)
    cos, sin = xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    turned = [a * cos - b * sin, a * sin + b * cos]
    return reshape(stack(turned, -1), x.shape)  # a and b alternate again, as in x


LAGS = 5  # how many tokens before its own a layer sees by token_shift


@fused
def token_shift(x, past=None, lags=LAGS):
    """Half of the channels come from the `lags` tokens before, as many from each.

    So a layer that looks at one token alone can tell what stands right before it, and attention
    finds a word by the words around it: "the milk" which somebody took, not the one that lay there.
    x (B, T, C), past (B, lags, C) the tokens before x, None = zeros -> (B, T, C)
    Source: Lin et al. 2019, arXiv 1811.08383, section 3; in language models: Peng et al. 2023.
    """
    B, T, C = x.shape
    if past is None:
        past = module_of(raw(x)).zeros((B, lags, C), x.dtype)
    whole, n, parts = concatenate([past, x], 1), C // (2 * lags), []
    for back in range(1, lags + 1):
        start = lags - back  # token t of x is token t + lags of whole
        parts.append(whole[:, start : start + T, (back - 1) * n : back * n])
    return concatenate([*parts, x[:, :, lags * n :]], 2)
