"""Train a model in six steps: preprocess, build, initialise, train, validate, apply.

python train.py                a GPT learns to write from the documentation of this Python
python train.py --data FILE    ... from a text of your own
python train.py --data digits --model conv    a CNN learns to read digits; see README for more
python train.py --resume       continue a run that was stopped, as if it never had been
python train.py --model gpt3-175b --dry-run    what GPT-3 would cost
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt.datasets import catalogue, text
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine import device
from minigpt.engine.autograd import plain
from minigpt.generate import stream
from minigpt.nn.families import language_model
from minigpt.nn.gpt import WINDOW, GPTConfig
from minigpt.nn.module import Flat
from minigpt.training import checkpoint, parallel
from minigpt.training.config import Config, Parser, add_options
from minigpt.training.optim import OPTIMIZERS
from minigpt.training.trainer import NEVER, Trainer, mean_loss

CACHE = Path(__file__).resolve().parent / "data"
FREE = {"data", "out", "steps", "patience", "device", "plain", "workers"}  # on resume
PAPERS = ("gpt2", "gpt3")  # how the names of their models begin
BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
TIMES = {"s": 1, "hours": 3600, "days": 86400, "years": 365 * 86400}


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
    whether.add_argument(
        "--dry-run",
        action="store_true",
        help="say what a model of text and its training would cost; nothing is read or built",
    )
    add_options(parser)
    given = vars(parser.parse_args(words))
    resume, overwrite, dry = (given.pop(flag) for flag in ("resume", "overwrite", "dry_run"))
    try:
        if dry:
            return estimate(given)
        kind, config, out, saved = configure(resume, overwrite, given)
        library, found = device.select(config.device)
        most = 4 * parallel.physical_cores() if library is np else 1
        if (asked := given.get("workers", 1)) > most:
            raise ValueError(f"--workers: expected at most {most} here, got {asked}; leave it out")
        if library is np and kind in ("text", "task"):
            refuse_too_large(config)
        task = {"text": Writing, "task": Answering}.get(kind, Sorting)(config)  # 1 preprocess
        if saved and saved[1]["data"] != task.crc:
            raise ValueError("--data: not what this run has read; restore it, or start anew")
        model, rng = build(config, task, library, found)
    except BrokenPipeError:
        raise  # see below
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    try:
        with plain() if config.plain else contextlib.nullcontext():
            windows = initialise(config, model, task)
            config.workers = workers(config, model)
            about = {"model": asdict(model.config), "data": task.crc, "numpy": np.__version__}
            about |= task.about
            job = config, model, rng, task, windows, out, about, saved
            trainer = parallel.run(config.workers, work, *job)
            if not trainer.stopped:
                task.apply(trainer)
    except (OSError, MemoryError, FloatingPointError, ValueError) as error:
        with contextlib.suppress(OSError):
            out.rmdir()  # if nothing is in it yet
        room = "; lower --batch-size or --n-embd" if isinstance(error, MemoryError) else ""
        parser.error(f"{error}{room}")


def examples():
    """The module, imported when there is something to classify: text does without."""
    from minigpt.datasets import examples

    return examples


def tasks():
    """The module, imported when there are questions to answer."""
    from minigpt.datasets import tasks

    return tasks


def trained_tokenizer(config, whole, training):
    """Of all characters, or the tokens of the training part."""
    if config.tokenizer == "char":
        if (distinct := len(set(whole))) > 5000:
            say("", f"{distinct:,} characters, each learned by itself: try --tokenizer bpe")
        return CharTokenizer.train(whole)
    from minigpt.datasets.bpe import BPETokenizer

    return BPETokenizer.train(training, config.vocab_size)


def say(step, message):
    """Print a line under the name of its step."""
    print(f"{step:<14} {message}", flush=True)


def configure(resume, overwrite, given):
    """Options -> kind of data, config, folder, and the checkpoint to continue from, if asked for"""
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
        run |= given
    elif out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {out} is a file; name another")
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} is not empty; --resume continues its run, --overwrite replaces it")
    kind = catalogue.kind(run["data"], given.get("target"))
    if kind not in ("text", "task") and run["model"].startswith(PAPERS):
        expected = "gpt, lstm, gru, rnn or conv for examples"
        raise ValueError(f"--model: expected {expected}, got {run['model']}")
    config = Config.fitted(kind, sized(given))
    gpt_config(config, 1)  # refuses a shape that cannot be, before anything is read
    if config.tokenizer == "char" and config.vocab_size != Config().vocab_size:
        need = "expected --tokenizer bpe, of which it is the size"
        raise ValueError(f"--vocab-size: {need}, got char; add it or leave this out")
    return kind, config, out, saved


def gpt_config(config, vocab_size):
    """The options that shape the model."""
    names = ("block_size", "n_layer", "n_embd", "dropout")
    heads = config.n_head if config.model.startswith("gpt") else 1  # recurrence has none to fit
    shape = {name: getattr(config, name) for name in names}
    window = WINDOW if config.model.startswith("gpt3") else None
    return GPTConfig(vocab_size, n_head=heads, window=window, **shape)


def sized(given):
    """The options that were given, over the shape of the paper's model that --model may name."""
    if not given.get("model", "gpt").startswith(PAPERS):
        return given
    from minigpt.nn.presets import PRESETS

    names = ("n_layer", "n_head", "n_embd", "block_size")
    return {name: getattr(PRESETS[given["model"]], name) for name in names} | given


