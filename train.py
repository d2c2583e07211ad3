"""Train a model in six steps: preprocess, build, initialise, train, validate, apply.

python train.py                a GPT learns to write from the documentation of this Python
python train.py --data FILE    ... from a text of your own
python train.py --data FILE --init out/manual-gpt    ... with what another run has learned
python train.py --data digits --model conv    a CNN learns to read digits; see README for more
python train.py --resume       continue a run that was stopped, as if it had never been stopped
python train.py --model gpt3-175b --dry-run    what GPT-3 would cost
mpiexec -n 4 python train.py   ... in four processes, on one machine or several
"""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

import numpy as np

import minigpt
from minigpt.applications import application_class, options, plan
from minigpt.datasets import TOKENIZERS, catalogue
from minigpt.engine import device
from minigpt.engine.arrays import quiet, to_numpy
from minigpt.engine.autograd import plain
from minigpt.messages import nobody_reads, place, replace_unknown, say
from minigpt.nn import MODELS
from minigpt.nn.module import Flat
from minigpt.training import folder, optimizer_class, stopping, strangers
from minigpt.training.config import Parser, add_options
from minigpt.training.ranks import Alone, started_by_mpi
from minigpt.training.trainer import Trainer, mean_loss

CACHE = Path(__file__).resolve().parent / "data"


def main(words=None):
    """Read the command line and train; a user's mistake ends in one line and exit code 2.

    Returns the number of the signal that has stopped the training, or False.
    """
    parser = command_line()
    given = vars(parser.parse_args(words))
    flags = "resume", "overwrite", "dry_run", "check_gradients"
    resume, overwrite, dry, check = (given.pop(flag) for flag in flags)
    try:
        if dry:
            return estimate(given)
        out = options.folder_of(given)
        one_process_per_rank(given)
        with contextlib.nullcontext() if check else folder.claimed(out, create=not resume):
            if resume:
                folder.bring_back(out)
            origin = None if resume else origin_of(given)
            kind, config, saved = options.configure(given, resume, overwrite or check, origin)
            with plain() if config.plain else contextlib.nullcontext(), quiet():
                return six_steps(kind, config, saved, check, origin)
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        if nobody_reads(error):
            raise  # not a mistake; handled at the end
        parts = "--accumulate 2 halves what a step keeps"
        room = f"; {parts}, or lower --batch-size" if isinstance(error, MemoryError) else ""
        parser.error(f"{str(error) or 'no memory is left'}{room}{place(error)}")


def six_steps(kind, config, saved, check=False, origin=None):
    """Train a model and let it do what it has learned -> what has stopped it, or False.

    kind: of data; config: all options; saved: the checkpoint of a run to resume, or None; check:
    compare the gradients with differences instead; origin: the model that --init names, or None.
    """
    library, where = device.select(config.device, config.precision)
    check_room(kind, config, library, saved)

    # 1 preprocess: texts, tables, images or sounds become arrays of numbers.
    application = application_of(kind, config, saved, origin)
    application.preprocess()
    if saved and saved[1].get("data") != application.crc:
        raise ValueError("--data: not what this run has read; restore it, or start anew")

    # 2 build: the model, on the CPU or on a GPU.
    rng = np.random.default_rng(config.seed)
    model = application.build(rng).to(library)
    flops = f"{model.flops_per_token() / 1e6:.1f} MFLOP per {application.unit}"
    say("2 build", f"{config.model}: {application.form()}: {parameters(model)}, {flops}")
    windows = [library.asarray(part) for part in application.windows()]  # what is held out
    config.workers = number_of_processes(config, model)
    say("", where)
    if library is np:
        say("", plan.memory_of_a_run(config, model, application, windows))

    # 3 initialise: with random weights every answer is about equally likely, and the loss shows it.
    # With those of --init it is lower, if what they have learned helps here.
    if origin:
        origin.fill(model)
    x, y = (part[:32] for part in windows)
    first, begin = mean_loss(model, x, y, 32) * application.scale, f"seed {config.seed}"
    if application.origin:
        begin = f"begun with the weights of {application.origin['from']}"
        first = application.origin.setdefault("first", first)  # when the run began
    application.first, uniform = first, application.uniform
    say("3 initialise", f"{begin}; first loss {first:.3f} (uniform {uniform:.3f})")

    if check:
        return check_gradients(kind, model, x, y)

    # 4 train and 5 validate, in one process or in several that share each batch.
    about = application.about() | {"application": kind, "numpy": np.__version__}
    own = strangers.identity(config, application.crc, application.origin)
    about["run"] = saved[1].get("run") if saved else own
    if not all(map(catalogue.is_name, config.data)):  # paths, as they are said in this folder
        about["folder"] = catalogue.seen_from(config.out, os.path.realpath("."))
    trainer = share(train_and_validate, config, model, application, rng, windows, about, saved)

    # 6 apply: the trained model writes, answers or classifies.
    if not trainer.stopped:
        application.apply(model)
    return trainer.stopped


def train_and_validate(ranks, config, model, application, rng, windows, about, saved):
    """Steps 4 and 5, which each process runs on its share of every batch -> the Trainer."""
    with plain() if config.plain else contextlib.nullcontext():  # a new process starts without it
        # 4 train: predict, compare, change every weight a little so that the loss falls; repeat.
        optimizer = optimizer_class(config.optimizer)(Flat(model, ranks), config.weight_decay)
        batches, report = application.stream(), application.report
        trainer = Trainer(
            model, optimizer, batches, windows, config, rng, config.out, about, report, ranks
        )
        trainer.fit(saved)

        # 5 validate: how good is the best state of the model on data it has not learned from?
        if not trainer.stopped:
            loss = trainer.validate()
            if ranks.rank == 0:
                application.validate(loss)
        return trainer


