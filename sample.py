"""Let a trained model write, answer or classify.

python sample.py                                   the newest run in out/ writes
python sample.py --prompt "The with statement"     ... and goes on from your words
python sample.py out/manual-gpt --interactive      a prompt per line, until Ctrl-D
python sample.py out/translation-gpt --prompt "three hundred and ten"       ... or answers
python sample.py out/credit-gpt --input new.csv    probabilities; without --input: the test report
python sample.py --look "To be, or not"            a page that shows what the model sees in a text
"""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

import numpy as np

import minigpt
from minigpt.applications import runs
from minigpt.datasets import catalogue
from minigpt.engine import device
from minigpt.engine.arrays import quiet
from minigpt.messages import check, nobody_reads, replace_unknown
from minigpt.training import stopping
from minigpt.training.config import Parser, number
from minigpt.training.ranks import started_by_mpi

FOLDER = Path(__file__).resolve().parent / "data"
# The options of what is written, and their defaults. Where nothing is written they are refused.
WRITING = {"tokens": 500, "temperature": None, "top_k": None, "top_p": None, "stop": "",
           "count": 1, "seed": 1337}  # fmt: skip


def main(words=None):
    """Load a model and let it reply; a user's mistake ends in one line and exit code 2."""
    parser = command_line()
    args = parser.parse_args(words)
    args.given = fill_in(args)
    talks = args.prompt is not None or args.interactive
    try:
        check(started_by_mpi()[1] == 1, "mpiexec", "one process", "several", "call sample.py alone")
        refuse_two_things_at_once(args)
        library, _ = device.select(args.device)
        model, application = load(args.run or newest(), library)
        if talks:
            application.listen(args, args.prompt)
        if args.input is not None:
            return application.predict(model, args.input)
        if not talks:
            locate_data(application, args.data)
        if args.explain is not None or args.look is not None:
            return show(args, model, application)
        prompt = args.prompt if talks else application.without_prompt(model, args, piped)
        rng = np.random.default_rng(args.seed)
        with quiet():  # choose() looks at the logits
            if prompt is not None:
                application.reply(model, prompt, rng)
            if args.interactive:
                converse(application, model, rng)
    except (ValueError, OSError) as error:
        if nobody_reads(error):
            raise  # not a mistake; handled at the end
        parser.error(str(error))


def fill_in(args):
    """Give the options of WRITING that are missing their defaults -> the others, as typed."""
    given = []
    for name, default in WRITING.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        else:
            given.append(f"--{name.replace('_', '-')}")
    return given


def refuse_two_things_at_once(args):
    """Raise ValueError if the command line asks for several things that exclude each other."""
    names = ("prompt", "interactive", "input", "explain", "look")
    asked = [f"--{name}" for name in names if getattr(args, name) not in (None, False)]
    if len(asked) > 1 and asked != ["--prompt", "--interactive"]:
        got = " and ".join(asked)
        raise ValueError(f"expected one of these, got {got}; leave out all but one")
    if args.given and {*asked} & {"--input", "--explain", "--look"}:
        need = f"expected a text to write, got {asked[0]}, which writes none"
        raise ValueError(f"{args.given[0]}: {need}; leave one out")
    if args.data is not None and asked not in ([], ["--look"]):
        need = "expected the report or --look, which read the data of a run"
        raise ValueError(f"--data: {need}, got {asked[0]}; leave one out")


def locate_data(application, said):
    """Where a report reads the data of its run: where --data says, or where it is found."""
    config = application.config
    if application.writes and not application.answers:  # it has no report
        check(said is None, "--data", "a run with a report", f"{config.out} writes", "leave it out")
    else:
        places = catalogue.found(config.data, config.out, application.began)
        application.places = [[said]] if said else places