class Writing:
    """Text: the next character is predicted."""

    def __init__(self, config):
        """Read it; say what must be beaten."""
        say("1 preprocess", f"{' '.join(config.data)}: reading ...")
        characters = text.load(config.data, CACHE)
        self.crc = zlib.crc32(characters.encode())
        training, rest = text.split(characters, config.block_size)
        self.tokenizer = trained_tokenizer(config, characters, training)
        self.about, V = {"tokenizer": self.tokenizer.config()}, self.tokenizer.vocab_size
        self.train, self.validation = map(self.tokenizer.encode, (training, rest))
        if (least := min(map(len, (self.train, self.validation)))) <= config.block_size:
            need = f"more than --block-size {config.block_size} tokens of bpe in each part"
            raise ValueError(f"--data: expected {need}, got {least}; add text or lower it")
        self.scale = len(self.validation) / len(rest)  # tokens per character: all losses are
        self.classes, self.uniform = V, self.scale * math.log(V)  # per character
        sizes = f"train {len(self.train):,} / validation {len(self.validation):,}"
        size = f"{len(characters):,} characters, {len(set(characters))} distinct"
        many = f"{V:,} tokens of bpe; " if config.tokenizer == "bpe" else ""
        say("", f"{size}; {many}{sizes}")
        counted = text.baselines(self.train, self.validation, V, rest, CACHE)
        self.to_beat = {name: counted[name] for name in ("uniform", "unigram", "bzip2")}
        self.to_beat["best n-gram"] = counted["best"]
        if self.to_beat["bzip2"] > self.uniform:  # its header alone outweighs a small text
            del self.to_beat["bzip2"]
        figures = ", ".join(f"{name} {loss:.3f}" for name, loss in self.to_beat.items())
        part = f", counted on {counted['read']:,}" if counted["read"] < len(self.train) else ""
        say("", "to beat, in nats per character (1 nat = 1.44 bits):")
        say("", f"{figures} (order {counted['order']}{part})")

    def build(self, config, rng):
        return language_model(config.model, gpt_config(config, self.classes), rng)

    def windows(self, config):
        return text.windows_in_order(self.validation, config.block_size)

    def stream(self, config):
        windows = text.Windows(self.train, config.block_size, config.seed)
        windows.scale = self.scale
        return windows

    def report(self, trainer, loss, best):
        """Two lines at an evaluation: which bars fell, and a sample."""
        passed = ", ".join(name for name, bar in self.to_beat.items() if loss < bar <= best)
        tqdm.write(progress(trainer, loss) + (f": past {passed}" if passed else ""))
        rng = np.random.default_rng((trainer.config.seed, trainer.step))
        tqdm.write(f"{'':<14} {write(trainer.model, self.tokenizer, 56, rng)}")

    def validate(self, loss):
        loss *= self.scale
        bits = f"{loss:.4f} nats per character = {loss / math.log(2):.3f} bits"
        n_gram = self.to_beat["best n-gram"]
        say("5 validate", f"whole split: {bits},")
        say("", f"{'below' if loss < n_gram else 'not below'} the best n-gram, {n_gram:.3f}")

    def apply(self, trainer):
        """The trained model writes."""
        rng = np.random.default_rng(trainer.config.seed)
        say("6 apply", write(trainer.model, self.tokenizer, 56, rng))
        say("", f"next: python sample.py {shlex.quote(str(trainer.out))} --interactive")
        say("", "and read minigpt/engine/autograd.py")


