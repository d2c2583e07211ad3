"""GPT, the recipe, and GPT-2, the form it comes from: config, counts, Hugging Face's names.

GPT-2 (Radford et al. 2019, section 2.3): pre-LayerNorm, learned positions, tanh-GELU, tied head,
residual projections that start smaller by 1 / sqrt(2 n_layer). Attention weights are not dropped.
"""

from dataclasses import dataclass

from minigpt.engine.functional import gelu, relu2, rotary, token_shift
from minigpt.nn.attention import Attention
from minigpt.nn.language import LanguageModel, stack
from minigpt.nn.layers import Embedding

# Words of our parameter names -> of transformers' GPT2LMHeadModel; weights are (in, out) in both.
HUGGING_FACE = {
    "embedding": "wte", "position": "wpe", "blocks": "h", "norm": "ln_f", "norm1": "ln_1",
    "mixer": "attn", "qkv": "c_attn", "out": "c_proj", "norm2": "ln_2", "up": "c_fc",
    "down": "c_proj",
}  # fmt: skip


@dataclass
class GPTConfig:
    """The shape of a model, with nanoGPT's names; n_inner None means 4 n_embd."""

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
        """Of the first weights that end in the residual stream."""
        return 0.02 / (2 * self.n_layer) ** 0.5

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            expected = f"a multiple of n_head = {self.n_head}, got {self.n_embd}"
            near = -(-self.n_embd // self.n_head) * self.n_head
            raise ValueError(f"n_embd: expected {expected}; try {near}")


class GPT(LanguageModel):
    """The recipe that measurement prefers: GPT-2's form, but queries and keys turn with their
    positions, max(x, 0)^2 stands for GELU, and an MLP also sees the two tokens before.

    Weights are drawn from the Generator rng. The ablation in README says what each part brings.
    """

    def __init__(self, config, rng, turn=rotary, activation=relu2, shift=token_shift):
        c = config

        def mixer(i):
            return Attention(c.n_embd, c.n_head, rng, p=c.dropout, out_std=c.out_std, turn=turn)

        blocks = stack(c, rng, mixer, activation, shift)
        position = None if turn else Embedding(c.block_size, c.n_embd, rng)
        super().__init__(c, blocks, rng, position)


class GPT2(GPT):
    """GPT-2's own form, which Hugging Face's weights fit."""

    def __init__(self, config, rng):
        super().__init__(config, rng, turn=None, activation=gelu, shift=None)


def hugging_face_name(name):
    """transformers' name: blocks.0.mixer.out.bias -> transformer.h.0.attn.c_proj.bias"""
    return ".".join(["transformer", *(HUGGING_FACE.get(word, word) for word in name.split("."))])
