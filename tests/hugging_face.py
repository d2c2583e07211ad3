"""The names that Hugging Face gives to the weights of a GPT-2."""

# Each word of our parameters' names, and what transformers' GPT2LMHeadModel calls it. The weights
# are stored as (in, out) in both.
HUGGING_FACE = {
    "embedding": "wte", "position": "wpe", "blocks": "h", "norm": "ln_f", "norm1": "ln_1",
    "mixer": "attn", "qkv": "c_attn", "out": "c_proj", "norm2": "ln_2", "up": "c_fc",
    "down": "c_proj",
}  # fmt: skip


def hugging_face_name(name):
    """transformers' name: blocks.0.mixer.out.bias -> transformer.h.0.attn.c_proj.bias"""
    words = [HUGGING_FACE.get(word, word) for word in name.split(".")]
    return ".".join(["transformer", *words])
