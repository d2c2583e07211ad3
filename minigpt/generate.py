"""Text from a language model: one token after the other, each drawn from the model's prediction."""

import math

import numpy as np

from minigpt.engine.arrays import to_numpy
from minigpt.engine.autograd import bare


def choose(logits, rng, temperature=1.0, top_k=None, top_p=None):
    """Draw one id per row from softmax(logits / temperature).  logits (B, V) -> ids (B,), int32

    A temperature below 1 makes likely ids likelier, one above 1 makes all more alike; 0 takes the
    most likely id, without a draw. top_k and top_p leave out unlikely ids, as `truncated` says.
    Raises ValueError if the largest logit of a row is no finite number.
    """
    top = logits.max(-1, keepdims=True)
    if not all(map(math.isfinite, top.ravel().tolist())):  # of a few, faster than NumPy's
        raise ValueError("logits: expected finite numbers, got NaN or infinity; train anew")
    if temperature == 0:
        return logits.argmax(-1).astype(np.int32)
    shifted = (logits - top).astype(np.float64)  # e^x cannot overflow
    p = np.exp(shifted / temperature)  # softmax but for its divisor: only proportions count here
    if top_k is not None or top_p is not None:
        p = truncated(p, top_k, top_p)
    # Laid end to end, the p of a row cover the line from 0 to total. A point drawn on it lies in
    # the stretch of some id, whose number is how many stretches end at or before the point.
    ends = np.cumsum(p, -1)
    total = ends[:, -1:]
    point = rng.random(total.shape) * total
    point = np.minimum(point, np.nextafter(total, 0))  # below total, even if the product is rounded
    return (ends <= point).sum(-1, dtype=np.int32)


def truncated(p, top_k, top_p):
    """p (B, V) with 0 for ids that are not to be drawn; its rows need not sum to 1.

    top_k keeps the k most likely ids (Fan et al. 2018). top_p keeps the most likely ids that
    together have this share of what is left, as few as reach it (Holtzman et al. 2020, 3.1): few
    where the model is sure, many where it is not.
    """
    order = np.argsort(-p, axis=-1, kind="stable")  # ids, the most likely first
    ranked = np.take_along_axis(p, order, -1)
    if top_k:
        ranked[:, top_k:] = 0
    if top_p is not None:
        likelier = np.cumsum(ranked, -1) - ranked  # what the ids before each have together
        ranked[likelier >= top_p * ranked.sum(-1, keepdims=True)] = 0
    kept = np.empty_like(p)
    np.put_along_axis(kept, order, ranked, -1)  # back in the order of ids
    return kept


def left_pad(prompts):
    """Prompts of different lengths, B id arrays, in one array: ids (B, T), with zeros in front of
    the shorter ones, and mask (B, T), 1 for a token, 0 for padding; None if there is no padding."""
    T = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), T), np.int32)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, T - len(prompt) :] = prompt
        mask[row, T - len(prompt) :] = 1
    return ids, None if mask.all() else mask


def generate(model, prompts, tokens, rng, **how):
    """Yield the next `tokens` ids (B,) of each of B prompts, drawn by choose(..., **how).

    The model reads each token once, because its state remembers it. When the block_size positions
    of its context are full, it begins a new state with the last block_size // 2 ids, as if the text
    began there; padding fills positions too. Of a longer prompt it reads the last block_size ids.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("generate: expected prompts of at least one token, got an empty one")
    size, xp = model.block_size, model.library
    ids, mask = left_pad([prompt[-size:] for prompt in prompts])
    state, unread = model.new_state(len(ids)), ids
    for _ in range(tokens):
        if state.length + unread.shape[1] > size:
            state = model.new_state(len(ids))
            unread = ids[:, -max(1, size // 2) :]
        read_mask = None if mask is None else xp.asarray(mask[:, -unread.shape[1] :])
        with bare():  # arrays suffice, as no gradient is needed; the mode ends before the yield
            logits, _ = model(xp.asarray(unread), read_mask, state)
        chosen = choose(to_numpy(logits[:, -1]), rng, **how)  # what follows the last token
        yield chosen
        unread = chosen[:, None]
        ids = np.concatenate([ids, unread], axis=1)[:, -size:]
        if mask is not None:
            mask = np.concatenate([mask, np.ones_like(unread)], axis=1)[:, -size:]


class Text:
    """A text that comes token by token: each piece is given out as soon as it is certain.

    The text ends before `stop`, if that string comes. What may be the beginning of `stop` is held
    back until later tokens show what it is.
    """

    def __init__(self, tokenizer, stop=""):
        self.decode, self.stop, self.held, self.ended = tokenizer.decoder(), stop, "", False

    def add(self, ids):
        """Add tokens, ids (n,) -> the text that is certain now; "" once it has ended."""
        if self.ended:
            return ""
        self.held += self.decode(ids)
        if self.stop and self.stop in self.held:
            self.ended = True
            return self.held[: self.held.index(self.stop)]
        free = 0  # the first place from which the rest of held could begin `stop`
        while not self.stop.startswith(self.held[free:]):  # every string starts with "": this ends
            free += 1
        piece, self.held = self.held[:free], self.held[free:]
        return piece

    def rest(self):
        """What is still held when no more tokens come"""
        return "" if self.ended else self.held + self.decode([], final=True)


def streams(model, tokenizer, prompts, tokens, rng, stop="", **how):
    """Yield the texts that follow B prompts: for each token, a list of B pieces, one for each text.

    They are drawn together, in one batch: the weights, read once, serve all of them.
    """
    texts = [Text(tokenizer, stop) for _ in prompts]
    prompts = [tokenizer.encode(prompt) for prompt in prompts]
    for ids in generate(model, prompts, tokens, rng, **how):
        yield [text.add(ids[i : i + 1]) for i, text in enumerate(texts)]
        if all(text.ended for text in texts):
            return
    yield [text.rest() for text in texts]


def stream(model, tokenizer, prompt, tokens, rng, stop="", **how):
    """Yield the text that follows one prompt piece by piece, up to `stop` if that string comes."""
    for (piece,) in streams(model, tokenizer, [prompt], tokens, rng, stop, **how):
        yield piece
