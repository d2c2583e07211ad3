"""Train a model in six steps: preprocess, build, initialise, train, validate, apply.

python train.py                a GPT learns to write from the documentation of this Python
python train.py --data FILE    ... from a text of your own
python train.py --resume       continue a run that was stopped, as if it never had been
"""

import argparse
import contextlib
import json
import math
import shlex
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt.datasets import text
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine import device
from minigpt.engine.autograd import plain
from minigpt.generate import stream
from minigpt.nn.gpt import MODELS, GPTConfig
from minigpt.nn.module import Flat
from minigpt.training import checkpoint, parallel
from minigpt.training.config import Config, Parser, add_options
from minigpt.training.optim import OPTIMIZERS
from minigpt.training.trainer import NEVER, Trainer, mean_loss

CACHE = Path(__file__).resolve().parent / "data"
FREE = {"data", "out", "steps", "patience", "device", "plain", "workers"}  # on resume


def main(words=None):
    """The six steps, in order; a user's mistake ends in one line and exit code 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("train.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    whether = parser.add_mutually_exclusive_group()
    whether.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out; --data, --steps (a new schedule), --patience, --device, "
        "--plain, --workers may change",
    )
    whether.add_argument(
        "--overwrite", action="store_true", help="replace the run in --out; other files stay"
    )
    add_options(parser)
    given = vars(parser.parse_args(words))
    try:
        config, out, saved = configure(given.pop("resume"), given.pop("overwrite"), given)
        library, found = device.select(config.device)
        most = 4 * parallel.physical_cores() if library is np else 1
        if (asked := given.get("workers", 1)) > most:
            raise ValueError(f"--workers: expected at most {most} here, got {asked}; leave it out")
        tokenizer, crc, train, validation, to_beat = preprocess(config, saved)
        model, rng = build(config, tokenizer, library, found)
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    try:
        with plain() if config.plain else contextlib.nullcontext():
            windows = initialise(config, model, validation, tokenizer)
            config.workers = workers(config, model)
            about = {
                "model": asdict(model.config),
                "tokenizer": tokenizer.config(),
                "data": crc,
                "numpy": np.__version__,
            }
            task = config, model, rng, tokenizer, train, windows, to_beat, out, about, saved
            trainer = parallel.run(config.workers, work, *task)
            if not trainer.stopped:
                apply(trainer, tokenizer)
    except (OSError, MemoryError, FloatingPointError, ValueError) as error:
        with contextlib.suppress(OSError):
            out.rmdir()  # if nothing is in it yet
        room = "; lower --batch-size or --n-embd" if isinstance(error, MemoryError) else ""
        parser.error(f"{error}{room}")


def say(step, message):
    """Print a line under the name of its step."""
    print(f"{step:<14} {message}", flush=True)


def configure(resume, overwrite, given):
    """Options -> config, folder, and the checkpoint to continue from, if that was asked for."""
    saved, run = None, {"data": ["manual"], "model": "gpt", "out": None} | given
    out = Path(run["out"] or f"out/{'+'.join(Path(d).stem for d in run['data'])}-{run['model']}")
    if {"minutes", "steps"} <= given.keys():
        raise ValueError("--steps: expected --minutes or --steps, got both; leave one out")
    if resume:
        saved = checkpoint.load(out / "last.safetensors")
        before = saved[1]["config"]
        for name in given.keys() - FREE:
            if given[name] != before.get(name):
                what = f"--{name.replace('_', '-')}: this run has {before.get(name)}"
                other = "set --steps" if name == "minutes" else "leave it out"
                remedy = f"{other}, or start a new run in another --out"
                raise ValueError(f"{what}, got {given[name]}; {remedy}")
        at = saved[1]["state"]["step"]
        if given.get("steps", at) < at:
            raise ValueError(
                f"--steps: expected at least {at}, where this run is, got {given['steps']}"
            )
        given = before | given
    elif out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {out} is a file; name another")
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} is not empty; --resume continues its run, --overwrite replaces it")
    config = Config(**given)
    gpt_config(config, 1)  # refuses a shape that cannot be, before anything is read
    return config, out, saved


def gpt_config(config, vocab_size):
    """The options that shape the model."""
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout")
    return GPTConfig(vocab_size, **{name: getattr(config, name) for name in names})


def preprocess(config, saved):
    """Text -> tokenizer, the text's checksum, training and validation ids, what must be beaten."""
    say("1 preprocess", f"{' '.join(config.data)}: reading ...")
    characters = text.load(config.data, CACHE)
    crc = zlib.crc32(characters.encode())
    if saved and saved[1]["data"] != crc:
        raise ValueError("--data: not the text that this run has read; restore it, or start anew")
    tokenizer = CharTokenizer.train(characters)
    ids, V = tokenizer.encode(characters), tokenizer.vocab_size
    train, validation = text.split(ids, config.block_size)
    size = f"{len(ids):,} characters, {V} distinct"
    say("", f"{size}; train {len(train):,} / validation {len(validation):,}")
    counted = text.baselines(train, validation, V, characters[len(train) :], CACHE)
    to_beat = {name: counted[name] for name in ("uniform", "unigram", "bzip2")}
    to_beat["best n-gram"] = counted["best"]
    if to_beat["bzip2"] > to_beat["uniform"]:  # its header alone outweighs a small text
        del to_beat["bzip2"]
    figures = ", ".join(f"{name} {loss:.3f}" for name, loss in to_beat.items())
    part = f", counted on {counted['read']:,}" if counted["read"] < len(train) else ""
    say("", "to beat, in nats per character (1 nat = 1.44 bits):")
    say("", f"{figures} (order {counted['order']}{part})")
    return tokenizer, crc, train, validation, to_beat


