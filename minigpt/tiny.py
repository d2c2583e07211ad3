"""A whole GPT in one look, in GPT-2's form: python -m minigpt.tiny FILE learns it and goes on."""

import sys

import numpy as np
from threadpoolctl import threadpool_limits

from minigpt.engine.autograd import Tensor, no_grad
from minigpt.engine.ops import exp, log, mean, split, sqrt, tanh

T, C, H, L, B = 64, 64, 2, 2, 8  # T letters in view, C numbers each, H heads, L layers, B texts
rng, STEPS, RATE = np.random.default_rng(1337), 3000, 8e-3  # how many steps, how far at most


def parameters(V):  # all that is learned: vectors of V letters and T places, then L layers
    arrays = [rng.normal(0, 0.2, (V, C)), rng.normal(0, 0.2, (T, C))]
    for wide, inner in L * [(3 * C, C), (4 * C, 4 * C)]:  # attention, MLP: norm, in, and out
        arrays += [np.ones(C), np.zeros(C), rng.normal(0, 0.1, (C, wide)), np.zeros(wide)]
        arrays += [rng.normal(0, 0.1 / (2 * L) ** 0.5, (inner, C)), np.zeros(C)]
    return [Tensor(a.astype(np.float32), True) for a in [*arrays, np.ones(C), np.zeros(C)]]


def norm(x, gain, bias):
    x = x - mean(x, -1, keepdims=True)
    return x / sqrt(mean(x * x, -1, keepdims=True) + 1e-5) * gain + bias


def gpt(weights, ids):
    """The scores of all V letters to come next, at every place.  ids (B, T) -> (B, T, V)"""
    (B, T), (letter, place, *layers, gain, bias) = ids.shape, weights
    hidden = np.where(np.tri(T) > 0, 0, -np.inf).astype(np.float32)  # what comes later
    x = letter[ids] + place[:T]  # (B, T, C): what is written, and where
    for i in range(0, len(layers), 12):
        g1, b1, qkv, qkv_b, out, out_b, g2, b2, up, up_b, down, down_b = layers[i : i + 12]
        heads = (norm(x, g1, b1) @ qkv + qkv_b).reshape((B, T, 3 * H, C // H))
        q, k, v = split(heads.transpose((0, 2, 1, 3)), 3, 1)  # what each asks, offers, tells
        fit = q @ k.transpose((0, 1, 3, 2)) * (C // H) ** -0.5 + hidden  # (B, H, T, T)
        share = exp(fit - fit.data.max(-1, keepdims=True))
        share = share / share.sum(-1, keepdims=True)  # softmax: shares that add up to 1
        x = x + (share @ v).transpose((0, 2, 1, 3)).reshape((B, T, C)) @ out + out_b
        h = norm(x, g2, b2) @ up + up_b  # the MLP: each works on what it has gathered
        h = h * 0.5 * (tanh(h * (h * h * 0.0356774081363 + 0.7978845608029)) + 1.0)  # GELU
        x = x + h @ down + down_b
    return norm(x, gain, bias) @ letter.T  # compared with the vector of every letter


def surprise(weights, text):
    """-ln of the probability that gpt gave each letter but the first; the mean is the loss."""
    z = gpt(weights, text[:, :-1])
    z = z - z.data.max(-1, keepdims=True)  # e^z cannot overflow; what follows stays the same
    return log(exp(z).sum(-1)) - z[*np.indices(z.shape[:2]), text[:, 1:]]


if __name__ == "__main__":
    threadpool_limits(1)  # arrays are small: a second core would wait more than it works
    file = sys.argv[1] if sys.argv[1:] else sys.exit(__doc__)
    letters, ids = np.unique(list(open(file, encoding="utf-8").read()), return_inverse=True)
    text, test = np.split(ids, [len(ids) * 9 // 10])  # the last tenth is never learned
    if len(test) <= T:
        sys.exit(f"{file}: expected more than {10 * T} letters, got {len(ids)}; add some")
    weights = parameters(len(letters))
    moments = [np.zeros((2, *w.shape), np.float32) for w in weights]
    for step in range(1, STEPS + 1):
        places = rng.integers(len(text) - T, size=(B, 1)) + np.arange(T + 1)
        mean(surprise(weights, text[places])).backward()  # fills w.grad, the slope by each w
        rate = RATE * min(step / 100, 1 - step / STEPS)  # up, then slowly down to 0
        for w, (m, v) in zip(weights, moments, strict=True):  # AdamW
            m += 0.1 * (w.grad - m)  # the slope, smoothed
            v += 0.01 * (w.grad**2 - v)  # its square: where slopes are large, steps are small
            w.data *= 1 - 0.1 * rate * (w.ndim > 1)
            w.data -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
            w.grad = None
    with no_grad():
        windows = test[np.arange(0, len(test) - T, T)[:, None] + np.arange(T + 1)]
        losses = [surprise(weights, some).data for some in np.array_split(windows, 99)]
        print(f"surprise by the rest of the text: {np.concatenate(losses).mean():.3f} nats\n")
        for _ in range(400):
            scores = gpt(weights, test[None, -T:]).data[0, -1]
            test = np.append(test, (scores + rng.gumbel(size=len(scores))).argmax())  # by chance
    print("".join(letters[test[-400:]]))
