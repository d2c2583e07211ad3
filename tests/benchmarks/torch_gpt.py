"""The same GPT-2 in PyTorch eager: python -m tests.benchmarks.torch_gpt WEIGHTS"""

import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.worker import BETAS, CLIP, DECAY, RATE, SHAPE, peak_mb, serve


class Attention(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.c_attn, self.c_proj, self.H = nn.Linear(C, 3 * C), nn.Linear(C, C), H

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (z.view(B, T, self.H, -1).transpose(1, 2) for z in self.c_attn(x).split(C, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(C), Attention(C, H)
        self.ln_2, self.mlp = nn.LayerNorm(C), MLP(C)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def load(model, path):
    """Weights under transformers' names; nn.Linear keeps its matrices transposed."""
    arrays = np.load(path)
    with torch.no_grad():
        for name, p in model.named_parameters():
            a = torch.from_numpy(arrays[f"transformer.{name}"])
            p.copy_(a.T if name.endswith(("attn.weight", "proj.weight", "fc.weight")) else a)


def main():
    imported = peak_mb()
    torch.manual_seed(0)
    model = Transformer(**SHAPE)
    load(model, sys.argv[1])
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)

    def step(x, y):
        z = model(torch.from_numpy(x))
        loss = F.cross_entropy(z.view(-1, z.shape[-1]), torch.from_numpy(y.reshape(-1)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    serve(step, imported)


if __name__ == "__main__":
    main()
