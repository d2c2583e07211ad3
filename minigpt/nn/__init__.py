"""Layers and models, made of the engine's formulas. A table gives each model's name its class.

A class is imported when it is asked for: whoever trains a GPT-2 loads no convolution.
"""

from minigpt.messages import look_up
from minigpt.nn.presets import GPT2_SIZES, GPT3_SIZES

FAMILIES = {  # the recipe's block around three mechanisms; they write, and they classify
    "gpt": "minigpt.nn.recipe:GPT",
    "lstm": "minigpt.nn.recurrence:LSTM",
    "gru": "minigpt.nn.recurrence:GRU",
    "rnn": "minigpt.nn.recurrence:RNN",
    "conv": "minigpt.nn.convolution:ConvolutionalModel",
}
PAPERS = dict.fromkeys(GPT2_SIZES, "minigpt.nn.gpt:GPT2")  # the papers' own form; they only write
PAPERS |= dict.fromkeys(GPT3_SIZES, "minigpt.nn.gpt:BandedGPT")
MODELS = FAMILIES | PAPERS


def model_class(name):
    """The class of the language model of this name: model_class(name)(config, rng) builds it."""
    return look_up(MODELS, name, "model")