class Answering(Writing):
    """Questions and pairs: the answer is predicted, token by token."""

    scale = 1.0

    def __init__(self, config):
        """Read or generate them; say how long they are."""
        say("1 preprocess", f"{config.data[0]}: reading ...")
        parts = tasks().load(config.data[0], config.seed)
        self.crc, train = parts.crc(), tasks().text_of(parts.train)
        whole = train + tasks().text_of(parts.validation + parts.test)
        self.tokenizer = trained_tokenizer(config, whole, train)
        self.about = {"tokenizer": self.tokenizer.config(), "task": True}
        encoded = (tasks().encode(part, self.tokenizer) for part in parts)
        self.train, self.validation, self.test = encoded
        self.classes, self.uniform = self.tokenizer.vocab_size, math.log(self.tokenizer.vocab_size)
        sizes = " / ".join(f"{len(part):,}" for part in parts)
        self.kinds, self.question = tasks().kinds(parts.test), parts.test[0][0][0]
        longest = max(x.shape[1] for x, _ in (self.train, self.validation, self.test))
        say("", f"examples of {longest} tokens at most; train / validation / test {sizes}")
        if longest > config.block_size and config.model.startswith("gpt"):
            need = f"expected at least {longest}, the longest example"
            raise ValueError(f"--block-size: {need}, got {config.block_size}; raise it")

    def windows(self, config):
        return self.validation

    def stream(self, config):
        return tasks().Lines(*self.train, config.seed)

    def report(self, trainer, loss, best):
        """A line at an evaluation, with how many answers to its first examples are right."""
        from minigpt.training.scores import exact

        right = exact(trainer.model, *(part[:100] for part in self.validation)).mean()
        tqdm.write(progress(trainer, loss) + f", exact {right:.1%}")

    def validate(self, loss):
        say("5 validate", f"validation part: {loss:.4f} nats per token of the answers")

    def apply(self, trainer):
        """The score of each kind of question on the test part, which nothing has seen so far."""
        from minigpt.training.scores import exact_by_kind

        for i, line in enumerate(exact_by_kind(trainer.model, *self.test, self.kinds)):
            say("" if i else "6 apply", f"held out: {line}" if i == 0 else line)
        question = shlex.quote(self.question)
        say("", f"next: python sample.py {shlex.quote(str(trainer.out))} --prompt {question}")


class Sorting:
    """Images, sounds or rows of a table: the class is predicted."""

    scale = 1.0

    def __init__(self, config):
        """Read or generate the examples; say how often the most frequent class would be right."""
        say("1 preprocess", f"{config.data[0]}: reading ...")
        self.examples = e = examples().load(config.data[0], config.target, config.seed, CACHE)
        (x, y), self.classes, self.uniform = e.train, len(e.classes), math.log(len(e.classes))
        self.crc = e.crc()
        shape = list(e.encoder.shape)
        about = {"kind": e.kind, "classes": e.classes, "shape": shape, "positive": e.positive}
        self.about = {"examples": about | {"encoder": e.encoder.config()}}
        sizes = " / ".join(f"{len(y):,}" for _, y in (e.train, e.validation, e.test))
        size = " x ".join(map(str, x.shape[1:]))
        say("", f"{e.kind}s of {size}, {self.classes} classes; train / validation / test {sizes}")
        most = np.bincount(y).argmax()
        often = f"always {e.classes[most]}: {(e.test[1] == most).mean():.2%} right"
        say("", f"to beat: {often}; {self.uniform:.3f} nats")

    def build(self, config, rng):
        from minigpt.nn.classifier import classifier

        e, c = self.examples, gpt_config(config, self.classes)
        return classifier(e.kind, config.model, e.encoder.shape, c, rng)

    def windows(self, config):
        return self.examples.validation

    def stream(self, config):
        return examples().Rows(
            *self.examples.train, config.seed, examples().VARY[self.examples.kind]
        )

    def report(self, trainer, loss, best):
        """A line at an evaluation."""
        tqdm.write(progress(trainer, loss))

    def validate(self, loss):
        say("5 validate", f"validation part: {loss:.4f} nats per example")

    def apply(self, trainer):
        """The report on the test part, which nothing has seen so far."""
        from minigpt.training.scores import held_out

        for i, line in enumerate(held_out(trainer.model, self.examples)):
            say("" if i else "6 apply", f"held out: {line}" if i == 0 else line)
        say("", f"next: python sample.py {shlex.quote(str(trainer.out))} --input FILE")


