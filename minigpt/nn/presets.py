"""The sizes of the papers' models."""

VOCABULARY = 50257  # tokens of GPT-2's byte-level BPE, which GPT-3 uses too

# name: n_layer, n_head, n_embd, block_size.
# Source: Radford et al. 2019, table 2; the numbers of heads are those of the released models.
GPT2_SIZES = {
    "gpt2-mini": (4, 4, 128, 64),  # ours: nanoGPT's size for a CPU, which learns in minutes
    "gpt2": (12, 12, 768, 1024),
    "gpt2-medium": (24, 16, 1024, 1024),
    "gpt2-large": (36, 20, 1280, 1024),
    "gpt2-xl": (48, 25, 1600, 1024),
}
# Source: Brown et al. 2020, table 2.1.
GPT3_SIZES = {
    "gpt3-125m": (12, 12, 768, 2048),
    "gpt3-350m": (24, 16, 1024, 2048),
    "gpt3-760m": (24, 16, 1536, 2048),
    "gpt3-1.3b": (24, 16, 2048, 2048),  # the table has 24 heads of 128, which would be 3072 wide
    "gpt3-2.7b": (32, 32, 2560, 2048),
    "gpt3-6.7b": (32, 32, 4096, 2048),
    "gpt3-13b": (40, 40, 5120, 2048),  # the table has 5140, which 40 heads of 128 do not fill
    "gpt3-175b": (96, 96, 12288, 2048),
}
SIZES = GPT2_SIZES | GPT3_SIZES
