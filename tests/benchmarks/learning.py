"""What parts, sizes and texts are worth: models that differ in one thing learn the same text."""

from tempfile import TemporaryDirectory

import numpy as np

from minigpt.datasets import text
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine import device
from minigpt.engine.autograd import no_grad, raw, record
from minigpt.engine.functional import gelu, softmax
from minigpt.engine.ops import concatenate, reshape
from minigpt.engine.recipe import relu2
from minigpt.nn.attention import Attention
from minigpt.nn.gpt import GPT2 as GPT2Form
from minigpt.nn.gpt import GPTConfig
from minigpt.nn.language import Block, LanguageModel
from minigpt.nn.layers import Linear
from minigpt.nn.module import Flat, Module
from minigpt.nn.recipe import GPT, RotaryAttention, ShiftedBlock
from minigpt.training import optimizer_class, processes
from minigpt.training.config import Config
from minigpt.training.trainer import Trainer
from tests.benchmarks import measure
from tests.benchmarks.families import SEEDS

GPT2 = {"attention": Attention, "block": Block, "activation": gelu, "form": GPT2Form}
NANOGPT = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}
NANOGPT |= {"optimizer": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup": 100}
DEFAULT = Config()
LADDER = {  # each row adds to those above it: parts of the model, options of the run
    "GPT-2's form, nanoGPT's CPU preset, AdamW": (GPT2, NANOGPT),
    "rate and schedule of the default": (
        {},
        {name: getattr(DEFAULT, name) for name in ("learning_rate", "schedule", "warmup")},
    ),
    "Muon": ({}, {"optimizer": "muon"}),
    "rotary positions": ({"attention": RotaryAttention, "form": LanguageModel}, {}),
    "token shift": ({"block": ShiftedBlock}, {}),
    "ReLU^2": ({"activation": relu2}, {}),
    "embeddings of n-grams": ({"form": GPT}, {}),
    "longer context, fewer texts": (
        {},
        {"block_size": DEFAULT.block_size, "batch_size": DEFAULT.batch_size},
    ),
    "two layers instead of four: `train.py`": ({}, {"n_layer": DEFAULT.n_layer}),
}
VOTE = "the best n-gram's vote"
LEFT_OUT = ["QK-norm", "RMSNorm", "no biases", "zero-initialised projections"]
SIZES = [(1, 64), (2, 96), (4, 128), (4, 192), (6, 256)]  # layers, width
STEPS = 300  # for equal tokens
SMALL_TEXT = 50_000  # characters


def rms_norm(x):
    """y = x / sqrt(mean x^2) over the last axis.  Source: Zhang & Sennrich 2019, without a gain"""
    a = raw(x)
    scale = ((np.vecdot(a, a) / a.shape[-1] + 1e-5) ** -0.5)[..., None]
    y = a * scale

    def rule(dy):
        return scale * (dy - y * (np.vecdot(dy, y) / y.shape[-1])[..., None])

    return record(y, (x, rule))


class RMSNorm(Module):
    """In the place of a LayerNorm."""

    def __init__(self, norm):
        self.weight = norm.weight

    def forward(self, x):
        return rms_norm(x) * self.weight


class QKNorm(Module):
    """After the linear layer of attention: queries and keys of length sqrt(D). Turning them later
    does not change that. Source: Henry et al. 2020, arXiv 2010.04245."""

    def __init__(self, linear, n_head):
        self.linear, self.n_head = linear, n_head

    def forward(self, x):
        z = self.linear(x)
        heads = reshape(z, (*z.shape[:-1], 3, self.n_head, -1))
        parts = concatenate([rms_norm(heads[..., :2, :, :]), heads[..., 2:, :, :]], -3)
        return reshape(parts, z.shape)


def change(model, part):
    """Put a part that the default does without into a model."""
    if part == "RMSNorm":
        model.norm = RMSNorm(model.norm)
    for block in model.blocks:
        if part == "RMSNorm":
            block.norm1, block.norm2 = RMSNorm(block.norm1), RMSNorm(block.norm2)
        if part == "QK-norm":
            block.mixer.qkv = QKNorm(block.mixer.qkv, block.mixer.n_head)
        if part == "zero-initialised projections":
            for linear in (block.mixer.out, block.mlp.down):
                linear.weight.data[...] = 0
    for module in model.modules():
        if part == "no biases" and isinstance(module, Linear):
            module.bias = None


def assembled(c, rng, attention=RotaryAttention, block=ShiftedBlock, activation=relu2, form=GPT):
    """A GPT of these parts, by default the recipe's. `form` makes vectors of the ids: with n-grams,
    with learned positions, or of each token alone."""
    blocks = []
    for _ in range(c.n_layer):
        mixer = attention(c.n_embd, c.n_head, rng, c.dropout, c.out_std)
        blocks.append(block(c, mixer, rng, activation))
    if form is LanguageModel:
        return LanguageModel(c, blocks, rng)
    model = form(c, rng)
    model.blocks = blocks
    return model


def learn(data, parts=None, added="", characters=None, **options):
    """Train as train.py does, one process per core -> {"loss": of the whole validation split after
    the last step, "steps", "seconds", "tokens_per_s", "parameters", "curve"}"""
    with TemporaryDirectory() as out:
        return processes.run(
            measure.cores(), work, data, parts or {}, added, characters, options, out
        )


def work(ranks, data, parts, added, characters, options, out):
    """The program of every rank of learn()."""
    device.keep_pages()
    usual = {"eval_every": 10**6, "patience": 10**6}  # once, at the end, which is all windows
    c, rng = Config(**usual | options), np.random.default_rng(options.get("seed", 1337))
    corpus = text.load([data], measure.ROOT / "data")[:characters]
    tokenizer = CharTokenizer.train(corpus)
    train, validation = text.split(tokenizer.encode(corpus), c.block_size)
    shape = {name: getattr(c, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    model = assembled(GPTConfig(tokenizer.vocab_size, **shape), rng, **parts)
    change(model, added)
    optimizer = optimizer_class(c.optimizer)(Flat(model, ranks), c.weight_decay)
    curve, windows = [], text.windows_in_order(validation, c.block_size)
    trainer = Trainer(
        model, optimizer, text.Windows(train, c.block_size, c.seed), windows, c, rng, out, {},
        lambda run, loss, best: curve.append((run.step, run.recent, loss)), ranks,
    )  # fmt: skip
    trainer.run()
    loss = curve[-1][2] if curve else None  # on rank 0
    if curve and added == VOTE:
        loss = together(model, windows, train, validation, tokenizer.vocab_size)
    tokens = trainer.step * c.batch_size * c.block_size
    return {
        "loss": loss,
        "steps": trainer.step,
        "seconds": trainer.seconds,
        "tokens_per_s": tokens / trainer.seconds,
        "parameters": model.parameter_count(),
        "curve": curve,
    }


def together(model, windows, train, validation, vocab_size):
    """The loss when the model and the best n-gram vote: with probability (1 - a) p + a q. The share
    a is the best for the first tenth of the validation split, the loss that of the rest."""
    p = []
    with no_grad():
        for x, y in zip(*windows, strict=True):
            share = softmax(model(x[None])).data[0]
            p.append(share[np.arange(len(y)), np.maximum(y, 0)])  # -100: beyond the end, cut off
    p = np.concatenate(p)[: len(validation) - 1]
    q = min(text.n_grams(train, validation, vocab_size), key=lambda q: -np.log(q).mean())[1:]
    a, tenth = np.linspace(0, 0.5, 51)[:, None], len(p) // 10
    best = a[np.log((1 - a) * p[:tenth] + a * q[:tenth]).mean(1).argmax(), 0]
    return -float(np.log((1 - best) * p + best * q)[tenth:].mean())


def seeded(data, parts, added="", **options):
    """learn() from every seed -> the last run with the mean of all losses, and "losses"."""
    runs = [learn(data, parts, added, seed=seed, **options) for seed in SEEDS]
    losses = [run["loss"] for run in runs]
    return runs[-1] | {"loss": float(np.mean(losses)), "losses": losses}


def ablation(data, seconds):
    """From GPT-2's form to the default, one part at a time; then the default with what it lacks.
    Each from three seeds."""
    rows, parts, options = {}, {}, {"minutes": seconds / 60}
    for name, (more_parts, more_options) in LADDER.items():
        parts, options = parts | more_parts, options | more_options
        rows[name] = seeded(data, parts, **options)
        print(f"{name}: {rows[name]['losses']}", flush=True)
    left_out = {name: seeded(data, parts, name, **options) for name in [*LEFT_OUT, VOTE]}
    return {"data": str(data).split("/")[-1], "rows": rows, "left_out": left_out}


def budgets(data, seconds):
    """The default for a fifth, a third and all of nanoGPT's time, and for 3 minutes."""
    rows = []
    for s in (seconds / 5, seconds / 3, seconds, 180):
        runs = [learn(data, minutes=s / 60, seed=seed) for seed in SEEDS]
        rows.append([[run[key] for run in runs] for key in ("seconds", "steps", "loss")])
        print(*rows[-1], flush=True)
    return {"data": str(data).split("/")[-1], "rows": rows}


def scale(data, seconds):
    """Five sizes, for as many tokens and for as long; then a text that is too small."""
    rows = []
    for n_layer, n_embd in SIZES:
        shape = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_embd // 32}
        tokens = learn(data, **shape, steps=STEPS)
        rows.append([n_layer, n_embd, tokens, learn(data, **shape, minutes=seconds / 60)])
        print(f"{shape}: {rows[-1][2]['loss']:.4f} {rows[-1][3]['loss']:.4f}", flush=True)
    c = Config(steps=1500, eval_every=100)
    small = learn(data, characters=SMALL_TEXT, steps=c.steps, eval_every=c.eval_every)
    flat = c.warmup + 0.4 * (c.steps - c.warmup)  # until there the rate has not fallen
    stop = stopped(small["curve"], c.patience, flat)
    result = {"data": str(data).split("/")[-1], "seconds": seconds, "sizes": rows}
    result |= {"small": small | {"characters": SMALL_TEXT, "stop": stop}}
    draw(result)
    return result


def stopped(curve, patience, flat):
    """The step at which `patience` validations in a row, those up to step `flat` not counted, were
    no new best; None if never."""
    best, stale = float("inf"), 0
    for step, _, loss in curve:
        best, stale = min(best, loss), 0 if loss < best or step <= flat else stale + 1
        if stale == patience:
            return step
    return None


def draw(result):
    """scale.svg beside this file: loss against parameters, and the gap on a small text."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "minigpt"  # the same figures, the same file
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    size = [row[2]["parameters"] for row in result["sizes"]]
    for column, label in ((2, f"{STEPS} steps each"), (3, f"{result['seconds']:g} s each")):
        left.semilogx(size, [row[column]["loss"] for row in result["sizes"]], "o-", label=label)
    left.set(xlabel="parameters", ylabel="validation loss, nats per character", title="Scale")
    small = result["small"]
    steps, training, validation = zip(*small["curve"], strict=True)
    right.plot(steps, training, label="training")
    right.plot(steps, validation, label="validation")
    if small["stop"]:
        right.axvline(small["stop"], color="grey", ls=":", label="--patience stops")
    right.set(xlabel="step", title=f"Overfitting: {small['characters']:,} characters")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(measure.ROOT / "tests/benchmarks/scale.svg", metadata={"Date": None})
