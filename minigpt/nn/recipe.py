"""The recipe: what measurement adds to GPT-2's form. The ablation in README says what each brings.

- Rotary positions: queries and keys turn with their positions, so that their product depends on how
  far they are apart. No position needs a vector of its own.
- Token shift: mixer and MLP also see some channels of the five tokens before.
- Embeddings of n-grams (ngrams.py): what the last few tokens say together.
- ReLU^2 in the place of GELU.

Recurrence and convolution use the same block, and bring their own mixer.
"""

from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import raw
from minigpt.engine.ops import split
from minigpt.engine.recipe import LAGS, relu2, rotary, token_shift
from minigpt.nn.attention import Attention
from minigpt.nn.language import Block, LanguageModel, positions
from minigpt.nn.ngrams import BEFORE, NGrams


def without_padding(x, mask):
    """x (B, T, C) with zeros where the last T columns of the mask have a 0."""
    return x if mask is None else x * mask[:, -x.shape[1] :, None].astype(x.dtype)


def last_inputs(past, x, mask):
    """The last n real tokens of past (B, n, C), which are all real, and x (B, T, C) -> (B, n, C)"""
    xp, (B, n, _), T = module_of(past), past.shape, x.shape[1]
    whole = xp.concatenate([past, raw(x)], 1)
    if mask is None:
        return whole[:, T:].copy()
    # Every real token's place in `whole`, and -1 for padding. Sorted, the last n of a row are the
    # places of its last n real tokens, still in the order of the text.
    real = xp.concatenate([xp.ones((B, n), int), mask[:, -T:]], 1) != 0
    places = xp.where(real, xp.arange(n + T), -1)
    last = xp.sort(places, 1)[:, -n:]
    return whole[xp.arange(B)[:, None], last].copy()


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned by their positions (see engine/recipe.py)."""

    def __init__(self, n_embd, n_head, rng, p=0.0, out_std=0.02):
        width = n_embd // n_head
        if width % 2:
            expected = f"heads of an even width, got {n_embd} / {n_head} = {width}"
            raise ValueError(f"n_embd: expected {expected}; try {n_embd + n_head}")
        super().__init__(n_embd, n_head, rng, p, out_std)

    def heads(self, x, mask, past):
        (B, T, C), H = x.shape, self.n_head
        z = self.qkv(x).reshape((B, T, 3 * H, C // H))
        qk, v = split(z, [2 * H], 2)
        q, k = split(rotary(qk, positions(mask, past, T)), 2, 2)
        return q, k, v


class RecipeBlock(Block):
    """GPT-2's block with another activation, which all families and classifiers share."""

    def __init__(self, config, mixer, rng, activation=relu2):
        super().__init__(config, mixer, rng, activation)


class ShiftedBlock(RecipeBlock):
    """A block whose mixer and MLP also see the LAGS tokens before each.

    x + mixer(shift(norm(x))), then x + mlp(shift(norm(x))).  x (B, T, C) -> (B, T, C), state
    The state is the mixer's, and the last inputs (B, LAGS, C) of the mixer and of the MLP.
    """

    def forward(self, x, mask=None, state=None):
        mixed, first, second = state or (None, None, None)
        h, first = self.shifted(self.norm1(x), mask, first)
        y, mixed = self.mixer(h, mask, mixed)
        x = x + y
        h, second = self.shifted(self.norm2(x), mask, second)
        return x + self.mlp(h), state and (mixed, first, second)

    def shifted(self, x, mask, past):
        """x behind the inputs `past` -> token_shift of it, and what the next call needs of it"""
        x = without_padding(x, mask)
        return token_shift(x, past, LAGS), None if past is None else last_inputs(past, x, mask)

    def new_state(self, B, block_size):
        """What the mixer remembers at first, and zeros for tokens that were not there."""
        w = self.norm1.weight.data
        first, second = (module_of(w).zeros((B, LAGS, len(w)), w.dtype) for _ in range(2))
        return super().new_state(B, block_size), first, second


class Recipe(LanguageModel):
    """A language model of shifted blocks. Each family says what its mixers are.

    A new mechanism is a subclass with a `mixer`, a line in nn/__init__.py, and one in the table of
    contents, minigpt/__init__.py.
    """

    def __init__(self, config, rng):
        blocks = []
        for i in range(config.n_layer):
            blocks.append(ShiftedBlock(config, self.mixer(config, i, rng), rng))
        super().__init__(config, blocks, rng)
        self.ngrams = NGrams(config.n_embd, rng)

    def embed(self, ids, mask, state):
        """The vector of each token and of the n-grams that end at it.  ids (B, T) -> (B, T, C)

        state.last keeps the last tokens of each text (B, BEFORE, 1), with which later ones go on.
        """
        tokens = without_padding(ids[..., None] + 1, mask)  # (B, T, 1), as 0 stands for no token
        before = state.last if state else self.nothing(len(ids))
        if state:
            state.last = last_inputs(before, tokens, mask)
        whole = module_of(ids).concatenate([before, tokens], 1)[..., 0]
        return self.embedding(ids) + self.ngrams(whole)

    def nothing(self, B):
        """What n-grams find before the first token of B texts."""
        return module_of(self.embedding.weight.data).zeros((B, BEFORE, 1), int)

    def new_state(self, B):
        state = super().new_state(B)
        state.last = self.nothing(B)
        return state

    @classmethod
    def mixer(cls, config, i, rng):
        """The mixer of block i, which sees the past only."""
        raise NotImplementedError

    @classmethod
    def reader(cls, config, i, rng):
        """The mixer of block i of a classifier, which may look at all of its input."""
        return cls.mixer(config, i, rng)


class GPT(Recipe):
    """The default model: the recipe's block around rotary attention."""

    heads = True

    @classmethod
    def mixer(cls, config, i, rng):
        c = config
        return RotaryAttention(c.n_embd, c.n_head, rng, c.dropout, c.out_std)

    @classmethod
    def reader(cls, config, i, rng):
        c = config
        return Attention(c.n_embd, c.n_head, rng, c.dropout, c.out_std, causal=False)
