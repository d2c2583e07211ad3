"""What a model would need, and what its training would cost: memory, time, energy, CO2.

A model is planned without its weights: to count them, only their shapes are needed.
"""

import numpy as np

from minigpt.applications.application import in_words, model_shape
from minigpt.applications.options import SHAPE, fitted
from minigpt.datasets import catalogue
from minigpt.messages import check, say
from minigpt.nn import model_class
from minigpt.nn.module import HIDDEN, kinds_of
from minigpt.nn.presets import VOCABULARY
from minigpt.training import costs
from minigpt.training.ranks import started_by_mpi

BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
GPUS = 16, 24, 80  # GB of a T4, an RTX 3090 or 4090, an A100 or H100
TIMES = {"s": 1, "hours": 3600, "days": 86400, "years": 365 * 86400}


class Unwritten:
    """Stands in for a Generator where only shapes are of interest: its draws take no memory."""

    def standard_normal(self, shape, dtype):
        return _Draws(shape)


class _Draws:
    def __init__(self, shape):
        self.shape = shape

    def __mul__(self, std):
        return np.broadcast_to(np.float32(0), self.shape)  # a view: all elements are the same zero


def outline(config, vocab_size):
    """The language model that the options describe, with shapes but without weights."""
    return model_class(config.model)(model_shape(config, vocab_size), Unwritten())


def parts_of(model):
    """{part: how many numbers it learns}"""
    mixer = model.blocks[0].mixer.title
    titles = {"embedding": "embeddings", "position": "positions", "mixer": mixer, "mlp": "MLP"}
    titles["ngrams"] = "n-grams"
    titles |= dict.fromkeys(("norm1", "norm2", "norm"), "norms")
    parts = dict.fromkeys(titles.values(), 0)
    for name, p in model.named_parameters().items():
        words = name.split(".")  # blocks.0.mlp.up.weight, norm.bias
        part = words[2] if words[0] == "blocks" else words[0]
        title = titles.get(part, part)
        parts[title] = parts.get(title, 0) + p.size
    return {part: n for part, n in parts.items() if n}


def memory(model, optimizer):
    """{what: bytes} of training a model, activations aside."""
    kinds, named = kinds_of(model), model.named_parameters()
    hidden = sum(p.size for name, p in named.items() if kinds[name] == HIDDEN)
    return costs.memory(model.parameter_count(), hidden, optimizer)


