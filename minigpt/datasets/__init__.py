"""Data of every kind, as the arrays that a model learns from. Here every tokenizer has its name.

The names of data stand beside what makes it: text.TEXTS, tasks.TASKS, examples.EXAMPLES.
"""

from minigpt.messages import look_up

TOKENIZERS = {
    "char": "minigpt.datasets.tokenizers:CharTokenizer",
    "bpe": "minigpt.datasets.bpe:BPETokenizer",
}


def tokenizer_class(name):
    """The class of the tokenizer of this name; it has train, from_config, encode and decode."""
    return look_up(TOKENIZERS, name, "tokenizer")


def tokenizer_from(config):
    """The tokenizer whose config() this is.  Raises ValueError for an unknown kind."""
    return tokenizer_class(config["kind"]).from_config(config)
