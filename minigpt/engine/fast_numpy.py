"""Fast pairs on NumPy arrays: `f_forward(arrays) -> y, saved`, `f_backward(dy, saved) -> grads`.

Each computes what the definition of its name says, with fewer passes over memory: it writes in
place where an array is private, and it sums by products with ones, which BLAS, the library of
matrix products, does faster. `saved` belongs to the pair alone, so the backward may overwrite it.
Percentages say how much longer a step of the 4x128 GPT (T 64, B 12, V 65) takes without the pair,
on one machine; tests/benchmarks/README.md has the table with its spreads.
"""

from functools import lru_cache

import numpy as np

IGNORED = -100


@lru_cache
def _constant(n, value, dtype):
    """A vector of n equal numbers, made once: products with it are sums."""
    return np.full(n, value, dtype)


_ROWS = 1 << 12  # rows to add at a time: of more, float32 would lose digits as the sum grows


def column_sums(x, y=None):
    """The sum of the rows of x (N, C), of x y if y is given -> (C,)"""
    parts = []
    for i in range(0, max(1, len(x)), _ROWS):
        part = x[i : i + _ROWS]
        if y is None:
            parts.append(_constant(len(part), 1, x.dtype) @ part)
        else:
            parts.append(np.einsum("ij,ij->j", part, y[i : i + _ROWS]))
    return parts[0] if len(parts) == 1 else np.sum(parts, axis=0)


def linear_forward(x, w, b):
    """One product, then b is added in place (5 %; 11 % of a sampled token)."""
    rows = x.reshape(-1, x.shape[-1])
    y = rows.dot(w)  # of one row in half the time of @: 2 % of a sampled token
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[1]), (rows, w, x.shape, b is not None)


def linear_backward(dy, saved):
    """dx = dy w^T, dw = x^T dy, as matmul in ops.py derives; db is the sum of dy's rows."""
    rows, w, shape, biased = saved
    dy = dy.reshape(len(rows), w.shape[1])
    db = column_sums(dy) if biased else None
    return (dy @ w.T).reshape(shape), rows.T @ dy, db


def layer_norm_forward(x, w, b, eps=1e-5):
    """Keeps the normalised rows h and their scale, 1 / sqrt(variance + eps) (13 %)."""
    n = x.shape[-1]
    rows = x.reshape(-1, n)
    h = rows - rows[:, :1]
    h -= h.dot(_constant(n, 1 / n, x.dtype))[:, None]  # of one row dot takes half the time of @
    variance = np.vecdot(h, h) / n
    scale = ((variance + eps) ** -0.5)[:, None]
    h *= scale
    y = h * w
    y += b
    return y.reshape(x.shape), (h, scale, w)


def layer_norm_backward(dy, saved):
    """dx = scale (g - mean g - h mean(g h)) with g = dy w, written over h. Why:

    y = h w + b, so g is the gradient of h, dw sums dy h and db sums dy over all rows.
    h = scale c with c = x - mean x. If scale were fixed, dc would be scale g. But scale also moves
    with c: from scale = (mean c^2 + eps)^(-1/2) follows d scale / d c_i = -scale^3 c_i / n, which
    acts on all of h. This adds -scale^3 c_i mean(g c) = -scale h_i mean(g h).
    Last, c = x - mean x: dx = dc - mean dc. The mean of h is 0, so only g's mean goes.
    """
    h, scale, w = saved
    shape, n = dy.shape, dy.shape[-1]
    dy = dy.reshape(-1, n)
    dw, db = column_sums(dy, h), column_sums(dy)
    dx = dy * w  # g
    mean = (dx @ _constant(n, 1 / n, dy.dtype))[:, None]
    h *= np.vecdot(dx, h)[:, None] / n
    h += mean
    dx -= h
    dx *= scale
    return dx.reshape(shape), dw, db


_BLOCK = 1 << 15  # elements: three float32 blocks of 128 KB stay in the L2 cache
_A = 0.7978845608028654  # sqrt(2 / pi)
_AC = _A * 0.044715


def gelu_forward(x):
    """y = x s, s = (1 + tanh(a x + a c x^3)) / 2, with a = sqrt(2 / pi), c = 0.044715.

    Eight passes over a block that stays in cache, instead of over all of x (32 %).
    """
    flat = x.reshape(-1)
    y, s = np.empty_like(flat), np.empty_like(flat)
    for i in range(0, flat.size, _BLOCK):
        xi, z = flat[i : i + _BLOCK], s[i : i + _BLOCK]
        np.multiply(xi, xi, out=z)
        z *= _AC
        z += _A
        z *= xi  # a x + a c x^3
        np.tanh(z, out=z)
        z *= 0.5
        z += 0.5
        np.multiply(xi, z, out=y[i : i + _BLOCK])
    return y.reshape(x.shape), (flat, s, y)


