"""The yardsticks: the same GPT-2 in PyTorch eager, nanoGPT's way to sample, and Hugging Face's."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks import competitor
from tests.benchmarks.competitor import BETAS, CLIP, DECAY, RATE


class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.ln_1, self.ln_2, self.H = nn.LayerNorm(C), nn.LayerNorm(C), H
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.attn.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (z.view(B, T, self.H, -1).transpose(1, 2) for z in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)

    def forward(self, ids, last=False):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        return (x[:, -1] if last else x) @ self.wte.weight.T


@torch.no_grad()
def build(shape):
    """nn.Linear keeps its matrices transposed."""
    model = Transformer(**shape)
    for name, p in model.named_parameters():
        turned = name.endswith(("attn.weight", "proj.weight", "fc.weight"))
        a = competitor.array(f"transformer.{name}", p.shape[::-1] if turned else p.shape)
        p.copy_(torch.from_numpy(a.T if turned else a))
    return model


def train(shape, batch, model=None, classify=False):
    model = model or build(shape)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)

    def step(x, y):
        z, y = model(torch.from_numpy(x)), y[:, -1] if classify else y
        loss = F.cross_entropy(z.view(-1, z.shape[-1]), torch.from_numpy(y.reshape(-1).copy()))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    competitor.train(step, shape, batch)


def uncached(shape, prompt):
    """nanoGPT, model.py: every token reads the last block_size tokens anew."""
    model = build(shape)

    @torch.no_grad()
    def write(ids, tokens, greedy):
        ids = torch.from_numpy(ids)
        for _ in range(tokens):
            p = F.softmax(model(ids[:, -shape["block_size"] :], last=True), dim=-1)
            chosen = p.argmax(-1, keepdim=True) if greedy else torch.multinomial(p, 1)
            ids = torch.cat((ids, chosen), dim=1)
        return ids[:, -tokens:]

    competitor.sample(write, shape, prompt)


def cached(shape, prompt):
    """GPT2LMHeadModel.generate"""
    from transformers import GPT2Config, GPT2LMHeadModel  # training does without its memory

    shape["n_positions"] = shape.pop("block_size")
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(competitor.array(name, p.shape)))

    def write(ids, tokens, greedy):
        ids = torch.from_numpy(ids)
        how = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}
        how |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens}
        return model.generate(ids, pad_token_id=0, **how)[:, -tokens:]

    competitor.sample(write, shape, prompt)
