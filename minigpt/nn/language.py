"""A language model: embedding, blocks, head. It predicts the next token at every position.

Each token becomes a vector of C channels, which flows through the model from the first block to the
last: the residual stream. A block does not replace the vector, it adds to it. What comes out at the
end is compared with the vector of every token; the results, one per token of the vocabulary, are
the logits, and softmax turns them into probabilities.
"""

import sys

from minigpt.engine.arrays import module_of
from minigpt.engine.functional import gelu
from minigpt.engine.ops import matmul, transpose
from minigpt.nn.layers import MLP, Dropout, Embedding, LayerNorm
from minigpt.nn.module import HIDDEN, Module, kinds_of


def norm(config):
    """The norm of every model: in front of each mixer and MLP, and in front of the head."""
    return LayerNorm(config.n_embd, config.layer_norm_epsilon)


class Block(Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)).  x (B, T, C) -> (B, T, C), state

    The mixer (attention, recurrence or convolution) carries information between positions; the MLP
    works on each position alone. The state is what the mixer remembers between two calls; without
    one, None comes back. Source: He et al. 2016 (the sums); Radford et al. 2019 (where norms are).
    """

    def __init__(self, config, mixer, rng, activation=gelu):
        c = config
        inner = c.n_inner or 4 * c.n_embd
        self.norm1, self.mixer, self.norm2 = norm(c), mixer, norm(c)
        self.mlp = MLP(c.n_embd, inner, rng, activation, c.dropout, c.out_std)

    def forward(self, x, mask=None, state=None):
        y, state = self.mixer(self.norm1(x), mask, state)
        x = x + y
        return x + self.mlp(self.norm2(x)), state

    def new_state(self, B, block_size):
        """What the mixer remembers before the first token of B texts."""
        return self.mixer.new_state(B, block_size)


class State:
    """What a model remembers of the tokens it has read: each block's state; how many positions
    those were, padding included; their mask (B, length), None if there was no padding; and what
    embed() remembers."""

    def __init__(self, blocks):
        self.blocks, self.mask, self.length, self.last = blocks, None, 0, None


class LanguageModel(Module):
    """Logits of the next token at every position.  ids (B, T) -> logits (B, T, V)

    model(ids, mask, state) with a state from new_state(B) reads only the new tokens, updates the
    state, and returns (logits, state). mask (B, T) has 1 for a token and 0 for padding, which is
    never attended and does not count as a position. The head is the embedding's own table: a token
    is likely where the stream points the way its own vector does. So one table less is learned (of
    GPT-2's parameters a table is 31 %), and each vector learns from both of its uses.
    Raises ValueError past block_size, the number of positions that fit; models without attention
    have no limit. Source: Radford et al. 2018; the shared table: Press & Wolf 2017.
    """

    heads = False  # whether it has attention heads, whose number must divide n_embd

    def __init__(self, config, blocks, rng):
        self.config = c = config
        self.embedding, self.dropout = (
            Embedding(c.vocab_size, c.n_embd, rng),
            Dropout(c.dropout, rng),
        )
        self.blocks, self.norm = blocks, norm(c)
        limited = any(block.mixer.limited for block in blocks)
        self.block_size = c.block_size if limited else sys.maxsize

    def forward(self, ids, mask=None, state=None):
        past = state.length if state else 0
        end = past + ids.shape[1]
        if end > self.block_size:
            size = f"block_size = {self.block_size} tokens"
            raise ValueError(f"model: expected at most {size}, got {end}; start a new state")
        mask = self._mask(ids, mask, past, state)
        x = self.dropout(self.embed(ids, mask, state))
        for i, block in enumerate(self.blocks):
            x, after = block(x, mask, state.blocks[i] if state else None)
            if state:
                state.blocks[i] = after
        logits = matmul(self.norm(x), transpose(self.embedding.weight))
        if state is None:
            return logits
        state.mask, state.length = mask, end
        return logits, state

    def embed(self, ids, mask, state):
        """The vectors that enter the first block.  ids (B, T), the new ones -> (B, T, C)"""
        return self.embedding(ids)

    def _mask(self, ids, mask, past, state):
        """The mask of past and new tokens together (B, past + T); None if none is padding."""
        xp, (B, T) = module_of(ids), ids.shape
        before = state.mask if state else None
        if mask is not None and mask.shape != (B, T):
            raise ValueError(f"model: expected a mask of shape {(B, T)}, got {mask.shape}")
        if mask is None and before is None:
            return None
        mask = xp.ones((B, T), int) if mask is None else (mask != 0).astype(int)
        before = xp.ones((B, past), int) if before is None else before
        return xp.concatenate([before, mask], axis=1)

    def new_state(self, B):
        """The state before the first token of B texts."""
        return State([block.new_state(B, self.block_size) for block in self.blocks])

    def flops_per_token(self):
        """FLOPs to train on one token: 6 per weight in a matrix product, and what the mixers add.

        A weight takes part in one multiplication and one addition forward, and in two of each
        backward: once for the gradient of the input, once for its own. Tables are looked up, which
        costs nothing, but the head multiplies by the embedding's. Source: Kaplan et al. 2020, 2.1.
        """
        kinds, weights = kinds_of(self), self.embedding.weight.size
        for name, p in self.named_parameters().items():
            weights += p.size if kinds[name] == HIDDEN else 0
        return 6 * weights + sum(b.mixer.flops(self.config.block_size) for b in self.blocks)


def positions(mask, past, T):
    """The positions of T new tokens behind `past` others: a slice, or an array (B, T) with padding.

    With a mask (B, past + T), where 0 marks padding, only real tokens are counted, from 0 on: their
    cumulative sum, less one. Padding in front of the first token gets position 0.
    """
    if mask is None:
        return slice(past, past + T)
    xp = module_of(mask)
    return xp.clip(xp.cumsum(mask, axis=1) - 1, 0, None)[:, past:]
