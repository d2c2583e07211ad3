"""A language model: embedding, blocks, head. The mixers decide what kind it is."""

import sys
from functools import partial

from minigpt.engine.arrays import module_of
from minigpt.engine.ops import matmul, transpose
from minigpt.engine.recipe import relu2, token_shift
from minigpt.nn.attention import positions
from minigpt.nn.layers import MLP, Dropout, Embedding, LayerNorm, last_inputs, without_padding
from minigpt.nn.module import Module


class Block(Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)).  (B, T, C) -> (B, T, C), state

    shift: token_shift, or None; by it the MLP sees the two tokens before. The state is the mixer's
    and the last two inputs of the MLP.
    """

    def __init__(self, norm1, mixer, norm2, mlp, shift=None):
        self.norm1, self.mixer, self.norm2, self.mlp, self.shift = norm1, mixer, norm2, mlp, shift

    def forward(self, x, mask=None, state=None):
        mixed, past = state or (None, None)
        y, mixed = self.mixer(self.norm1(x), mask, mixed)
        x = x + y
        h = self.norm2(x)
        if self.shift:
            h, past = self.shifted(h, mask, past)
        return x + self.mlp(h), state and (mixed, past)

    def shifted(self, x, mask, past):
        """x behind the two inputs `past`, padding being zeros -> (y, the last two that are real)"""
        x = without_padding(x, mask)
        return self.shift(x, past), None if past is None else last_inputs(past, x, mask)

    def new_state(self, B, block_size):
        """The mixer's empty state, and zeros."""
        weight, past = self.norm1.weight.data, None
        if self.shift:
            past = module_of(weight).zeros((B, 2, len(weight)), weight.dtype)
        return self.mixer.new_state(B, block_size), past


def stack(c, rng, mixer, activation=relu2, shift=token_shift):
    """The blocks of a model of config c; mixer(i) makes that of block i."""
    norm = partial(LayerNorm, c.n_embd, c.layer_norm_epsilon)
    mlp = partial(MLP, c.n_embd, c.n_inner or 4 * c.n_embd, rng, activation, c.dropout, c.out_std)
    return [Block(norm(), mixer(i), norm(), mlp(), shift) for i in range(c.n_layer)]


class State:
    """What a model remembers of the tokens read so far: each block's state; how many positions,
    padding included; their mask (B, length), None without padding."""

    def __init__(self, blocks):
        self.blocks, self.mask, self.length = blocks, None, 0


class LanguageModel(Module):
    """Logits of the next token at every position, the head tied to the embedding.

    model(ids, mask=None, state=None): ids (B, T) -> logits (B, T, V), or (logits, state) if a state
    from new_state(B) came in, which the call updates. mask (B, T), 1 = token, 0 = padding: padded
    positions are never attended and do not count as positions. Raises ValueError past block_size,
    which is how many positions fit: recurrence and convolution have no limit.
    Source: Radford et al. 2018; tied head: Press & Wolf 2017.
    """

    def __init__(self, config, blocks, rng, position=None):
        self.config = c = config
        norm = LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.embedding, self.position = Embedding(c.vocab_size, c.n_embd, rng), position
        self.dropout, self.blocks, self.norm = Dropout(c.dropout, rng), blocks, norm
        limited = position or any(block.mixer.limited for block in blocks)
        self.block_size = c.block_size if limited else sys.maxsize

    def forward(self, ids, mask=None, state=None):
        past = state.length if state else 0
        end = past + ids.shape[1]
        if end > self.block_size:
            size = f"block_size = {self.block_size} tokens"
            raise ValueError(f"model: expected at most {size}, got {end}; start a new state")
        mask = self._mask(ids, mask, past, state and state.mask)
        x = self.embedding(ids)
        if self.position:
            x = x + self.position(positions(mask, past, ids.shape[1]))
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x, after = block(x, mask, state and state.blocks[i])
            if state:
                state.blocks[i] = after
        if state:
            state.mask, state.length = mask, end
        logits = matmul(self.norm(x), transpose(self.embedding.weight))
        return (logits, state) if state else logits

    def _mask(self, ids, mask, past, before):
        """-> the mask of past and new tokens together, None if none is padding"""
        xp, (B, T) = module_of(ids), ids.shape
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
        """FLOPs to train on one token: 6 per weight in a matrix product (2 forward, 4 backward),
        and what the mixers do besides. Source: Kaplan et al. 2020, section 2.1."""
        weights = sum(p.size for p in self.named_parameters().values() if p.ndim >= 2)
        weights -= self.position.weight.size if self.position else 0
        return 6 * weights + sum(b.mixer.flops(self.config.block_size) for b in self.blocks)
