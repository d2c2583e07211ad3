"""minigpt's side of the step of an LSTM and of a CNN."""

import numpy as np

from minigpt.engine.convolution import max_pool2d, relu
from minigpt.nn.convolution import Conv
from minigpt.nn.layers import Embedding, Linear
from minigpt.nn.module import Module
from minigpt.nn.recurrence import Recurrence
from minigpt.training import processes
from tests.benchmarks import competitor, mini_gpt


class LSTM(Module):
    """Embedding, two layers, head; named as in torch_stack."""

    def __init__(self, vocab_size, block_size, n_embd, n_hidden):
        rng = np.random.default_rng(0)
        self.embedding = Embedding(vocab_size, n_embd, rng)
        sizes = (n_embd, n_hidden), (n_hidden, n_hidden)
        self.layers = [Recurrence("lstm", *size, rng) for size in sizes]
        self.head = Linear(n_hidden, vocab_size, rng)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)


class CNN(Module):
    """3 x 3 to 32 and to 64 channels, the larger of 2 x 2, 128, classes."""

    def __init__(self, vocab_size, block_size):
        rng = np.random.default_rng(0)
        self.layers = [Conv((3, 3), n, m, rng, padding=1) for n, m in ((1, 32), (32, 64))]
        self.hidden, self.head = Linear(12544, 128, rng), Linear(128, vocab_size, rng)

    def forward(self, ids):
        x = images(ids)[..., None]
        x = relu(max_pool2d(self.layers[1](relu(self.layers[0](x)))))
        return self.head(relu(self.hidden(x.reshape((len(ids), -1)))))


def images(ids):
    """784 ids of 10 as the pixels of images (B, 28, 28)"""
    return ids.reshape(-1, 28, 28).astype(np.float32) / 10


def build(shape, form):
    model = {"lstm": LSTM, "cnn": CNN}[form](**shape)
    for name, p in model.named_parameters().items():
        p.data[...] = competitor.array(name, p.shape)
    return model


def train(shape, batch, workers=1, form="lstm"):
    mini_gpt.do_without("")
    processes.run(workers, mini_gpt.work, shape, batch, False, form)
