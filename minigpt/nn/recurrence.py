"""The recurrence mixer: one state, rewritten at every position, carries what was read."""

import numpy as np

from minigpt.engine.arrays import module_of, to_numpy
from minigpt.engine.autograd import raw
from minigpt.engine.recurrence import gru, lstm, rnn
from minigpt.nn.module import Mixer, constant, normal

CELLS = {"rnn": (rnn, 1, 1), "lstm": (lstm, 4, 2), "gru": (gru, 3, 1)}  # formula, gates, states


class Recurrence(Mixer):
    """A layer of RNN, LSTM or GRU, `kind` says which.  x (B, T, I) -> y (B, T, H), state

    The state is the last h, of an LSTM h and c, a tuple of arrays (B, H); None: zeros, and none
    comes back. mask (B, .. + T), 0 = padding, which the state skips. No gradient flows through a
    state. An LSTM begins with forget gates open (Jozefowicz et al. 2015, section 2.2).
    """

    def __init__(self, kind, n_in, n_hidden, rng):
        self.formula, gates, self.states = CELLS[kind]
        std = (3 * n_hidden) ** -0.5  # as torch's uniform +-H^-0.5
        self.weight_ih = normal(rng, (n_in, gates * n_hidden), std)
        self.weight_hh = normal(rng, (n_hidden, gates * n_hidden), std)
        self.bias_ih, self.bias_hh = (constant(gates * n_hidden, 0.0) for _ in range(2))
        if kind == "lstm":
            self.bias_ih.data[n_hidden : 2 * n_hidden] = 1

    def forward(self, x, mask=None, state=None):
        before = state or self.new_state(len(x))
        mask = None if mask is None else mask[:, -x.shape[1] :]
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        y = self.formula(x, *before, *weights, mask)
        y, *cells = y if self.states > 1 else (y,)
        return y, state and (raw(y)[:, -1].copy(), *(raw(c).copy() for c in cells))

    def new_state(self, B, block_size=None):
        """Zeros."""
        w = self.weight_hh.data
        return tuple(module_of(w).zeros((B, len(w)), w.dtype) for _ in range(self.states))

    def to_torch(self, layer=0):
        """{torch.nn's name: array} of this layer, as number `layer` of torch.nn.RNN, LSTM or GRU"""
        named = self.named_parameters().items()
        return {f"{name}_l{layer}": to_numpy(p.data).T.copy() for name, p in named}

    def from_torch(self, arrays, layer=0):
        """The other way; arrays as of state_dict() there, NumPy's or what NumPy can read."""
        named = {name: np.asarray(arrays[f"{name}_l{layer}"]).T for name in self.named_parameters()}
        self.load_state_dict(named)