def origin_of(given):
    """The model that --init names; None without it."""
    if "init" not in given:
        return None
    from minigpt.origin import Origin

    return Origin(given["init"], CACHE)


def application_of(kind, config, saved, origin):
    """The application of the data, with what it takes over from --init, or took over when the run
    began: then the checkpoint has it, and the model that --init named is not needed any more."""
    if saved and saved[1].get("origin"):
        with strangers.foreign(config.out):
            return application_class(kind).restore(config, saved[1], CACHE)
    application = application_class(kind)(config, CACHE)
    if origin:
        application.tokenizer, application.origin = origin.tokenizer, origin.about
    return application


def check_gradients(kind, model, x, y):
    """Compare the gradients on two texts or examples with differences; exit 1 if they differ."""
    from minigpt.training import gradients

    part = (slice(2), slice(32)) if kind == "text" else slice(2)  # a short context is enough
    x, y = to_numpy(x[part]), to_numpy(y[part])
    x = x.astype(np.float64) if x.dtype.kind == "f" else x
    model, rng = model.to(np, np.float64).eval(), np.random.default_rng(0)
    gradients.shake(model, rng)
    found = gradients.check(model, x, y, rng)
    lines, right = gradients.report(found)
    wrong = gradients.habits(model, x, y)
    for line in lines + wrong:
        say("", line)
    if wrong or not right:
        sys.exit(1)


def one_process_per_rank(given):
    """With MPI: let the options say so. Raises ValueError if they ask for more."""
    if (size := started_by_mpi()[1]) > 1:
        got = given.setdefault("workers", 1)
        if got > 1:
            each = f"expected 1 in each of the {size} processes of mpiexec -n {size}"
            raise ValueError(f"--workers: {each}, got {got}; leave it out")


def number_of_processes(config, model):
    """--workers, or as many processes as save time."""
    if config.workers == 1:
        return 1
    from minigpt.training import processes

    return processes.how_many(config, model)


def share(program, config, model, *rest):
    """Run program(ranks, config, model, *rest) in config.workers processes, or in those of MPI."""
    if started_by_mpi()[1] > 1:
        from minigpt.training import mpi

        where = "cpu" if model.library is np else "gpu", config.precision
        return mpi.run(where, program, config, model, *rest)
    if config.workers == 1:
        return program(Alone(), config, model, *rest)
    from minigpt.training import processes

    return processes.run(config.workers, program, config, model, *rest)


def check_room(kind, config, library, saved):
    """Raise ValueError before any data is read if this machine is too small for the run.

    The workers of a resumed run are not refused if their number is unchanged: it may be a smaller
    machine than the one that began it.
    """
    size, windows = started_by_mpi()[1], config.batch_size // config.accumulate
    if size > windows:
        expected = f"at most {windows}, --batch-size / --accumulate"
        raise ValueError(f"mpiexec -n: expected {expected}, got {size}; start fewer")
    before = saved[1]["config"]["workers"] if saved else None
    if config.workers not in (None, 1, before):
        from minigpt.training import processes

        processes.refuse_too_many(config.workers, on_gpu=library is not np)
    large = config.n_embd * (config.n_layer * config.n_embd + config.block_size) >= 1e7  # 2 GB
    if library is np and kind in ("text", "task") and large:
        plan.refuse_too_large(config)


def estimate(given):
    """Say what the model of these options and its training would cost."""
    from minigpt.training.processes import physical_cores

    plan.dry_run(given, physical_cores())


def parameters(model):
    """The number of parameters in words."""
    count = model.parameter_count()
    return f"{count / 1e6:.2f} M parameters" if count >= 1e5 else f"{count:,} parameters"


def command_line():
    """The command line: what to do, and then every field of training.config.Config."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("train.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"minigpt {minigpt.__version__}")
    whether = parser.add_mutually_exclusive_group()
    for name, text in (
        ("--resume", "continue the run in --out; --data, --steps (a new schedule), --patience, "
            "--device, --precision, --plain, --workers may change"),
        ("--overwrite", "replace the run in --out; other files stay"),
        ("--check-gradients", "compare the gradient of every parameter with differences of losses, "
            "fast pairs with definitions, and a text in pieces with the whole; train nothing"),
        ("--dry-run", "say what a model of text and its training would cost; nothing is read or "
            "built"),
    ):  # fmt: skip
        whether.add_argument(name, action="store_true", help=text)
    add_options(parser, {"model": MODELS, "tokenizer": TOKENIZERS})
    return parser


def command(end=stopping.end_as):
    """main(), and what follows from how it ends; end(number): as the signal ends a program."""
    try:
        if number := main():
            end(number)
    except KeyboardInterrupt as stop:  # before there is anything to save, or at the second Ctrl-C
        print("stopped; what was saved stays")
        end(getattr(stop, "number", signal.SIGINT))
    except OSError as error:
        if not nobody_reads(error):
            raise
        os._exit(0)  # no flush into a closed pipe


if __name__ == "__main__":
    replace_unknown(sys.stdout, sys.stderr)
    if started_by_mpi()[1] > 1:
        from minigpt.training import mpi

        mpi.together(command)
    else:
        command()