def progress(trainer, loss):
    """The line of an evaluation, of the untrained model without losses."""
    figures = f"loss {trainer.recent:.3f}, validation {loss:.3f}" if trainer.step else "untrained"
    place = f"step {trainer.step:>5} {trainer.seconds:>4.0f} s"
    return f"{'':<14} {place}  epoch {trainer.stream.epoch + 1}  {figures}"


def build(config, task, library, found):
    """-> the model on its device, and the Generator that it draws from"""
    rng = np.random.default_rng(config.seed)
    model = task.build(config, rng).to(library)
    form = form_of(config) if isinstance(task, Writing) else f"{config.n_embd} wide"
    count = model.parameter_count()
    size = f"{count / 1e6:.2f} M parameters" if count >= 1e5 else f"{count:,} parameters"
    unit = "token" if isinstance(task, Writing) else "example"
    flops = f"{model.flops_per_token() / 1e6:.1f} MFLOP per {unit}"
    say("2 build", f"{config.model}: {form}: {size}, {flops}")
    say("", found)
    return model, rng


def form_of(config):
    """The shape of a model of text, in words"""
    heads = f"{config.n_head} heads, " if config.model.startswith("gpt") else ""
    return f"{config.n_layer} layers, {heads}{config.n_embd} wide, context {config.block_size}"


def initialise(config, model, task):
    """Check the first loss -> what to validate on (x, y), on the model's device."""
    x, y = (model.library.asarray(part) for part in task.windows(config))
    first = mean_loss(model, x[:32], y[:32], 32) * task.scale
    say("3 initialise", f"seed {config.seed}; first loss {first:.3f} (uniform {task.uniform:.3f})")
    return x, y


def write(model, tokenizer, tokens, rng):
    """What the model writes after "The " (or its first letter, if unknown), on one line."""
    prompt = "The " if isinstance(tokenizer, CharTokenizer) else "The"  # bpe: a space begins a word
    if tokenizer.unknown(prompt):
        prompt = tokenizer.decode([0])
    training = model.training
    words = "".join(stream(model.eval(), tokenizer, prompt, tokens, rng, temperature=0.8))
    model.train(training)
    return json.dumps(prompt + words, ensure_ascii=False)


