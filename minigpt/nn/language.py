"""A language model: embedding, blocks, head. The mixers decide what kind it is."""

from minigpt.engine.autograd import module_of
from minigpt.engine.ops import matmul, transpose
from minigpt.nn.layers import Dropout, Embedding
from minigpt.nn.module import Module


class Block(Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)).  (B, T, C) -> (B, T, C), the mixer's state"""

    def __init__(self, norm1, mixer, norm2, mlp):
        self.norm1, self.mixer, self.norm2, self.mlp = norm1, mixer, norm2, mlp

    def forward(self, x, mask=None, state=None):
        y, state = self.mixer(self.norm1(x), mask, state)
        x = x + y
        return x + self.mlp(self.norm2(x)), state


class State:
    """What a model remembers of the tokens read so far: each mixer's state, and the mask.

    `length` counts positions, padding included; `mask` (B, length) is None without padding.
    """

    def __init__(self, mixers):
        self.mixers, self.mask, self.length = mixers, None, 0


class LanguageModel(Module):
    """Logits of the next token at every position, the head tied to the embedding.

    model(ids, mask=None, state=None): ids (B, T) -> logits (B, T, V), or (logits, state) if a state
    from new_state(B) came in, which the call updates. mask (B, T), 1 = token, 0 = padding: padded
    positions are never attended and do not count as positions. Raises ValueError past block_size.
    Source: Radford et al. 2018; tied head: Press & Wolf 2017.
    """

    def __init__(self, vocab_size, block_size, n_embd, blocks, norm, rng, p=0.0):
        self.embedding = Embedding(vocab_size, n_embd, rng)
        self.position = Embedding(block_size, n_embd, rng)
        self.dropout, self.blocks, self.norm = Dropout(p, rng), blocks, norm
        self.block_size = block_size

    def forward(self, ids, mask=None, state=None):
        past = state.length if state else 0
        if past + ids.shape[1] > self.block_size:
            raise ValueError(
                f"model: expected at most block_size = {self.block_size} tokens, "
                f"got {past + ids.shape[1]}; pass fewer, or start a new state"
            )
        mask = self._whole_mask(ids, mask, state)
        x = self.dropout(self.embedding(ids) + self.position(self._positions(ids, mask, past)))
        for i, block in enumerate(self.blocks):
            x, after = block(x, mask, state.mixers[i] if state else None)
            if state:
                state.mixers[i] = after
        if state:
            state.mask, state.length = mask, past + ids.shape[1]
        logits = matmul(self.norm(x), transpose(self.embedding.weight))
        return (logits, state) if state else logits

    def _whole_mask(self, ids, mask, state):
        """The mask of past and new tokens together; None if nothing is padded."""
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"model: expected a mask of shape {ids.shape}, got {mask.shape}")
        past, before = (state.length, state.mask) if state else (0, None)
        if mask is None and before is None:
            return None
        xp, (B, T) = module_of(ids), ids.shape
        before = xp.ones((B, past), int) if before is None else before
        return xp.concatenate([before, xp.ones((B, T), int) if mask is None else mask], axis=1)

    def _positions(self, ids, mask, past):
        """Real tokens are numbered from 0; padding in front of them has position 0."""
        xp = module_of(ids)
        if mask is None:
            return xp.arange(past, past + ids.shape[1])
        return xp.clip(xp.cumsum(mask, axis=1) - 1, 0, None)[:, past:]

    def new_state(self, B):
        """The state before the first token of B texts."""
        return State([block.mixer.new_state(B, self.block_size) for block in self.blocks])
