"""Convolution as a layer, and as a mixer: every position sees a few positions before it."""

import math

from minigpt.engine.arrays import module_of
from minigpt.engine.convolution import conv1d, conv2d
from minigpt.engine.ops import concatenate, split, tanh
from minigpt.engine.recurrence import sigmoid
from minigpt.nn.layers import Linear
from minigpt.nn.module import Mixer, Module, constant, normal
from minigpt.nn.recipe import Recipe, last_inputs, without_padding

SIZE = 4  # of a causal convolution's kernel; see ConvolutionalModel


class Conv(Module):
    """conv2d of x (B, Y, X, C), or conv1d of x (B, T, C): size (K, K) or (K,); options as there."""

    def __init__(self, size, n_in, n_out, rng, **options):
        fan_in = math.prod(size) * n_in
        self.weight = normal(rng, (*size, n_in, n_out), (2 / fan_in) ** 0.5)  # He et al. 2015
        self.bias = constant(n_out, 0.0)
        self.formula, self.options = (conv1d if len(size) == 1 else conv2d), options

    def forward(self, x):
        return self.formula(x, self.weight, self.bias, **self.options)


class CausalConv(Mixer):
    """y = (tanh(a) * sigmoid(b)) w, a and b from the inputs 0, d, ..., (K - 1) d positions back.

    b decides how much of a passes. x (B, T, C) -> y (B, T, C), state: the last (K - 1) d inputs,
    (B, (K - 1) d, C). Padding counts as zeros.
    Source: van den Oord et al. 2016, arXiv 1609.03499, section 2.3.
    """

    title = "convolution"

    def __init__(self, n_embd, size, dilation, rng, out_std=0.02):
        self.conv = Conv((size,), n_embd, 2 * n_embd, rng, dilation=dilation)
        self.out = Linear(n_embd, n_embd, rng, std=out_std)
        self.reach = (size - 1) * dilation

    def forward(self, x, mask=None, state=None):
        x = without_padding(x, mask)
        past = self.new_state(len(x)) if state is None else state
        a, b = split(self.conv(concatenate([past, x], 1)), 2, 2)
        y = self.out(tanh(a) * sigmoid(b))
        return y, None if state is None else last_inputs(past, x, mask)

    def new_state(self, B, block_size=None):
        """Zeros, which stand before the first token."""
        w = self.out.weight.data
        return module_of(w).zeros((B, self.reach, len(w)), w.dtype)


class ConvolutionalModel(Recipe):
    """The language model whose mixers are causal convolutions.

    The dilations are 1, 4, 16, ...: each block reaches SIZE times as far back as the one before it.
    Together the n_layer blocks reach the last SIZE^n_layer inputs, each on exactly one path.
    Source: van den Oord et al. 2016; Kalchbrenner et al. 2016, arXiv 1610.10099.
    """

    @classmethod
    def mixer(cls, config, i, rng):
        return CausalConv(config.n_embd, SIZE, SIZE**i, rng, config.out_std)