def gelu_backward(dy, saved):
    """dx = dy (s + 2 y (1 - s) (a + 3 a c x^2)), which needs no tanh. Why:

    y = x s, so ∂y/∂x = s + x ∂s/∂x. With u = a x + a c x^3 and t = tanh u, s = (1 + t) / 2, and
    ∂s/∂u = (1 - t^2) / 2 = (1 + t) (1 - t) / 2 = 2 s (1 - s). Since ∂u/∂x = a + 3 a c x^2 and
    x s = y, x ∂s/∂x = 2 y (1 - s) (a + 3 a c x^2).
    """
    x, s, y = saved
    flat, dx = dy.reshape(-1), np.empty_like(x)
    for i in range(0, x.size, _BLOCK):
        part = slice(i, i + _BLOCK)
        z = np.multiply(x[part], x[part], out=dx[part])
        z *= 6 * _AC
        z += 2 * _A
        z *= y[part]
        z *= 1 - s[part]
        z += s[part]
        z *= flat[part]
    return (dx.reshape(dy.shape),)


def relu2_forward(x):
    """Keeps r = max(x, 0) (14 % of a step of `--model gpt`)."""
    r = np.maximum(x, 0)
    return r * r, r


def relu2_backward(dy, saved):
    """y = r^2, so dx = 2 r dy, written over r; where x < 0, r = 0."""
    saved *= 2
    saved *= dy
    return (saved,)


@lru_cache
def _turns(T, D, base, dtype):
    """e^(i angle) for positions 0 to T - 1 -> (T, 1, D / 2), complex"""
    angle = np.arange(T)[:, None, None] * base ** (np.arange(0, D, 2) / -D)
    return np.exp(1j * angle).astype(np.result_type(dtype, np.complex64))


def rotary_forward(x, positions, base=1e4):
    """A pair of channels is a complex number, and a product with e^(i angle) turns it (8 % of
    a step of `--model gpt`)."""
    # Tables are of 2, 4, 8, ... positions: a text that grows token by token needs few of them.
    end = positions.stop if isinstance(positions, slice) else positions.max(initial=0) + 1
    turns = _turns(1 << int(end).bit_length(), x.shape[3], base, x.dtype)[positions]
    return (_complex(x) * turns).view(x.dtype), turns


def rotary_backward(dy, saved):
    """A turn is a product with a matrix, y = x w, so dx = dy w^T. The transpose of a turn is the
    turn back, which is the conjugate number."""
    return ((_complex(dy) * saved.conj()).view(dy.dtype),)


def _complex(x):
    """Pairs of neighbours as complex numbers, without a copy if they are neighbours in memory"""
    x = x if x.strides[-1] == x.itemsize else np.ascontiguousarray(x)
    return x.view(np.result_type(x.dtype, np.complex64))


def token_shift_forward(x, past=None, lags=5):
    """Writes the channels of earlier tokens into a copy of x (5 % of a step of `--model gpt`)."""
    (_, T, C), y = x.shape, x.copy()
    for back, part in _shifts(C, lags):
        y[:, back:, part] = x[:, : max(0, T - back), part]
        first = y[:, :back, part]  # what lies before x
        first[...] = 0 if past is None else past[:, lags - back :, part][:, : first.shape[1]]
    return y, lags


def token_shift_backward(dy, saved):
    """Each channel's gradient returns to the token it came from; what no token took gets zeros."""
    (_, T, C), dx = dy.shape, dy.copy()
    for back, part in _shifts(C, saved):
        dx[:, : max(0, T - back), part] = dy[:, back:, part]
        dx[:, max(0, T - back) :, part] = 0
    return (dx,)


def _shifts(C, lags):
    """(how many tokens back, which channels) of each lag"""
    n = C // (2 * lags)
    return [(back, slice((back - 1) * n, back * n)) for back in range(1, lags + 1)]


def cross_entropy_forward(z, targets, count=None):
    """Keeps p = softmax(z), one array instead of seven (0 %; 10 % at V 4,000)."""
    t = targets.reshape(-1)
    p = z.reshape(t.size, z.shape[-1])
    p = p - p.max(1, keepdims=True)
    scored = np.flatnonzero(t != IGNORED)
    hit = p[scored, t[scored]]  # a copy: p is overwritten next
    total = np.exp(p, out=p) @ _constant(p.shape[1], 1, p.dtype)
    p /= total[:, None]
    count = float(count or len(scored) or 1)
    loss = (np.log(total[scored]) - hit).sum() / count
    return loss, (p, t, scored, count, z.shape)


