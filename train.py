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
from minigpt.nn.gpt import GPT, GPTConfig
from minigpt.nn.module import Flat
from minigpt.training import checkpoint
from minigpt.training.config import Config, Parser, add_options
from minigpt.training.optim import OPTIMIZERS
from minigpt.training.trainer import Trainer, mean_loss

CACHE = Path(__file__).resolve().parent / "data"
FREE = {"data", "out", "steps", "device", "eval_every", "plain"}  # what a resumed run may change


def main(words=None):
    parser = Parser(
        "train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whether = parser.add_mutually_exclusive_group()
    whether.add_argument("--resume", action="store_true", help="continue the run in --out")
    whether.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_options(parser)
    given = vars(parser.parse_args(words))
    try:
        config, out, saved = configure(given.pop("resume"), given.pop("overwrite"), given)
        library, found = device.select(config.device)
        tokenizer, train, validation, to_beat = preprocess(config, saved)
        model, rng = build(config, tokenizer, library, found)
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    with plain() if config.plain else contextlib.nullcontext():
        try:
            learn(config, out, saved, tokenizer, train, validation, to_beat, model, rng)
        except (OSError, MemoryError, FloatingPointError) as error:  # full, or no number
            parser.error(str(error))


def say(step, message):
    print(f"{step:<14} {message}", flush=True)


def configure(resume, overwrite, given):
    """Options -> config, folder, and the checkpoint to continue from, if that was asked for."""
    saved, run = None, {"data": ["manual"], "model": "gpt", "out": None} | given
    out = Path(run["out"] or f"out/{'+'.join(Path(d).stem for d in run['data'])}-{run['model']}")
    if resume:
        saved = checkpoint.load(out / "last.safetensors")
        before = saved[1]["config"]
        for name in given.keys() - FREE:
            if given[name] != before.get(name):
                what = f"--{name.replace('_', '-')}: this run has {before.get(name)}"
                remedy = "leave it out, or start a new run in another --out"
                raise ValueError(f"{what}, got {given[name]}; {remedy}")
        given = before | given
    elif out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {out} is a file; name another")
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} is not empty; --resume continues its run, --overwrite replaces it")
    config = Config(**given)
    gpt_config(config, 1)  # refuses a shape that cannot be, before anything is read
    return config, out, saved


def gpt_config(config, vocab_size):
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout")
    return GPTConfig(vocab_size, **{name: getattr(config, name) for name in names})


def preprocess(config, saved):
    say("1 preprocess", f"{' '.join(config.data)}: reading ...")
    characters = text.load(config.data, CACHE)
    tokenizer = CharTokenizer.train(characters)
    ids = tokenizer.encode(characters)
    if saved and saved[1]["data"] != zlib.crc32(ids):
        raise ValueError("--data: not the text that this run has read; restore it, or start anew")
    train, validation = text.split(ids, config.block_size)
    size = f"{len(ids):,} characters, {tokenizer.vocab_size} distinct"
    say("", f"{size}; train {len(train):,} / validation {len(validation):,}")
    V, held_out = tokenizer.vocab_size, characters[len(train) :]
    counted = text.baselines(train, validation, V, held_out, CACHE)
    to_beat = {name: counted[name] for name in ("uniform", "unigram", "bzip2")}
    to_beat["best n-gram"] = counted["best"]
    figures = ", ".join(f"{name} {loss:.3f}" for name, loss in to_beat.items())
    part = f", counted on {counted['read']:,}" if counted["read"] < len(train) else ""
    say("", f"to beat (nats per character): {figures} (order {counted['order']}{part})")
    return tokenizer, train, validation, to_beat


def build(config, tokenizer, library, found):
    rng = np.random.default_rng(config.seed)
    model = GPT(gpt_config(config, tokenizer.vocab_size), rng).to(library)
    form = f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide"
    size = f"{model.parameter_count() / 1e6:.2f} M parameters"
    flops = f"{model.flops_per_token() / 1e6:.1f} MFLOP per token"
    say("2 build", f"{config.model}: {form}, context {config.block_size}: {size}, {flops}; {found}")
    return model, rng


def learn(config, out, saved, tokenizer, train, validation, to_beat, model, rng):
    library = device.module_of(model.embedding.weight.data)
    x, y = (library.asarray(ids) for ids in text.windows_in_order(validation, config.block_size))
    first, V = mean_loss(model, x[:32], y[:32], 32), tokenizer.vocab_size
    say("3 initialise", f"seed {config.seed}; first loss {first:.3f} (uniform {math.log(V):.3f})")

    def report(trainer, loss=math.inf, best=math.inf):
        """The line of an evaluation: what was passed since the last, and a sample."""
        passed = [name for name, bar in to_beat.items() if loss < bar <= best]
        figures = "untrained"
        if trainer.step:
            figures = f"loss {trainer.recent:.3f}, validation {loss:.3f}"
        figures += f": past {', '.join(passed)}" if passed else ""
        prompt = "\n" if "\n" in tokenizer.characters else tokenizer.characters[0]
        dice = np.random.default_rng((config.seed, trainer.step))
        sample = "".join(stream(model.eval(), tokenizer, prompt, 80, dice, temperature=0.8))
        model.train()
        tqdm.write(f"{'':<14} step {trainer.step:>5} {trainer.seconds:>4.0f} s  {figures}")
        tqdm.write(f"{'':<15}{json.dumps(sample, ensure_ascii=False)}")

    flat = Flat(model)
    optimizer = OPTIMIZERS[config.optimizer](flat, config.weight_decay)
    windows = text.Windows(train, config.block_size, config.seed)
    about = {
        "config": asdict(config) | {"out": None},  # the folder may move
        "model": asdict(model.config),
        "tokenizer": tokenizer.config(),
        "data": zlib.crc32(np.concatenate([train, validation])),
        "numpy": np.__version__,
    }
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, optimizer, windows, (x, y), config, rng, out, about, report)
    if saved:
        trainer.restore(*saved)
        say("4 train", f"continues after step {trainer.step} of {config.steps}")
    else:
        for name in ("last.safetensors", "best.safetensors", "log.csv"):
            (out / name).unlink(missing_ok=True)
        say("4 train", f"{config.steps} steps of {config.batch_size} x {config.block_size} tokens")
        report(trainer)
    trainer.run()
    if trainer.stopped:
        command = f"python train.py --resume --out {shlex.quote(str(out))}"
        say("", f"stopped after step {trainer.step}; continue: {command}")
        return

    model.load_state_dict(checkpoint.weights(checkpoint.load(out / "best.safetensors")[0]))
    loss = mean_loss(model, x, y, 2 * config.batch_size)
    verdict = "below" if loss < to_beat["best n-gram"] else "not below"
    bits = f"{loss:.4f} nats per character = {loss / math.log(2):.3f} bits"
    say("5 validate", f"whole split: {bits}, {verdict} the best n-gram; epoch {windows.epoch + 1}")
    command = f"python sample.py {shlex.quote(str(out))} --interactive"
    say("6 apply", f"{command}   (the model is in {out}/best.safetensors)")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # while there is nothing to save, or the second
        print()
