"""Every language model by its name: one block, three mechanisms."""

from minigpt.nn.gpt import GPT, GPT2
from minigpt.nn.language import LanguageModel, stack

MODELS = ("gpt", "gpt2", "lstm", "gru", "rnn", "conv")


def language_model(name, config, rng):
    """The model of this name: the recipe's block with attention, recurrence or convolution.

    Convolutions reach SIZE times as far from block to block (van den Oord et al. 2016; Kalchbrenner
    et al. 2016, arXiv 1610.10099). Only the mechanism that is asked for is imported.
    """
    if name.startswith("gpt"):  # gpt2-xl, gpt3-175b and the like: one form in many sizes
        return (GPT if name == "gpt" else GPT2)(config, rng)
    if name == "conv":
        from minigpt.nn.convolution import SIZE, CausalConv

        def mixer(i):
            return CausalConv(config.n_embd, SIZE, SIZE**i, rng, config.out_std)
    else:
        from minigpt.nn.recurrence import Recurrence

        def mixer(i):
            return Recurrence(name, config.n_embd, config.n_embd, rng)

    return LanguageModel(config, stack(config, rng, mixer), rng)
