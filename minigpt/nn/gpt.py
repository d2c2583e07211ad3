"""GPT, the recipe, GPT-2, the form it comes from, and GPT-3, which looks near in every other block.

GPT-2 (Radford et al. 2019, section 2.3): pre-LayerNorm, learned positions, tanh-GELU, tied head,
residual projections that start smaller by 1 / sqrt(2 n_layer). Attention weights are not dropped.
"""

from dataclasses import dataclass

import numpy as np

from minigpt.engine.functional import gelu
from minigpt.engine.recipe import relu2, rotary, token_shift
from minigpt.nn.attention import Attention
from minigpt.nn.language import LanguageModel, stack
from minigpt.nn.layers import Embedding

WINDOW = 256  # what GPT-3's banded blocks see; the paper gives no number, this one is ours


@dataclass
class GPTConfig:
    """The shape of a model, with nanoGPT's names; n_inner None means 4 n_embd.

    window: every second block sees the last so many places only, padding included; None: all do.
    """

    vocab_size: int
    block_size: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    n_inner: int | None = None
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    window: int | None = None

    @property
    def out_std(self):
        """Of the first weights that end in the residual stream."""
        return 0.02 / (2 * self.n_layer) ** 0.5

    def __post_init__(self):
        for name in "vocab_size block_size n_layer n_head n_embd n_inner window".split():
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.n_embd % self.n_head:
            expected = f"a multiple of n_head = {self.n_head}, got {self.n_embd}"
            near = -(-self.n_embd // self.n_head) * self.n_head
            raise ValueError(f"n_embd: expected {expected}; try {near}")


class GPT(LanguageModel):
    """The recipe that measurement prefers: GPT-2's form, but queries and keys turn with their
    positions, max(x, 0)^2 stands for GELU, and an MLP also sees the two tokens before.

    Weights are drawn from the Generator rng. The ablation in README says what each part brings.
    """

    def __init__(self, c, rng, turn=rotary, activation=relu2, shift=token_shift):
        def mixer(i):
            window = c.window if i % 2 else None
            return Attention(c.n_embd, c.n_head, rng, window, c.dropout, c.out_std, turn)

        blocks = stack(c, rng, mixer, activation, shift)
        position = None if turn else Embedding(c.block_size, c.n_embd, rng)
        super().__init__(c, blocks, rng, position)


class GPT2(GPT):
    """GPT-2's own form, which Hugging Face's weights fit."""

    def __init__(self, config, rng):
        super().__init__(config, rng, turn=None, activation=gelu, shift=None)


class GPT3(GPT2):
    """GPT-3 with the names of the survey: blocks are dense and banded in turn, the first is dense.

    What is None is derived: all heads are num_heads, num_intermediate_size is 4 model_dim.
    Raises ValueError if the three numbers of heads differ. Source: Brown et al. 2020, section 2.1.
    """

    def __init__(
        self, vocab_size, model_dim, num_layers, num_heads,
        num_attention_heads=None, num_intermediate_size=None, num_heads_per_decoder_layer=None,
        *, context=2048, window=WINDOW, rng=None,
    ):  # fmt: skip
        self.vocab_size, self.model_dim, self.num_layers = vocab_size, model_dim, num_layers
        inner = 4 * model_dim if num_intermediate_size is None else num_intermediate_size
        heads = num_heads, num_attention_heads, num_heads_per_decoder_layer
        heads = [num_heads if n is None else n for n in heads]
        if len(set(heads)) > 1:
            names = "num_heads, num_attention_heads and num_heads_per_decoder_layer"
            got = f"{', '.join(map(str, heads))}; leave the last two out"
            raise ValueError(f"GPT3: expected {names} to agree, got {got}")
        self.num_heads, self.num_attention_heads, self.num_heads_per_decoder_layer = heads
        self.num_intermediate_size = inner
        shape = context, num_layers, num_heads, model_dim, inner
        config = GPTConfig(vocab_size, *shape, window=window)
        super().__init__(config, np.random.default_rng(1337) if rng is None else rng)

    def forward(self, input_ids, attention_mask=None, state=None):
        return super().forward(input_ids, attention_mask, state)
