"""Classifiers of images, sounds and tables: a CNN, or tokens through the recipe's blocks.

An image (Y, X, C) is read row by row, or in square patches by attention; a sound (T,) through
convolutions with strides; a row of a table (F,) column by column, and its shape says how many
features each column has.
"""

from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import raw
from minigpt.engine.convolution import max_pool2d, relu
from minigpt.engine.ops import matmul, mean
from minigpt.messages import check
from minigpt.nn.convolution import Conv, ConvolutionalModel
from minigpt.nn.language import norm
from minigpt.nn.layers import Dropout, Embedding, Linear
from minigpt.nn.module import Module, normal
from minigpt.nn.recipe import RecipeBlock

# Convolutions that read a sound: size, channels in and out, stride; 256 samples become a token.
STRIDED = (64, 1, 32, 8), (8, 32, 64, 4), (8, 64, 64, 4), (4, 64, None, 2)


class Columns(Module):
    """Token c = sum of x_f w_f over the features f of column c, widths[c] of them.

    x (B, F) -> (B, columns, C).  Source: Gorishniy et al. 2021, section 3.3
    """

    def __init__(self, widths, n_embd, rng):
        self.widths = widths
        self.weight = normal(rng, (sum(widths), n_embd), 0.1)  # the position embedding is the bias

    def forward(self, x):
        xp, n = module_of(raw(x)), len(self.widths)
        of = xp.repeat(xp.eye(n, dtype=x.dtype), self.widths, axis=1)  # (columns, F), 1: f is in c
        return matmul(x[:, None] * of, self.weight)


