"""A language model: embedding, blocks, head. The mixers decide what kind it is."""

from minigpt.engine.device import module_of
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
    """What a model remembers of the tokens read so far: each mixer's state; how many positions,
    padding included; their mask (B, length), None without padding."""

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
        end = past + ids.shape[1]
        if end > self.block_size:
            size = f"block_size = {self.block_size} tokens"
            raise ValueError(f"model: expected at most {size}, got {end}; start a new state")
        mask, positions = self._places(ids, mask, past, state and state.mask)
        x = self.dropout(self.embedding(ids) + self.position(positions))
        for i, block in enumerate(self.blocks):
            x, after = block(x, mask, state and state.mixers[i])
            if state:
                state.mixers[i] = after
        if state:
            state.mask, state.length = mask, end
        logits = matmul(self.norm(x), transpose(self.embedding.weight))
        return (logits, state) if state else logits

    def _places(self, ids, mask, past, before):
        """-> the mask of past and new tokens together, None if none is padding; the new positions.

        Real tokens are numbered from 0; padding in front of them has position 0.
        """
        xp, (B, T) = module_of(ids), ids.shape
        if mask is not None and mask.shape != (B, T):
            raise ValueError(f"model: expected a mask of shape {(B, T)}, got {mask.shape}")
        if mask is None and before is None:
            return None, slice(past, past + T)
        mask = xp.ones((B, T), int) if mask is None else mask
        before = xp.ones((B, past), int) if before is None else before
        mask = xp.concatenate([before, mask], axis=1)
        return mask, xp.clip(xp.cumsum(mask, axis=1) - 1, 0, None)[:, past:]

    def new_state(self, B):
        """The state before the first token of B texts."""
        return State([block.mixer.new_state(B, self.block_size) for block in self.blocks])
