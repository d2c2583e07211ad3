"""The papers' models: their sizes, counted without building them, and Hugging Face's names."""

from minigpt.nn.convolution import SIZE
from minigpt.nn.gpt import WINDOW, GPTConfig
from minigpt.nn.recurrence import CELLS

VOCABULARY = 50257  # tokens of GPT-2's byte-level BPE, GPT-3's too

# n_layer, n_head, n_embd.  Source: Radford et al. 2019, table 2; heads as in the released models
GPT2_SIZES = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
# Source: Brown et al. 2020, table 2.1
GPT3_SIZES = {
    "gpt3-125m": (12, 12, 768),
    "gpt3-350m": (24, 16, 1024),
    "gpt3-760m": (24, 16, 1536),
    "gpt3-1.3b": (24, 16, 2048),  # the table has 24 heads of 128, which would be 3072 wide
    "gpt3-2.7b": (32, 32, 2560),
    "gpt3-6.7b": (32, 32, 4096),
    "gpt3-13b": (40, 40, 5120),  # the table has 5140, which 40 heads of 128 do not fill
    "gpt3-175b": (96, 96, 12288),
}

PRESETS = {name: GPTConfig(VOCABULARY, 1024, *size) for name, size in GPT2_SIZES.items()}
for name, size in GPT3_SIZES.items():
    PRESETS[name] = GPTConfig(VOCABULARY, 2048, *size, window=WINDOW)

# Mixer of a model: its name, how many C x C matrices, how many vectors of C
MIXERS = {kind: ("recurrence", 2 * gates, 2 * gates) for kind, (_, gates, _) in CELLS.items()}
MIXERS["conv"] = "convolution", 2 * SIZE + 1, 3  # the kernel is SIZE x C x 2C


def counted(model, c):
    """-> {part: how many numbers it learns}, how many of them in the blocks' matrices, FLOPs per
    token, in training, of attention over the context, for the model of this name and config c

    GPT-2 learns V C + T C + L (12 C^2 + 13 C) + 2 C, with T = block_size and n_inner = 4 C.
    """
    L, C, T, inner = c.n_layer, c.n_embd, c.block_size, c.n_inner or 4 * c.n_embd
    mixer, matrices, vectors = MIXERS.get(model, ("attention", 4, 4))
    parts = {
        "embeddings": c.vocab_size * C,
        "positions": T * C if model.startswith(("gpt2", "gpt3")) else 0,
        mixer: L * (matrices * C * C + vectors * C),
        "MLP": L * (2 * C * inner + inner + C),
        "norms": (4 * L + 2) * C,
    }
    w = min(c.window or T, T)
    seen = (L + 1) // 2 * T + L // 2 * (w * (2 * T - w) // T)  # twice the keys of a query, in all
    flops = 0 if model in MIXERS else 6 * C * seen
    return {k: n for k, n in parts.items() if n}, L * C * (matrices * C + 2 * inner), flops


# Words of our parameter names -> of transformers' GPT2LMHeadModel; weights are (in, out) in both.
HUGGING_FACE = {
    "embedding": "wte", "position": "wpe", "blocks": "h", "norm": "ln_f", "norm1": "ln_1",
    "mixer": "attn", "qkv": "c_attn", "out": "c_proj", "norm2": "ln_2", "up": "c_fc",
    "down": "c_proj",
}  # fmt: skip


def hugging_face_name(name):
    """transformers' name: blocks.0.mixer.out.bias -> transformer.h.0.attn.c_proj.bias"""
    return ".".join(["transformer", *(HUGGING_FACE.get(word, word) for word in name.split("."))])