def show(args, model, application):
    """Print how much a text surprises the model, or write the page of what the model sees."""
    from minigpt import inside

    if args.explain is not None:
        return print(inside.explain(model, application, args.explain, sys.stdout))
    run = Path(application.config.out)
    page = (run if run.is_dir() else run.parent) / "look.html"
    page.write_text(inside.look(model, application, args.look), encoding="utf-8")
    print(f"{page}: open it in a browser")


def load(path, library):
    """A run's folder, a checkpoint in it, or a folder of Hugging Face's -> model, application"""
    if (Path(path) / "config.json").is_file():
        from minigpt import hub

        return hub.writer(path, library, FOLDER)
    return runs.load(path, library, FOLDER)


def newest():
    """The run in out/ that was saved last."""
    found = list(Path("out").glob("*/last.safetensors"))
    if not found:
        raise FileNotFoundError("out/: expected a trained model, found none; run train.py first")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def piped():
    """What another program writes into this one; nothing if standard input is a terminal."""
    return "" if not sys.stdin or sys.stdin.isatty() else sys.stdin.read().rstrip("\n")


def converse(application, model, rng):
    """Reply to one line after the other."""
    with contextlib.suppress(ImportError):  # arrow keys and history in input()
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ")
        except (EOFError, RuntimeError):  # Ctrl-D, or no standard input at all
            return print()
        application.reply(model, line, rng)


def command_line():
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("sample.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    add, whole, natural = parser.add_argument, number(int, (">=", 1)), number(int, (">=", 0))
    positive, share = number(float, (">=", 0)), number(float, (">", 0), ("<=", 1))
    add("--version", action="version", version=f"minigpt {minigpt.__version__}")
    add("run", nargs="?", metavar="DIR|FILE",
        help="a run's folder or a checkpoint in it, or a GPT-2 in Hugging Face's files (default: "
        "the newest run in out/)")  # fmt: skip
    add("--prompt", metavar="TEXT", help="go on from here (default: standard input, if piped)")
    add("--interactive", action="store_true", help="read prompts, one per line")
    add("--tokens", type=whole, metavar="N", help="how many to write (default 500)")
    add("--temperature", type=positive, metavar="N",
        help="0: the most likely token; higher: more random (default 0.8; answers 0)")  # fmt: skip
    add("--top-k", type=whole, metavar="N", help="draw from the N most likely tokens only")
    add("--top-p", type=share, metavar="N",
        help="draw from the fewest tokens whose probabilities add up to N")  # fmt: skip
    add("--stop", metavar="TEXT", help="end before this text, if it comes")
    add("--count", type=whole, metavar="N",
        help="how many samples (default 1); they are drawn together, so with another N the same "
        "seed writes other texts")  # fmt: skip
    add("--seed", type=natural, metavar="N",
        help="another seed, another text (default 1337)")  # fmt: skip
    add("--device", choices=["auto", "cpu", "gpu"], default="auto",
        help="auto: a GPU if one answers (default auto)")  # fmt: skip
    add("--explain", metavar="TEXT",
        help="print this text; the redder a token, the more it surprises the model (if the output "
        "is no terminal: a list)")  # fmt: skip
    add("--look", metavar="TEXT", nargs="?", const="",
        help="write look.html into the run's folder: what each head sees in this text; for a "
        "classifier, which inputs its answers depend on")  # fmt: skip
    add("--input", metavar="FILE", help="a classifier: print the probabilities of these rows, "
        "images or sounds (.csv, .npy, .wav, .png, .jpg); default: its report on held-out "
        "data")  # fmt: skip
    add("--data", metavar="PATH",
        help="where the data of the report lies now (default: where it lay)")  # fmt: skip
    return parser


if __name__ == "__main__":
    replace_unknown(sys.stdin, sys.stdout)
    try:
        main()
    except KeyboardInterrupt:
        print()
        stopping.end_as(signal.SIGINT)
    except OSError as error:
        if nobody_reads(error):
            os._exit(0)  # no flush into a closed pipe
        print(f"sample.py: cannot write: {error.strerror}", file=sys.stderr)
        os._exit(2)
