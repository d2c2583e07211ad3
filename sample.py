"""Let a trained model write, answer or classify.

python sample.py                                   the newest run in out/ writes
python sample.py --prompt "The with statement"     ... and goes on from your words
python sample.py out/manual-gpt --interactive      a prompt per line, until Ctrl-D
python sample.py out/translation-gpt --prompt "three hundred and ten"       ... or answers
python sample.py out/credit-gpt --input new.csv    a classifier: probabilities; without, its report
"""

import argparse
import contextlib
import csv
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

from minigpt.datasets.tokenizers import tokenizer_from
from minigpt.engine import device
from minigpt.generate import stream
from minigpt.nn.families import MODELS, language_model
from minigpt.nn.gpt import GPTConfig
from minigpt.training import checkpoint
from minigpt.training.config import Parser, number

FOLDER = Path(__file__).resolve().parent / "data"


def options():
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("sample.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    add, whole = parser.add_argument, number(int, (">=", 1))
    share = number(float, (">", 0), ("<=", 1))
    add("run", nargs="?", metavar="DIR|FILE", help="a run's folder, or a checkpoint in it")
    add("--prompt", metavar="TEXT", help="go on from here (default: standard input, if piped)")
    add("--interactive", action="store_true", help="read prompts, one per line")
    add("--tokens", type=whole, default=500, metavar="N", help="how many to write (default 500)")
    add("--temperature", type=number(float, (">=", 0)), metavar="N",
        help="0: always the likeliest; higher: wilder (default 0.8; of answers 0)")  # fmt: skip
    add("--top-k", type=whole, metavar="N", help="draw from the N likeliest only")
    add("--top-p", type=share, metavar="N", help="draw from the fewest that hold this probability")
    add("--stop", metavar="TEXT", default="", help="end before this text, if it comes")
    add("--count", type=whole, default=1, metavar="N", help="how many samples (default 1)")
    add(
        "--seed",
        type=number(int, (">=", 0)),
        default=1337,
        metavar="N",
        help="another seed, another text (default 1337)",
    )
    add(
        "--device",
        choices=["auto", "cpu", "gpu"],
        default="auto",
        help="auto: a GPU if one answers (default auto)",
    )
    add("--input", metavar="FILE", help="a classifier: print the probabilities of these rows, "
        "images or sounds (.csv, .npy, .wav); default: its report on held-out data")  # fmt: skip
    return parser


def main(words=None):
    """Load a model and write after each prompt; a user's mistake ends in one line."""
    parser = options()
    args = parser.parse_args(words)
    try:
        library, _ = device.select(args.device)
        run = args.run or newest()
        model, tokenizer, about = load(run, library)
        if "examples" in about:
            if args.prompt is not None or args.interactive:
                raise ValueError(
                    f"--prompt: expected a model that writes, {run} classifies; use --input"
                )
            return classify(model, about, args.input)
        if "task" in about and args.stop:
            raise ValueError("--stop: expected none, as an answer ends by itself; leave it out")
        if "task" in about and args.prompt is not None and not args.prompt.strip():
            raise ValueError("--prompt: expected a question, got none; leave it out for the report")
        if args.input:
            raise ValueError(f"--input: expected a classifier, {run} writes; use --prompt")
        if args.prompt is None and not args.interactive:
            piped = sys.stdin and not sys.stdin.isatty()
            args.prompt = sys.stdin.read().rstrip("\n") if piped else ""
            if "task" in about and not args.prompt:
                return examine(model, tokenizer, about)
    except BrokenPipeError:
        raise  # of a report, see below
    except (ValueError, OSError) as error:
        parser.error(str(error))
    reply = ask if "task" in about else write
    reply = partial(reply, model, tokenizer, run, args, np.random.default_rng(args.seed))
    if args.prompt is not None:
        reply(args.prompt)
    if args.interactive:
        with contextlib.suppress(ImportError):  # arrow keys and history in input()
            import readline  # noqa: F401
    while args.interactive:
        try:
            line = input("> ")
        except (EOFError, RuntimeError):  # Ctrl-D, or no standard input at all
            return print()
        reply(line)


def write(model, tokenizer, run, args, rng, prompt):
    """Print the prompt and what follows it, as it comes."""
    prompt = known(tokenizer, run, prompt)
    start = prompt or ("\n" if not tokenizer.unknown("\n") else tokenizer.decode([0]))
    for _ in range(args.count):
        print(prompt, end="", flush=True)
        for piece in pieces(model, tokenizer, run, args, rng, start, args.stop, 0.8):
            print(piece, end="", flush=True)
        print()


def ask(model, tokenizer, run, args, rng, question):
    """Print the answer to the question, alone."""
    from minigpt.datasets.tasks import asked

    question = known(tokenizer, run, question)
    if not question.strip():
        return print("sample.py: nothing is asked", file=sys.stderr)
    for _ in range(args.count):
        answer = pieces(model, tokenizer, run, args, rng, asked(question), "\n", 0)
        print("".join(answer).strip())


def known(tokenizer, run, prompt):
    """The prompt without letters that the model does not know, which are named."""
    if unknown := tokenizer.unknown(prompt):
        print(f"sample.py: left out, unknown to {run}: {unknown!r}", file=sys.stderr)
    return "".join(c for c in prompt if c not in unknown)


def pieces(model, tokenizer, run, args, rng, start, stop, temperature):
    """What the model writes after start, piece by piece; temperature: unless one is given."""
    if (n := len(tokenizer.encode(start))) > (size := model.block_size):
        print(f"sample.py: the prompt has {n} tokens, {run} reads the last {size}", file=sys.stderr)
    temperature = temperature if args.temperature is None else args.temperature
    how = {"temperature": temperature, "top_k": args.top_k, "top_p": args.top_p}
    return stream(model, tokenizer, start, args.tokens, rng, stop, **how)


def newest():
    """The run in out/ that has saved last."""
    found = list(Path("out").glob("*/last.safetensors"))
    if not found:
        raise FileNotFoundError("out/: expected a trained model, found none; run train.py first")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def examine(model, tokenizer, about):
    """Print how many held-out answers are exact."""
    from minigpt.datasets import tasks
    from minigpt.training.scores import exact_by_kind

    run = about["config"]
    parts = tasks.load(run["data"][0], run["seed"])
    if parts.crc() != about["data"]:
        raise ValueError(f"{run['data'][0]}: not what this run has read; restore it")
    x, y = tasks.encode(parts.test, tokenizer)
    print("\n".join(exact_by_kind(model, x, y, tasks.kinds(parts.test))))


def classify(model, about, path):
    """Print the probability of each class for what is in the file, or the held-out report."""
    from minigpt.datasets import examples
    from minigpt.training.scores import held_out, probabilities

    run, e = about["config"], about["examples"]
    if path is None:
        held = examples.load(run["data"][0], run["target"], run["seed"], FOLDER)
        if held.crc() != about["data"]:
            raise ValueError(f"{run['data'][0]}: not what this run has read; restore it")
        return print("\n".join(held_out(model, held)))
    encoder = examples.encoder_from(e["encoder"])
    p = probabilities(model, encoder.encode(path))
    for column, values in getattr(encoder, "unseen", {}).items():
        new = ", ".join(f"{value} ({n} rows)" for value, n in values.items())
        print(f"sample.py: {path}: column {column}: not seen in training: {new}", file=sys.stderr)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["likeliest", *e["classes"]])
    for row in p:
        out.writerow([e["classes"][row.argmax()], *(f"{value:.4f}" for value in row)])


