"""The recurrence mixer: one state, rewritten at every position, carries what was read."""

import numpy as np

from minigpt.engine.arrays import module_of, to_numpy
from minigpt.engine.autograd import raw
from minigpt.engine.recurrence import gru, lstm, rnn
from minigpt.nn.module import Mixer, constant, normal
from minigpt.nn.recipe import Recipe

CELLS = {"rnn": (rnn, 1, 1), "lstm": (lstm, 4, 2), "gru": (gru, 3, 1)}  # formula, gates, states


class Recurrence(Mixer):
    """A layer of RNN, LSTM or GRU cells, as `kind` says.  x (B, T, I) -> y (B, T, H), state

    The state is a tuple of arrays (B, H): the last h, and of an LSTM also the last c. mask
    (B, .. + T) has 0 for padding, which the state skips. No gradient flows through a state.
    An LSTM starts with its forget gates open, so that it remembers before it has learned what to
    forget. Source: Jozefowicz et al. 2015, section 2.2.
    """

    title = "recurrence"

    def __init__(self, kind, n_in, n_hidden, rng):
        self.formula, gates, self.states = CELLS[kind]
        std = (3 * n_hidden) ** -0.5  # that of torch's uniform draws from -H^-0.5 to H^-0.5
        self.weight_ih = normal(rng, (n_in, gates * n_hidden), std)
        self.weight_hh = normal(rng, (n_hidden, gates * n_hidden), std)
        self.bias_ih = constant(gates * n_hidden, 0.0)
        self.bias_hh = constant(gates * n_hidden, 0.0)
        if kind == "lstm":
            self.bias_ih.data[n_hidden : 2 * n_hidden] = 1

    def forward(self, x, mask=None, state=None):
        before = state or self.new_state(len(x))
        mask = None if mask is None else mask[:, -x.shape[1] :]
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        y = self.formula(x, *before, *weights, mask)
        y, *cells = y if self.states > 1 else (y,)
        if state is None:
            return y, None
        return y, (raw(y)[:, -1].copy(), *(raw(c).copy() for c in cells))

    def new_state(self, B, block_size=None):
        """Zeros."""
        w = self.weight_hh.data
        return tuple(module_of(w).zeros((B, len(w)), w.dtype) for _ in range(self.states))

    def to_torch(self, layer=0):
        """{torch.nn's name: array} of this layer, as number `layer` of torch.nn.RNN, LSTM or GRU"""
        named = self.named_parameters().items()
        return {f"{name}_l{layer}": to_numpy(p.data).T.copy() for name, p in named}

    def from_torch(self, arrays, layer=0):
        """The way back: load what a state_dict() of torch.nn.RNN, LSTM or GRU holds."""
        named = {name: np.asarray(arrays[f"{name}_l{layer}"]).T for name in self.named_parameters()}
        self.load_state_dict(named)


class RNN(Recipe):
    kind = "rnn"  # of the cells that are its mixers

    @classmethod
    def mixer(cls, config, i, rng):
        return Recurrence(cls.kind, config.n_embd, config.n_embd, rng)


class LSTM(RNN):
    kind = "lstm"


class GRU(RNN):
    kind = "gru"
