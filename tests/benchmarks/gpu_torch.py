"""PyTorch's side of the benchmark of a GPU: the model of torch_gpt.py, eager and compiled."""

import importlib.util
import time

import numpy as np

from tests import card
from tests.benchmarks import gpu_work
from tests.benchmarks.competitor import BETAS, CLIP, DECAY, RATE

# In the order in which they are worth having, should the time not suffice for all.
WAYS = [("eager", "float32"), ("eager", "tf32"), ("compiled", "tf32"), ("compiled", "float32")]


def steps(shape, batch, warm):
    """Yield (name, figures) of each way, as gpu_parts.stepped has them."""
    if not importlib.util.find_spec("torch"):
        yield "PyTorch", {"remark": "not installed"}
        return
    import torch

    if not (torch.cuda.is_available() or card.EMULATED):
        yield "PyTorch", {"remark": "finds no GPU"}
        return
    for way, precision in WAYS[:1] if card.EMULATED else WAYS:
        name = f"PyTorch {torch.__version__} {way}, {precision}"
        try:
            yield name, stepped(torch, shape, batch, warm, way == "compiled", precision)
        except Exception as error:  # whatever PyTorch and its compiler raise
            yield name, {"error": f"{type(error).__name__}: {error}"[:300]}


def stepped(torch, shape, batch, warm, compiled, precision, seconds=3.0):
    from tests.benchmarks import torch_gpt

    place = "cpu" if card.EMULATED else "cuda"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    model = torch_gpt.build(shape).to(place)
    step = stepping(torch, model, torch.compile(model) if compiled else model, place)
    given = gpu_work.batches(shape, batch)
    finish = torch.cuda.synchronize if place == "cuda" else lambda: None
    if place == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def timed(number):
        start, losses = time.perf_counter(), []
        for i in range(number):
            losses.append(step(*given[i % len(given)]))
        finish()
        return (time.perf_counter() - start) / number, losses

    losses = [loss.item() for loss in timed(warm)[1]]
    one, _ = timed(1)
    each, _ = timed(1 if card.EMULATED else max(5, min(400, round(seconds / one))))
    return {
        "batch": batch,
        "ms": 1e3 * each,
        "tokens/s": batch * shape["block_size"] / each,
        "peak GB": torch.cuda.max_memory_reserved() / 1e9 if place == "cuda" else 0,
        f"mean of {warm} losses": float(np.mean(losses)),
    }


def stepping(torch, model, forward, place):
    """step(x, y) -> the loss, on the GPU; AdamW is PyTorch's fastest, a single kernel."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=place == "cuda")

    def step(x, y):
        x, y = (torch.from_numpy(ids.astype(np.int64)).to(place) for ids in (x, y))
        z = forward(x)
        loss = torch.nn.functional.cross_entropy(z.view(-1, z.shape[-1]), y.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
