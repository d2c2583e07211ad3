"""The same LSTM and CNN in PyTorch eager; see mini_stack.py."""

import torch
from torch import nn

from tests.benchmarks import competitor, torch_gpt


class LSTM(nn.Module):
    def __init__(self, vocab_size, block_size, n_embd, n_hidden):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.layers = nn.LSTM(n_embd, n_hidden, 2, batch_first=True)
        self.head = nn.Linear(n_hidden, vocab_size)

    def forward(self, ids):
        return self.head(self.layers(self.embedding(ids))[0])


class CNN(nn.Module):
    def __init__(self, vocab_size, block_size):
        super().__init__()
        sizes = (1, 32), (32, 64)
        self.layers = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1) for n, m in sizes)
        self.hidden, self.head = nn.Linear(12544, 128), nn.Linear(128, vocab_size)

    def forward(self, ids):
        x = ids.reshape(-1, 1, 28, 28).float() / 10
        x = self.layers[1](self.layers[0](x).relu())
        x = nn.functional.max_pool2d(x, 2).relu()
        return self.head(self.hidden(x.flatten(1)).relu())


@torch.no_grad()
def build(shape, form):
    """Names and orders of axes are PyTorch's own; the values are minigpt's."""
    model = {"lstm": LSTM, "cnn": CNN}[form](**shape)
    for name, p in model.named_parameters():
        words = name.split("_l")
        if form == "lstm" and len(words) == 2 and words[1] in ("0", "1"):  # layers.weight_ih_l0
            kind = words[0].removeprefix("layers.")
            name = f"layers.{words[1]}.{kind}"
        order = (2, 3, 1, 0) if p.ndim == 4 else (1, 0)
        turned = p.ndim > 1 and not name.startswith("embedding")
        a = competitor.array(name, [p.shape[i] for i in order] if turned else p.shape)
        if name == "hidden.weight":  # rows for (y, x, channel) there, for (channel, y, x) here
            a = a.reshape(14, 14, 64, 128).transpose(2, 0, 1, 3).reshape(12544, 128)
        back = (3, 2, 0, 1) if p.ndim == 4 else (1, 0)
        p.copy_(torch.from_numpy(a).permute(back) if turned else torch.from_numpy(a))
    return model


def train(shape, batch, form):
    torch_gpt.train(shape, batch, build(shape, form), form == "cnn")