class Patches(Module):
    """Token t = patch t of an image, half a patch around it included, times a matrix.

    x (B, Y, X, C) -> (B, T, n_embd). A patch as wide (or high) as the image gets no margin there.
    """

    def __init__(self, shape, size, n_embd, rng):
        around = tuple(n // 2 if n < whole else 0 for n, whole in zip(size, shape[:2], strict=True))
        seen = tuple(n + 2 * more for n, more in zip(size, around, strict=True))
        self.conv = Conv(seen, shape[2], n_embd, rng, stride=size, padding=around)
        self.count = (shape[0] // size[0]) * (shape[1] // size[1])
        self.shape = shape

    def forward(self, x):
        y = self.conv(x.reshape(len(x), *self.shape))
        return y.reshape((len(x), self.count, y.shape[3]))


def patch_side(shape):
    """The side of a patch: 2 if Y = 8, so that there are 4 x 4 of them, and 4 if Y = 28: 7 x 7."""
    return max(2, shape[0] // 7)


def strided(n_out, rng):
    """The convolutions of STRIDED, the last one to n_out channels.

    Source: Dai et al. 2017, arXiv 1610.00087; before attention: Baevski et al. 2020, section 2.
    """
    layers = []
    for size, n, m, stride in STRIDED:
        layers.append(Conv((size,), n, m or n_out, rng, stride=stride, padding=size // 2))
    return layers


class Heard(Module):
    """Token t = what convolutions with strides compute from a sound around sample 256 t.

    x (B, samples) -> (B, T, C).  A wave at another phase has other samples, but it sounds the same:
    the kernels, which every place shares, learn to answer alike.
    """

    def __init__(self, samples, n_embd, rng):
        self.layers, self.count = strided(n_embd, rng), samples
        for _, _, _, stride in STRIDED:
            self.count = self.count // stride + 1  # as an even kernel is padded by half its size

    def forward(self, x):
        x = x.reshape(*x.shape, 1)
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        return self.layers[-1](x)


class Classifier(Module):
    """Logits of the classes: tokens, blocks, the mean over all tokens, head.  x -> (B, K)

    kind: "image", "sound" or "table"; model: the family, whose `reader` is the mixer of the blocks.
    """

    def __init__(self, kind, model, shape, config, rng):
        self.config = c = config
        self.tokens, T = self.cut(kind, model, shape, rng)
        self.position = Embedding(T, c.n_embd, rng, std=0.5)
        self.blocks = []
        for i in range(c.n_layer):
            self.blocks.append(RecipeBlock(c, model.reader(c, i, rng), rng))
        self.norm, self.dropout = norm(c), Dropout(c.dropout, rng)
        self.head = Linear(c.n_embd, c.vocab_size, rng)

    def cut(self, kind, model, shape, rng):
        """What cuts an example into tokens, and how many tokens that gives."""
        n_embd = self.config.n_embd
        if kind == "table":
            return Columns(shape, n_embd, rng), len(shape)
        if kind == "sound":
            tokens = Heard(shape[0], n_embd, rng)
        elif model.heads:  # attention reads squares
            side = patch_side(shape)
            tokens = Patches(shape, (side, side), n_embd, rng)
        else:  # the others read row by row
            tokens = Patches(shape, (1, shape[1]), n_embd, rng)
        return tokens, tokens.count

    def forward(self, x):
        x = self.dropout(self.tokens(x) + self.position.weight)
        for block in self.blocks:
            x, _ = block(x)
        return self.head(self.norm(mean(x, 1)))

    def flops_per_token(self):
        """FLOPs to train on one example: 6 per weight and token, without what the mixers add."""
        return 6 * self.parameter_count() * len(self.position.weight)


class CNN(Module):
    """Logits of the classes by convolution: layers, then a hidden layer and the head.  x -> (B, K)

    Images: 3 x 3 convolutions to 32 and to 64 channels, then the largest of each 2 x 2. Sounds: the
    layers of STRIDED, and the mean over time. Tables: two convolutions over neighbouring features.
    Source: LeCun et al. 1998.
    """

    def __init__(self, kind, shape, config, rng):
        self.kind, self.shape, self.config, layers = kind, shape, config, []
        if kind == "image":
            layers = [Conv((3, 3), n, m, rng, padding=1) for n, m in ((shape[2], 32), (32, 64))]
            flat, self.positions = shape[0] // 2 * (shape[1] // 2) * 64, shape[0] * shape[1]
        elif kind == "sound":
            layers = strided(128, rng)
            flat, self.positions = 128, shape[0] // 32
        else:
            layers = [Conv((3,), n, 32, rng, padding=1) for n in (1, 32)]
            flat, self.positions = sum(shape) * 32, sum(shape)
        self.layers = layers
        self.hidden = Linear(flat, config.n_embd, rng, std=(2 / flat) ** 0.5)
        self.dropout = Dropout(config.dropout, rng)
        self.head = Linear(config.n_embd, config.vocab_size, rng)

    def forward(self, x):
        if self.kind != "image":
            x = x.reshape(*x.shape, 1)
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        x = self.layers[-1](x)
        x = relu(max_pool2d(x) if self.kind == "image" else x)  # the order saves 3 of 4 relus
        x = mean(x, 1) if self.kind == "sound" else x.reshape((len(x), -1))
        return self.head(self.dropout(relu(self.hidden(self.dropout(x)))))

    def flops_per_token(self):
        """About the FLOPs to train on one example: 6 per weight and place where it is used."""
        conv = sum(layer.weight.size for layer in self.layers)
        return 6 * (conv * self.positions + self.hidden.weight.size)


def refuse_small(model, shape):
    """Raise ValueError if images (Y, X, C) are too small to be pooled, or cut into patches."""
    side = 1
    if issubclass(model, ConvolutionalModel):
        side = 2
    elif model.heads:
        side = patch_side(shape)
    wanted, got = f"images of {side} x {side} or more", f"{shape[0]} x {shape[1]}"
    check(min(shape[:2]) >= side, "--model", wanted, got, "choose lstm, which reads row by row")


def classifier(kind, model, shape, config, rng):
    """The classifier of a family (its class of language models), for config.vocab_size classes.

    Convolution classifies by a CNN, the other families by the blocks they write with.
    """
    if kind == "image":
        refuse_small(model, shape)
    if issubclass(model, ConvolutionalModel):
        return CNN(kind, shape, config, rng)
    return Classifier(kind, model, shape, config, rng)