def cross_entropy_backward(dloss, saved):
    """dz = dloss (p - onehot(target)) / count, written over the saved probabilities p. Why:

    The loss of one target is ln(sum over j of e^z_j) - z_target. The derivative of the first term
    by z_i is e^z_i / sum of e^z_j = p_i; that of the second is 1 at the target, 0 elsewhere.
    """
    p, t, scored, count, shape = saved
    if len(scored) < len(t):
        p[t == IGNORED] = 0
    p[scored, t[scored]] -= 1
    p *= dloss / count
    return p.reshape(shape), None


_TILE = 64  # queries (forward) or keys (backward) at a time
_ROOM = 1 << 17  # scores at a time: 512 KB stay in the L2 cache


def attention_forward(q, k, v, mask=None, window=None, causal=True):
    """Tile by tile of queries, with no key that none of them sees (15 %; 59 % of a step of
    `--model gpt`, whose T is 256).

    Memory grows with T, not T^2: a tile's weights p are forgotten. What is kept is lse, the
    logarithm of the sum of e^score, (B, H, 1, T); the backward finds p again as e^(score - lse).
    Scores stand as keys x queries: NumPy reduces over rows faster than along them. q^T is copied:
    BLAS reads a small transposed matrix slowly. y, dq, dk, dv lie in memory as (B, T, H, D), so
    that joining the heads copies nothing. Softmax subtracts the largest score so that e^score does
    not overflow; where all scores are small, this is left out (5 % at T 1,024).
    Source: Dao et al. 2022, arXiv 2205.14135, algorithm 1.
    """
    (B, H, T, D), past = q.shape, k.shape[2] - q.shape[2]  # query i stands at position past + i
    if T == 1 and mask is None and window is None:
        y, lse = _attend_once(q, k, v)
        return y, (q, k, v, y, lse, mask, window, causal)
    qt, lse = _flipped(q, D**-0.5), np.empty((B, H, 1, T), q.dtype)
    y = _joinable((B, H, T, v.shape[3]), q.dtype)
    small = _are_small(q, k)
    for i in range(0, T, _TILE):
        end = min(i + _TILE, T)
        low = 0 if window is None else max(0, past + i - window + 1)  # the keys that they see
        high = past + end if causal else past + T
        for b, h in _parts(B, H, (high - low) * (end - i)):
            seen = None if mask is None else mask[b, low:high]
            ahead = past + i - low
            p = _scores(k[b, h, low:high], qt[b, h, :, i:end], ahead, seen, window, causal)
            top = 0.0 if small else p.max(2, keepdims=True)
            if not small:
                np.maximum(top, np.finfo(top.dtype).min, out=top)  # -inf - (-inf) would be NaN
                p -= top
            np.exp(p, out=p)
            total = _constant((1, high - low), 1, p.dtype) @ p
            if mask is not None or window is not None:
                total[total == 0] = np.inf  # queries that see nothing get zeros
            y_i = np.matmul(p.swapaxes(2, 3), v[b, h, low:high], out=y[b, h, i:end])
            y_i /= total.swapaxes(2, 3)
            np.add(np.log(total), top, out=lse[b, h, :, i:end])
    return y, (q, k, v, y, lse, mask, window, causal)


def _are_small(q, k):
    """Whether no score is above 60, as q k <= |q| |k|; a million e^60 still fit in a float32."""
    D = q.shape[3]
    with np.errstate(over="ignore"):
        q, k = (np.vecdot(x, x).max(initial=0) for x in (q, k))
    return q * k < 60**2 * D


def _attend_once(q, k, v):
    """One query that sees all keys, as in sampling, where a token then takes 9 % less -> y, lse"""
    B, H, _, D = q.shape
    p = k @ (q * D**-0.5).reshape(B, H, D, 1)
    top = p.max(2, keepdims=True)
    p -= top
    np.exp(p, out=p)
    total = p.sum(2, keepdims=True)
    y = p.reshape(B, H, 1, -1) @ v
    y /= total
    return y, np.log(total) + top