def load(path, library):
    """A run's folder or a checkpoint -> model, tokenizer (None of a classifier), about"""
    path = Path(path)
    if path.is_dir():
        best = path / "best.safetensors"  # there is none before the first validation
        path = best if best.exists() else path / "last.safetensors"
    arrays, about = checkpoint.load(path)
    if (name := about["config"]["model"]).partition("-")[0] not in (*MODELS, "gpt3"):
        raise ValueError(f"{path}: expected a model of {', '.join(MODELS)}, got {name}; update")
    shape, rng = GPTConfig(**about["model"]), np.random.default_rng(0)
    if e := about.get("examples"):
        from minigpt.nn.classifier import classifier

        model, tokenizer = classifier(e["kind"], name, e["shape"], shape, rng), None
    else:
        model, tokenizer = language_model(name, shape, rng), tokenizer_from(about["tokenizer"])
    model.to(library).eval()
    model.load_state_dict(checkpoint.weights(arrays))
    return model, tokenizer, about


if __name__ == "__main__":
    for file in filter(None, (sys.stdin, sys.stdout)):
        file.reconfigure(errors="replace")  # bytes that are no text, a terminal without the letter
    try:
        main()
    except KeyboardInterrupt:
        print()
    except BrokenPipeError:  # the reader, say head, has seen enough; no flush into a closed pipe
        os._exit(0)
    except OSError as error:  # a full disk
        print(f"sample.py: cannot write: {error.strerror}", file=sys.stderr)
        os._exit(2)
