"""Text from a language model: one token after the other, each drawn from the model's prediction."""

import numpy as np

from minigpt.engine.arrays import to_numpy
from minigpt.engine.autograd import bare


def choose(logits, rng, temperature=1.0, top_k=None, top_p=None):
    """Draw one id per row from softmax(logits / temperature).  logits (B, V) -> ids (B,), int32

    temperature 0 takes the most likely id. top_k keeps the k most likely ids (Fan et al. 2018),
    top_p the fewest whose probabilities reach p (Holtzman et al. 2020, section 3.1).
    """
    if temperature == 0:
        return logits.argmax(-1).astype(np.int32)
    p = np.exp((logits - logits.max(-1, keepdims=True)).astype(np.float64) / temperature)
    if top_k is not None or top_p is not None:
        order = np.argsort(-p, axis=-1, kind="stable")  # most likely first
        ranked = np.take_along_axis(p, order, -1)
        ranked[:, top_k or p.shape[1] :] = 0
        if top_p is not None:
            before = np.cumsum(ranked, -1) - ranked  # what the more likely ids have together
            ranked[before >= top_p * ranked.sum(-1, keepdims=True)] = 0
        np.put_along_axis(p, order, ranked, -1)
    sums = np.cumsum(p, -1)
    total = sums[:, -1:]
    drawn = np.minimum(rng.random(total.shape) * total, np.nextafter(total, 0))  # below, if rounded
    return (sums <= drawn).sum(-1, dtype=np.int32)


def left_pad(prompts):
    """A list of id arrays -> ids (B, T) with zeros in front, mask (B, T), None without padding"""
    T = max(len(prompt) for prompt in prompts)
    ids = np.stack([np.pad(prompt, (T - len(prompt), 0)) for prompt in prompts]).astype(np.int32)
    mask = np.stack([np.arange(T) >= T - len(prompt) for prompt in prompts]).astype(np.int32)
    return ids, None if mask.all() else mask


def generate(model, prompts, tokens, rng, **how):
    """Yield the next `tokens` ids (B,) of each of B prompts, drawn by choose(..., **how).

    Each token is read once: the model's state remembers it. When block_size positions are full,
    the last block_size // 2 are read again as if the text began there (in a ragged batch padding
    fills positions too); of a longer prompt, the last block_size tokens are read.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("generate: expected prompts of at least one token, got an empty one")
    size, xp = model.block_size, model.library
    ids, mask = left_pad([prompt[-size:] for prompt in prompts])
    state, new = model.new_state(len(ids)), ids
    for _ in range(tokens):
        if state.length + new.shape[1] > size:
            state, new = model.new_state(len(ids)), ids[:, -max(1, size // 2) :]
        chosen = choose(_read(model, new, mask, state, xp), rng, **how)
        yield chosen
        new = chosen[:, None]
        ids = np.concatenate([ids, new], axis=1)[:, -size:]
        if mask is not None:
            mask = np.concatenate([mask, np.ones_like(new)], axis=1)[:, -size:]


def _read(model, ids, mask, state, xp):
    """Read ids into the state -> logits (B, V); the mode here does not reach generate's caller."""
    mask = None if mask is None else xp.asarray(mask[:, -ids.shape[1] :])
    with bare():
        logits, _ = model(xp.asarray(ids), mask, state)
        return to_numpy(logits[:, -1])


def stream(model, tokenizer, prompt, tokens, rng, stop="", **how):
    """Yield the text that follows the prompt piece by piece, up to `stop` if that string comes."""
    held, decode = "", tokenizer.decoder()  # held: decoded, but perhaps the beginning of stop
    for ids in generate(model, [tokenizer.encode(prompt)], tokens, rng, **how):
        held += decode(ids)
        if stop and stop in held:
            yield held[: held.index(stop)]
            return
        keep = max((n for n in range(len(stop)) if held.endswith(stop[:n])), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held + decode([], final=True)