def attention_backward(dy, saved):
    """dv = p^T dy, ds = p (dy v^T - sum over d of dy_d y_d), dq = ds k, dk = ds^T q. Why:

    y = p v is a product, so dv = p^T dy and dp = dy v^T. p = softmax(s), so (chapter 3
    of the tour) ds = p (dp - sum over j of p_j dp_j). That sum is the sum over j and d of
    p_j dy_d v_jd, and as the sum over j of p_j v_jd is y_d, it equals the sum over d of dy_d y_d,
    which needs no p. s = q k^T is a product again; 1 / sqrt(D) goes into q at first, and into dq,
    dk at last.

    s - lse and dp - sum are products, too: k and v get a column of ones, and q^T and dy^T a row of
    -lse and of -sum. This saves two passes over the scores (4 % at T 1,024).

    Tile by tile of keys, whose gradients are then written once. Scores stand as keys x queries.
    """
    q, k, v, y, lse, mask, window, causal = saved
    (B, H, T, D), past = q.shape, k.shape[2] - q.shape[2]
    qt, dyt = _flipped(q, D**-0.5, -lse), _flipped(dy, 1.0, -np.vecdot(dy, y)[:, :, None])
    k1, v1 = (np.concatenate((x, np.ones_like(x[..., :1])), 3) for x in (k, v))
    dq, dk, dv = (_joinable(x.shape, x.dtype) for x in (q, k, v))
    dq[...] = 0
    for j in range(0, past + T, _TILE):
        end = min(j + _TILE, past + T)
        low = max(0, j - past) if causal else 0  # the queries that see these keys
        high = T if window is None else max(low, min(T, end - 1 + window - past))
        for b, h in _parts(B, H, (end - j) * (high - low)):
            seen = None if mask is None else mask[b, j:end]
            ahead = past + low - j
            p = _scores(k1[b, h, j:end], qt[b, h, :, low:high], ahead, seen, window, causal)
            np.exp(p, out=p)  # e^(s - lse)
            np.matmul(p, dy[b, h, low:high], out=dv[b, h, j:end])
            ds = v1[b, h, j:end] @ dyt[b, h, :, low:high]  # dp - sum
            ds *= p
            np.matmul(ds, q[b, h, low:high], out=dk[b, h, j:end])
            dq[b, h, low:high] += ds.swapaxes(2, 3) @ k[b, h, j:end]
    for dx in (dq, dk):
        dx *= D**-0.5
    return dq, dk, dv


def _parts(B, H, scores):
    """Slices of B texts and H heads of so many scores each: as many at a time as _ROOM holds."""
    n = max(1, _ROOM // max(1, scores))
    texts = max(1, n // H)
    return [
        (slice(b, b + texts), slice(h, h + n)) for b in range(0, B, texts) for h in range(0, H, n)
    ]


def _scores(k, qt, ahead, mask, window, causal):
    """s = k q^T / sqrt(D), -inf where a query may not see a key -> (.., H, keys, queries)

    qt is q^T / sqrt(D). The first query stands `ahead` positions after the first key.
    """
    s = k @ qt
    row, column = 0, s.shape[3]  # what may be hidden: keys from row on, queries before column
    if mask is None and window is None:  # then only the corner of keys that come after queries
        row = max(0, ahead + 1)
        column = max(0, s.shape[2] - row) if causal else 0
    if column:
        most = _most(
            s.shape[2] - row, min(column, s.shape[3]), ahead - row, window, causal, s.dtype
        )
        if mask is not None:
            most = np.where(mask[:, None, :, None] == 0, most.dtype.type(-np.inf), most)
        part = s[:, :, row:, :column]
        np.fmin(part, most, out=part)  # of a number and NaN, fmin takes the number
    return s


@lru_cache(8)
def _most(keys, queries, ahead, window, causal, dtype):
    """The largest score that a key may have: inf where a query sees it, -inf where it comes later
    or too long before -> (keys, queries)"""
    key, query = np.arange(keys)[:, None], np.arange(queries) + ahead
    later = key > query if causal else np.zeros((keys, queries), bool)
    hidden = later if window is None else later | (key <= query - window)
    return np.where(hidden, -np.inf, np.inf).astype(dtype)


def _flipped(x, scale, *rows):
    """scale x^T over the last two axes, and perhaps a row below, as an array of its own"""
    B, H, T, D = x.shape
    y = np.empty((B, H, D + len(rows), T), x.dtype)
    np.multiply(x.swapaxes(2, 3), scale, out=y[:, :, :D])
    for row in rows:
        y[:, :, D:] = row
    return y


def _joinable(shape, dtype):
    """An empty array of shape (B, H, T, D) that lies in memory as (B, T, H, D)."""
    B, H, T, D = shape
    return np.empty((B, T, H, D), dtype).transpose(0, 2, 1, 3)