def build(config, tokenizer, library, found):
    """-> the model on its device, and the Generator that it draws from"""
    rng = np.random.default_rng(config.seed)
    model = MODELS[config.model](gpt_config(config, tokenizer.vocab_size), rng).to(library)
    form = f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide"
    size = f"{model.parameter_count() / 1e6:.2f} M parameters"
    flops = f"{model.flops_per_token() / 1e6:.1f} MFLOP per token"
    say("2 build", f"{config.model}: {form}, context {config.block_size}: {size}, {flops}")
    say("", found)
    return model, rng


def initialise(config, model, validation, tokenizer):
    """Check the first loss -> the validation windows (x, y) on the model's device."""
    library = device.module_of(model.embedding.weight.data)
    x, y = (library.asarray(ids) for ids in text.windows_in_order(validation, config.block_size))
    first, uniform = mean_loss(model, x[:32], y[:32], 32), math.log(tokenizer.vocab_size)
    say("3 initialise", f"seed {config.seed}; first loss {first:.3f} (uniform {uniform:.3f})")
    return x, y


def write(model, tokenizer, prompt, tokens, rng):
    """What the model writes after the prompt (or its first letter, if unknown), on one line."""
    if tokenizer.unknown(prompt):
        prompt = tokenizer.decode([0])
    training = model.training
    words = "".join(stream(model.eval(), tokenizer, prompt, tokens, rng, temperature=0.8))
    model.train(training)
    return json.dumps(prompt + words, ensure_ascii=False)


def reporter(config, tokenizer, to_beat):
    """What the trainer calls at each evaluation: the losses, which bars fell, and a sample."""

    def report(trainer, loss=math.inf, best=math.inf):
        """Print two lines; without a loss, before the first step."""
        figures = "untrained"
        if trainer.step:
            figures = f"loss {trainer.recent:.3f}, validation {loss:.3f}"
        if passed := ", ".join(name for name, bar in to_beat.items() if loss < bar <= best):
            figures += f": past {passed}"
        place = f"step {trainer.step:>5} {trainer.seconds:>4.0f} s"
        tqdm.write(f"{'':<14} {place}  epoch {trainer.stream.epoch + 1}  {figures}")
        rng = np.random.default_rng((config.seed, trainer.step))
        tqdm.write(f"{'':<14} {write(trainer.model, tokenizer, 'The ', 56, rng)}")

    return report