def workers(config, model):
    """How many processes share a batch: as many as asked, or one per core if that pays."""
    if model.library is not np:
        return 1  # a GPU is one device
    if config.workers:
        return config.workers
    windows, tokens = config.batch_size // config.accumulate, config.batch_size * config.block_size
    work = tokens * model.flops_per_token()
    whole = work * config.steps if config.steps else 3e12 * config.minutes  # 5e10 FLOP/s of a core
    # Ranks wait for each other 1 ms a step, each updates all weights; they take a second to start.
    pays = work > 5e8 and whole > 1e12
    share = max(1, tokens // 128 or windows // 16)  # 128 tokens or 16 rows keep a process busy
    return min(parallel.physical_cores(), windows, share) if pays else 1


def work(ranks, config, model, rng, task, windows, out, about, saved):
    """Steps 4 and 5, on every rank -> the trainer"""
    with plain() if config.plain else contextlib.nullcontext():  # the other ranks ask here
        batches, report = task.stream(config), task.report
        optimizer = OPTIMIZERS[config.optimizer](Flat(model, ranks), config.weight_decay)
        trainer = Trainer(
            model, optimizer, batches, windows, config, rng, out, about, report, ranks
        )
        fit(trainer, saved)
        if not trainer.stopped:
            validate(trainer, windows, task)
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
        T = trainer.stream.block_size
        most = " at most" if T != c.block_size else ""
        batch = f"{c.batch_size} rows" if T == 1 else f"{c.batch_size} x {T} tokens{most}"
        say("4 train", f"{size} of {batch}{crew}")
        trainer.on_evaluate(trainer, math.inf, math.inf)
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


def validate(trainer, windows, task):
    """The best checkpoint on the whole validation split."""
    trainer.ranks.barrier()  # rank 0 has written it
    arrays, _ = checkpoint.load(trainer.out / "best.safetensors")
    trainer.model.load_state_dict(checkpoint.weights(arrays))
    loss = mean_loss(trainer.model, *windows, 2 * trainer.config.batch_size, trainer.ranks)
    if trainer.ranks.rank == 0:
        task.validate(loss)


def refuse_too_large(config):
    """Raise ValueError if weights, gradients and moments alone exceed the machine's memory."""
    if config.n_embd * (config.n_layer * config.n_embd + config.block_size) < 1e7:
        return  # some 2 GB at most
    from minigpt.training import costs

    need = sum(memory(config, gpt_config(config, 1)).values())  # no text has been read yet
    if need > (room := costs.room()):
        fits = f"weights, gradients and moments within {scaled(room, BYTES)} of memory"
        remedy = "choose a smaller --model or shape; --dry-run says what it would cost"
        raise ValueError(f"model: expected {fits}, got {scaled(need, BYTES)}; {remedy}")


def memory(config, shape):
    """{what: bytes} of training a model, activations aside"""
    from minigpt.nn import presets
    from minigpt.training import costs

    parts, hidden, _ = presets.counted(config.model, shape)
    return costs.memory(sum(parts.values()), hidden, config.optimizer)


def estimate(given):
    """Say what the model of these options and its training would cost."""
    from minigpt.nn import presets
    from minigpt.training import costs

    names = given.get("data", [])
    kinds = {name: catalogue.kind_of_word(name) or "text" for name in names}
    if other := [name for name in names if kinds[name] not in ("text", "task")]:
        raise ValueError(f"--dry-run: expected a model of text, got {other[0]}; leave --data out")
    config = Config.fitted(kinds[names[0]] if names else "text", sized(given))
    c = gpt_config(config, given.get("vocab_size", presets.VOCABULARY))
    parts, hidden, attention = presets.counted(config.model, c)
    per_token = 6 * (hidden + parts["embeddings"]) + attention
    say(config.model, form_of(config) + (f", {c.window} in every second block" * bool(c.window)))
    whose = "as asked" if "vocab_size" in given else "GPT-2's, as no text is read; or --vocab-size"
    say("", f"vocabulary {c.vocab_size:,}: {whose}")
    count = sum(parts.values())
    say("parameters", f"{count:,}")
    for name, n in parts.items():
        say("", f"  {name:<20} {n:>18,} {n / count:>7.1%}")
    share = f", {attention / per_token:.1%} of it attention over the context" * bool(attention)
    say("operations", f"{per_token:.3g} FLOPs to train on a token{share}")
    kept = memory(config, c)
    say("memory", f"{scaled(sum(kept.values()), BYTES)} to train in float32, activations aside")
    for name, n in kept.items():
        say("", f"  {name:<20} {scaled(n, BYTES):>18}")
    if attention:
        cache = scaled(8 * c.n_layer * c.n_embd * c.block_size, BYTES)
        say("", f"{cache} of keys and values when sampling, at the end of a context")
    price(per_token * costs.TOKENS, c == presets.PRESETS["gpt3-175b"])


def price(flops, published):
    """Say what a training of so many FLOPs costs; published: beside the figure of GPT-3's paper."""
    from minigpt.training import costs

    say("training", f"on {costs.TOKENS / 1e9:.0f} billion tokens, as GPT-3: {flops:.3g} FLOPs")
    if published:
        less = f"{costs.FLOPS:.3g}, without attention over the context"
        say("", f"({flops / costs.FLOPS - 1:+.1%} beside the paper's {less})")
    for machines in (costs.V100, costs.A100):
        seconds, energy, carbon = costs.training(flops, machines)
        name = f"{machines.count:,} {machines.name} at {machines.rate / 1e12:.1f} TFLOP/s"
        use = f"{figure(energy):>9} MWh {figure(carbon):>9} t CO2e"
        say("", f"  {name:<28} {scaled(seconds, TIMES):>15} {use}")
    cores = parallel.physical_cores()
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
    """Three digits, or all before the point"""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


if __name__ == "__main__":
    for file in filter(None, (sys.stdout, sys.stderr)):
        file.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to stop
    try:
        main()
    except KeyboardInterrupt:  # while there is nothing to save, or the second
        print("stopped; what was saved stays")
    except BrokenPipeError:  # the reader, say head, has seen enough; no flush into a closed pipe
        os._exit(0)
