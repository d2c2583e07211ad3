"""GPT-2, from which the other models derive, and GPT-3, half of whose blocks see only a window.

GPT-2 (Radford et al. 2019, section 2.3): a norm in front of every mixer and MLP, learned positions,
GELU, the head shared with the embedding, and projections into the residual stream that start
smaller by 1 / sqrt(2 n_layer), so that the sum of 2 n_layer of them starts at the size of one.
"""

from dataclasses import dataclass

import numpy as np

from minigpt.messages import check
from minigpt.nn.attention import Attention
from minigpt.nn.language import Block, LanguageModel, positions
from minigpt.nn.layers import Embedding

WINDOW = 256  # what GPT-3's banded blocks see; the paper gives no number, this one is ours


@dataclass
class GPTConfig:
    """The shape of a model, with nanoGPT's names. n_inner, the MLP's width, is 4 n_embd if None."""

    vocab_size: int
    block_size: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    n_inner: int | None = None
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5

    @property
    def out_std(self):
        """The standard deviation of the first weights of projections into the residual stream."""
        return 0.02 / (2 * self.n_layer) ** 0.5

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_inner"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.n_embd % self.n_head:
            expected = f"a multiple of n_head = {self.n_head}, got {self.n_embd}"
            pairs = 2 * self.n_head  # a head of an even width, which rotation needs
            near = -(-self.n_embd // pairs) * pairs
            raise ValueError(f"n_embd: expected {expected}; try {near}")


class GPT2(LanguageModel):
    """GPT-2's own form, which Hugging Face's weights fit. Its weights are drawn from rng.

    Attention does not know in which order its keys come, so every position has a vector of its own,
    learned like the tokens', which is added to the token's.
    """

    heads = True

    def __init__(self, config, rng):
        c = config
        blocks = []
        for _ in range(c.n_layer):
            attention = Attention(c.n_embd, c.n_head, rng, c.dropout, c.out_std)
            blocks.append(Block(c, attention, rng))
        position = Embedding(c.block_size, c.n_embd, rng)
        super().__init__(c, blocks, rng)
        self.position = position

    def embed(self, ids, mask, state):
        past = state.length if state else 0
        return self.embedding(ids) + self.position(positions(mask, past, ids.shape[1]))


class BandedGPT(GPT2):
    """GPT-3's form: GPT-2's, but in every second block a position sees only the last `window`.

    Padding fills places of the window too. None: all blocks see everything.
    Source: Brown et al. 2020, section 2.1.
    """

    def __init__(self, config, rng, window=WINDOW):
        check(window is None or window >= 1, "window", "at least 1", window, "or None, for all")
        super().__init__(config, rng)
        self.window = window
        for block in self.blocks[1::2]:
            block.mixer.window = window


class GPT3(BandedGPT):
    """GPT-3 with the argument names of the survey that chapter 11 of the tour discusses.

    The three arguments that are None may be left out: the two numbers of heads are then num_heads,
    and num_intermediate_size is 4 model_dim. Raises ValueError if the numbers of heads differ.
    """

    def __init__(
        self, vocab_size, model_dim, num_layers, num_heads,
        num_attention_heads=None, num_intermediate_size=None, num_heads_per_decoder_layer=None,
        *, context=2048, window=WINDOW, rng=None,
    ):  # fmt: skip
        heads = [num_heads, num_attention_heads, num_heads_per_decoder_layer]
        heads = [num_heads if n is None else n for n in heads]
        if len(set(heads)) > 1:
            names = "num_heads, num_attention_heads and num_heads_per_decoder_layer"
            got = f"{', '.join(map(str, heads))}; leave the last two out"
            raise ValueError(f"GPT3: expected {names} to agree, got {got}")
        inner = 4 * model_dim if num_intermediate_size is None else num_intermediate_size
        config = GPTConfig(vocab_size, context, num_layers, num_heads, model_dim, inner)
        super().__init__(config, np.random.default_rng(1337) if rng is None else rng, window)
        self.vocab_size, self.model_dim, self.num_layers = vocab_size, model_dim, num_layers
        self.num_heads = self.num_attention_heads = self.num_heads_per_decoder_layer = num_heads
        self.num_intermediate_size = inner

    def forward(self, input_ids, attention_mask=None, state=None):
        return super().forward(input_ids, attention_mask, state)
