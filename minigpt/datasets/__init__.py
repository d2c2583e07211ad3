"""Data of every kind, as the arrays that a model learns from. Here every tokenizer has its name.

The names of data stand beside what makes it: text.TEXTS, tasks.TASKS, examples.EXAMPLES.
"""

from minigpt.messages import look_up

TOKENIZERS = {
    "char": "minigpt.datasets.tokenizers:CharTokenizer",
    "bpe": "minigpt.datasets.bpe:BPETokenizer",
}
# No choice of --tokenizer: it comes with other people's models.
KINDS = TOKENIZERS | {"special": "minigpt.datasets.bpe:SpecialTokenizer"}


def tokenizer_class(name):
    """The class of the tokenizer of this name. It has what CharTokenizer has: vocab_size, train,
    encode, decode, decoder, unknown, extended, config and from_config."""
    return look_up(TOKENIZERS, name, "tokenizer")


def tokenizer_from(config):
    """The tokenizer whose config() this is.  Raises ValueError for an unknown kind."""
    return look_up(KINDS, config["kind"], "tokenizer").from_config(config)
