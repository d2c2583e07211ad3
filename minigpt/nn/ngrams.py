"""Embeddings of n-grams: what the last few tokens say together, known from the first step on.

Which token comes next depends most of all on the last few. Counting what followed each string of n
tokens, an n-gram, predicts a text well at once (see datasets/text.py); a network would have to find
the strings out through many steps of training. So the recipe gives them to it: besides the vector
of each token, there is one for the last two tokens together, and for the last 3, 4 and 5.
"""

from minigpt.engine.arrays import module_of
from minigpt.nn.layers import Embedding, Linear
from minigpt.nn.module import Module

ORDERS = 2, 3, 4, 5  # the lengths n of the n-grams
BEFORE = max(ORDERS) - 1  # how many earlier tokens they reach back to
ROWS = 128  # of each order's table, times the width of the model
BASE, PRIME = 1_000_003, 2**31 - 1  # of the hash; numbers below PRIME^2 fit in an int64


class NGrams(Module):
    """The vectors of the n-grams that end at each of T tokens.  tokens (B, 4 + T) -> (B, T, C)

    The first four tokens stand before the T, and 0 marks one that is not there.

    Of V tokens there are V^5 strings of five, too many for a row each. So a hash function turns a
    string into a number that looks random, and the remainder of a division by the number of rows
    is its row. Strings with the same row share a vector, which the more frequent one shapes. Each
    order has a table of 128 C rows, each C / 8 wide, and a matrix makes C channels of the four
    rows. The tables hold 64 C^2 numbers, as many as five blocks, of which a token reads C / 2.
    Source: Huang et al. 2025, arXiv 2501.16975, section 3.1; hashing: Svenstrup et al. 2017.
    """

    def __init__(self, n_embd, rng):
        self.rows, width = ROWS * n_embd, max(1, n_embd // 8)
        self.vectors = Embedding(len(ORDERS) * self.rows, width, rng)
        self.out = Linear(len(ORDERS) * width, n_embd, rng, bias=False)

    def forward(self, tokens):
        y = self.vectors(hashed(tokens, self.rows))
        B, T, orders, width = y.shape
        return self.out(y.reshape((B, T, orders * width)))


def hashed(tokens, rows):
    """The row of each n-gram, order after order.  tokens (B, 4 + T) -> (B, T, orders)

    A string's tokens are the digits of a number in base BASE, of which the remainder by a prime is
    kept. It takes one more step per token to the left: h <- h BASE + token.
    Source: Karp & Rabin 1987.
    """
    xp, T = module_of(tokens), tokens.shape[1] - BEFORE
    h, found = 0, []
    for back in range(max(ORDERS)):  # how many tokens before the last
        token = tokens[:, BEFORE - back :][:, :T].astype(int)
        h = (h * BASE + token) % PRIME
        if back + 1 in ORDERS:
            found.append(h % rows + len(found) * rows)  # the tables lie one behind the other
    return xp.stack(found, 2)