def memory_of_a_run(config, model, application, windows):
    """What step 2 says of the memory of a run on the CPU.  windows: x, y of what is held out

    Each process has its own copy of all but the activations: of those, its share of a batch. A
    file of ids that all of them map is in memory as far as the system finds room.
    """
    processes = max(config.workers, started_by_mpi()[1])
    learned = sum(memory(model, config.optimizer).values())
    examples = -(-config.batch_size // (config.accumulate * processes))
    kept = examples * costs.activations(model, *windows)
    each = costs.PYTHON + costs.size_of((application, windows)) + learned + kept
    total, shared = costs.of_all(processes, each), application.shared
    batch = f"{scaled(processes * kept, BYTES)} of it for what a step keeps of its batch"
    ids = f"; up to {scaled(shared, BYTES)} for ids, while nothing else needs it" if shared else ""
    return f"about {scaled(total, BYTES)} of memory, {batch}{ids}"


def step_on_a_gpu(model, examples, optimizer):
    """Bytes that a step of so many texts takes on a GPU, by the pairs of fast_cupy.

    Per token and block these are kept for the backward pass: 10 arrays of C numbers (the residual
    stream, norms, queries, keys, values and what attention gives), two of the MLP's width, and H T
    weights of attention; and at the end the logits and their gradients, V each.
    tests/test_launches.py compares it with a step that is counted array by array.
    """
    c = model.config
    inner = c.n_inner or 4 * c.n_embd
    numbers = c.n_layer * (10 * c.n_embd + 2 * inner + c.n_head * c.block_size) + 2 * c.vocab_size
    kept = 4 * examples * c.block_size * numbers
    return kept + sum(memory(model, optimizer).values())


def refuse_too_large(config):
    """Raise ValueError if weights, gradients and moments alone exceed this machine's memory."""
    need = sum(memory(outline(config, 1), config.optimizer).values())  # no text has been read yet
    room = costs.room()
    if need > room:
        fits = f"weights, gradients and moments within {scaled(room, BYTES)} of memory"
        remedy = "choose a smaller --model or shape; --dry-run says what it would cost"
        raise ValueError(f"model: expected {fits}, got {scaled(need, BYTES)}; {remedy}")


def dry_run(given, cores):
    """Say what a model of text and its training would cost; cores: this machine's, to compare."""
    none = "none, as --dry-run reads nothing"
    check("init" not in given, "--init", none, given.get("init"), "say the shape by --model")
    config = fitted(dry_kind(given.get("data", [])), given)
    vocab_size = given.get("vocab_size", VOCABULARY)
    model = outline(config, vocab_size)
    parts = parts_of(model)
    count = sum(parts.values())
    window = getattr(model, "window", None)
    banded = f", {window} in every second block" if window else ""
    say(config.model, in_words(config) + banded)
    whose = "as asked" if "vocab_size" in given else "GPT-2's, as no text is read; or --vocab-size"
    say("", f"vocabulary {vocab_size:,}: {whose}")
    say("parameters", f"{count:,}")
    for name, n in parts.items():
        say("", f"  {name:<20} {n:>18,} {n / count:>7.1%}")

    per_token = model.flops_per_token()
    mixers = sum(block.mixer.flops(config.block_size) for block in model.blocks)
    title = model.blocks[0].mixer.title
    share = f", {mixers / per_token:.1%} of it {title} over the context" if mixers else ""
    say("operations", f"{per_token:.3g} FLOPs to train on a token{share}")
    needed = memory(model, config.optimizer)
    say("memory", f"{scaled(sum(needed.values()), BYTES)} to train in float32, activations aside")
    for name, n in needed.items():
        say("", f"  {name:<20} {scaled(n, BYTES):>18}")
    if model.heads:
        cache = scaled(8 * config.n_layer * config.n_embd * config.block_size, BYTES)
        say("", f"{cache} of keys and values when sampling, at the end of a context")
        examples = config.batch_size // config.accumulate
        need = step_on_a_gpu(model, examples, config.optimizer)
        holds = [f"fits one of {room} GB" for room in GPUS if need < 0.95e9 * room]
        verdict = [*holds, f"none of {GPUS[-1]} GB; see --accumulate"][0]
        step = f"a step of {examples} x {config.block_size} tokens"
        say("", f"on a GPU {scaled(need, BYTES)} for {step}: {verdict}")
    of_the_paper = config.model == "gpt3-175b" and given.keys().isdisjoint({*SHAPE, "vocab_size"})
    say_the_price(per_token * costs.TOKENS, of_the_paper, cores)


def dry_kind(names):
    """The kind of data that a dry run counts for; raises ValueError if it is not text."""
    kinds = {name: catalogue.kind_of_word(name) or "text" for name in names}
    for name, kind in kinds.items():
        if kind not in ("text", "task"):
            raise ValueError(f"--dry-run: expected a model of text, got {name}; leave --data out")
    return kinds[names[0]] if names else "text"


def say_the_price(flops, of_the_paper, cores):
    """Say what a training of so many FLOPs costs; of_the_paper: compare with GPT-3's."""
    say("training", f"on {costs.TOKENS / 1e9:.0f} billion tokens, as GPT-3: {flops:.3g} FLOPs")
    if of_the_paper:
        less = f"{costs.FLOPS:.3g}, without attention over the context"
        say("", f"({flops / costs.FLOPS - 1:+.1%} beside the paper's {less})")
    for machines in (costs.V100, costs.A100):
        seconds, energy, carbon = costs.training(flops, machines)
        name = f"{machines.count:,} {machines.name} at {machines.rate / 1e12:.1f} TFLOP/s"
        use = f"{figure(energy):>9} MWh {figure(carbon):>9} t CO2e"
        say("", f"  {name:<28} {scaled(seconds, TIMES):>15} {use}")
    name = f"{cores} cores here at {costs.CORE / 1e12:.2f} TFLOP/s"
    say("", f"  {name:<28} {scaled(flops / (cores * costs.CORE), TIMES):>15}")
    say("", f"V100: {costs.V100.watts} W with the rest of the machine, their speed with GPT-3")
    say("", f"A100: {costs.A100.watts} W alone, 40 % of their peak assumed; so is a core's speed")
    say("", f"both: PUE {costs.PUE:.2f}, {costs.CARBON} kg CO2e per kWh, as for GPT-3;")
    say("", "V100, PUE and CO2: Patterson et al. 2021, arXiv 2104.10350, table 4")


def scaled(x, units):
    """scaled(7200, TIMES) -> 2 hours"""
    name = [name for name in units if units[name] <= max(x, 1)][-1]
    return f"{figure(x / units[name])} {name}"


def figure(x):
    """Three digits, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