def workers(config, model):
    """How many processes share a batch: as many as asked, or one per core if that pays."""
    if device.module_of(model.embedding.weight.data) is not np:
        return 1  # a GPU is one device
    if config.workers:
        return config.workers
    windows, tokens = config.batch_size // config.accumulate, config.batch_size * config.block_size
    work = tokens * model.flops_per_token()
    whole = work * config.steps if config.steps else 3e12 * config.minutes  # 5e10 FLOP/s of a core
    # Ranks wait for each other 1 ms a step, each updates all weights; they take a second to start.
    pays = work > 5e8 and whole > 1e12
    return min(parallel.physical_cores(), windows, max(1, tokens // 128)) if pays else 1


def work(ranks, config, model, rng, tokenizer, train, windows, to_beat, out, about, saved):
    """Steps 4 and 5, on every rank -> the trainer"""
    with plain() if config.plain else contextlib.nullcontext():  # the other ranks ask here
        batches = text.Windows(train, config.block_size, config.seed)
        optimizer = OPTIMIZERS[config.optimizer](Flat(model, ranks), config.weight_decay)
        report = reporter(config, tokenizer, to_beat)
        trainer = Trainer(
            model, optimizer, batches, windows, config, rng, out, about, report, ranks
        )
        fit(trainer, saved)
        if not trainer.stopped:
            validate(trainer, windows, to_beat["best n-gram"])
        return trainer


def fit(trainer, saved):
    """Train, from the start or from a checkpoint."""
    c, first = trainer.config, trainer.ranks.rank == 0
    if first:
        prepare(trainer)
    if saved:
        trainer.restore(*saved)
    crew = f", {c.workers} workers" if c.workers > 1 else ""
    if first and saved:
        if saved[1]["numpy"] != np.__version__:
            say("", f"begun with NumPy {saved[1]['numpy']}: last digits may differ from there on")
        size = f" of {c.steps}" if c.steps else f", {c.minutes:g} minutes"
        say("4 train", f"continues after step {trainer.step}{size}{crew}")
    elif first:
        size = f"{c.steps} steps" if c.steps else f"{c.minutes:g} minutes, in steps"
        say("4 train", f"{size} of {c.batch_size} x {c.block_size} tokens{crew}")
        trainer.on_evaluate(trainer)
    trainer.run()
    if first and trainer.stale >= c.patience and trainer.step != c.steps:
        remedy = "more text or --dropout 0.2 may help, --resume --patience N goes on"
        say("", f"step {trainer.step}: no new best in {c.patience} validations; {remedy}")
    if trainer.stopped:
        if trainer.best == NEVER:  # what is there as the best is of a run that this one replaces
            (trainer.out / "best.safetensors").unlink(missing_ok=True)
        command = f"python train.py --resume --out {shlex.quote(str(trainer.out))}"
        say("", f"stopped after step {trainer.step}; continue: {command}")


def prepare(trainer):
    """Try the folder of the run: before the first step, not after an hour."""
    out = trainer.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        trainer.save("probe")
        (out / "probe.safetensors").unlink()
    except OSError as error:
        hint = "free space, or name another --out"
        raise OSError(f"--out: cannot save in {out}: {error.strerror}; {hint}") from None


def validate(trainer, windows, n_gram):
    """The best checkpoint on the whole validation split."""
    trainer.ranks.barrier()  # rank 0 has written it
    arrays, _ = checkpoint.load(trainer.out / "best.safetensors")
    trainer.model.load_state_dict(checkpoint.weights(arrays))
    loss = mean_loss(trainer.model, *windows, 2 * trainer.config.batch_size, trainer.ranks)
    bits = f"{loss:.4f} nats per character = {loss / math.log(2):.3f} bits"
    verdict = "below" if loss < n_gram else "not below"
    if trainer.ranks.rank == 0:
        say("5 validate", f"whole split: {bits},")
        say("", f"{verdict} the best n-gram, {n_gram:.3f}")


def apply(trainer, tokenizer):
    """The trained model writes."""
    rng = np.random.default_rng(trainer.config.seed)
    say("6 apply", write(trainer.model, tokenizer, "The ", 56, rng))
    say("", f"next: python sample.py {shlex.quote(str(trainer.out))} --interactive")
    say("", "and read minigpt/engine/autograd.py")


if __name__ == "__main__":
    for file in filter(None, (sys.stdout, sys.stderr)):
        file.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to stop
    try:
        main()
    except KeyboardInterrupt:  # while there is nothing to save, or the second
        print("stopped; what was saved stays")
