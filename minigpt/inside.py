"""What a trained model sees: surprise at each token, attention of each head, reasons for answers.

`python sample.py RUN --explain TEXT` shows the first in the terminal's colours, and
`python sample.py RUN --look [TEXT]` all of it as a page, RUN/look.html.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minigpt.datasets.tasks import asked
from minigpt.drawing import numbers, page
from minigpt.engine.arrays import module_of, to_numpy
from minigpt.engine.autograd import Tensor, no_grad, plain, raw
from minigpt.engine.functional import softmax
from minigpt.generate import stream
from minigpt.nn import attention as mixer
from minigpt.training.scores import confusion, probabilities

PAGE = Path(__file__).with_name("inside.html")
RED = [None, 224, 217, 210, 203, 196]  # the terminal's colours, from no surprise to much
NUMBERS, ANSWER = 2_000_000, 40  # shares on a page at most; tokens of an answer at most
EXAMPLES = 12  # of a classifier, shown with what the answers hang on


def known_ids(model, application, words, option):
    """The ids of a text (T,), and how many of the first are context, whose surprise is not shown.

    A model that answers takes the words as a question, and its answer is added to the text. A text
    that is too long loses its beginning: the context is limited, and so is what a page can hold.
    option: its name, for errors. Raises ValueError for a classifier, or a text of under 2 tokens.
    """
    run = application.config.out
    if not application.writes:
        wanted = f"expected a model that writes, {run} classifies"
        raise ValueError(f"{option}: {wanted}; use --look without a text")
    tokenizer, text, asks = application.tokenizer, application.known(words), 0
    if application.answers and text.strip():
        asks = len(tokenizer.encode(asked(text)))
        rng = np.random.default_rng(0)
        text = asked(text)
        text += "".join(stream(model, tokenizer, text, ANSWER, rng, stop="\n", temperature=0))
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        need = f"expected 2 tokens or more that the model knows, got {words!r}"
        raise ValueError(f"{option}: {need}; name another text")
    config = application.config
    most = min(config.block_size, int((NUMBERS / (config.n_layer * config.n_head)) ** 0.5))
    if len(ids) > most:
        left = f"the text has {len(ids)} tokens; of {run} the last {most} are shown"
        print(f"sample.py: {left}", file=sys.stderr)
    return ids[-most:], max(1, asks - max(0, len(ids) - most))


def read(model, ids):
    """What the model predicts for a text.  ids (T,) -> p (T - 1, V), for each token but the first,
    and a list of the shares (H, T, T) of each layer's heads, which is empty without attention."""
    with no_grad(), plain(), watched() as shares:
        p = softmax(model(model.library.asarray(ids[None])))
    return to_numpy(p.data[0, :-1]), shares


@contextmanager
def watched():
    """A list to which every attention within the block adds the shares of its heads (H, T, T)."""
    shares, original = [], mixer.attention

    def watching(q, k, v, *options):
        # The mean of unit vectors, weighted by the shares, is the shares themselves.
        xp, T = module_of(raw(k)), k.shape[2]
        unit = xp.broadcast_to(xp.eye(T, dtype=k.dtype), (*k.shape[:3], T))
        shares.append(to_numpy(raw(original(q, k, unit, *options))[0]))
        return original(q, k, v, *options)

    mixer.attention = watching
    try:
        yield shares
    finally:
        mixer.attention = original


def tokens(tokenizer, ids, asks, p):
    """For each token: its text; its surprise, in nats; and the three tokens that were most likely,
    with their probabilities. The first token and those of a question have no surprise: None.
    Where several tokens spell one character, it is the text of the last of them."""
    decode, found = tokenizer.decoder(), []
    for place, token in enumerate(ids):
        entry = {"text": decode([token]), "surprise": None, "likely": []}
        if place >= asks:
            row = p[place - 1]
            best = np.argsort(-row, kind="stable")[:3]
            entry["likely"] = [[tokenizer.decode([i]), round(float(row[i]), 4)] for i in best]
            entry["surprise"] = float(-np.log(max(float(row[token]), 1e-30)))
        found.append(entry)
    return found


def coloured(found):
    """The text for a terminal: the redder a token, the more it surprised."""
    parts = []
    for token in found:
        level = min(len(RED) - 1, int(token["surprise"] or 0))
        text = token["text"]
        parts.append(f"\x1b[30;48;5;{RED[level]}m{text}\x1b[0m" if RED[level] else text)
    return "".join(parts)


def listed(found):
    """The same without colours: a line for each token."""
    lines = []
    for token in found:
        likely = ", ".join(f"{text!r} {p:.0%}" for text, p in token["likely"])
        surprise = "" if token["surprise"] is None else f"{token['surprise']:.2f}"
        lines.append(f"{token['text']!r:>10} {surprise:>6}  {likely}")
    return "\n".join(lines)


def wants_colour(stream):
    """Whether a stream is a terminal whose user has nothing against colours (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def mean_surprise(found):
    """The sum of the tokens' surprises over the number of their characters: nats per character."""
    told = [token for token in found if token["surprise"] is not None]
    return sum(t["surprise"] for t in told) / max(1, sum(len(t["text"]) for t in told))


def explain(model, application, words, output):
    """A text in the colours of surprise, or as a list if `output` shows no colours."""
    ids, asks = known_ids(model, application, words, "--explain")
    found = tokens(application.tokenizer, ids, asks, read(model, ids)[0])
    shown = coloured(found) if wants_colour(output) else listed(found)
    return f"{shown}\nmean surprise {mean_surprise(found):.3f} nats per character"


def look(model, application, words):
    """The page of a text, or of a classifier, which sees no text -> HTML"""
    if words or application.writes:
        return of_text(model, application, *known_ids(model, application, words, "--look"))
    application.read_again()
    return of_classifier(model, application, application.examples)


def of_text(model, application, ids, asks):
    """Surprise by each token, and the shares of every head of every layer."""
    tokenizer, (p, shares) = application.tokenizer, read(model, ids)
    found = tokens(tokenizer, ids, asks, p)
    data = {"title": application.config.out, "tokens": found, "mean": mean_surprise(found)}
    data |= {"uniform": float(np.log(tokenizer.vocab_size))}
    return page(PAGE, data | {"heads": [[rows_of(head) for head in layer] for layer in shares]})


def rows_of(head):
    """The shares of a head (T, T) in thousandths, of those positions alone that can be seen."""
    whole = np.rint(1000 * head).astype(int)
    return [row[: place + 1].tolist() for place, row in enumerate(whole)]


def of_classifier(model, application, examples):
    """The page of a classifier: its confusion matrix, and which inputs some answers depend on.

    Gradient times input says how far the logit of the answer would fall, to first order, if a
    number of the input were 0, which is the mean of the training part, or for a category "no".
    Source: Shrikumar et al. 2016, arXiv 1605.01713.
    """
    x, y = examples.test
    p = probabilities(model, x)
    wrong = np.flatnonzero(p.argmax(1) != y)
    chosen = [*wrong[: EXAMPLES // 2], *np.setdiff1d(np.arange(len(y)), wrong)][:EXAMPLES]
    columns = None
    if examples.kind == "table":
        names = [column["name"] for column in examples.encoder.columns]
        columns = [*zip(names, examples.encoder.shape, strict=True)]
    shown = [example(model, x[i], int(y[i]), columns) for i in chosen]
    data = {"title": application.config.out, "classes": [str(c) for c in examples.classes]}
    return page(PAGE, data | {"confusion": confusion(p, y).tolist(), "examples": shown})


def example(model, x, truth, columns):
    """One example, the model's answer, and gradient times input.

    columns: of a table, (name, how many numbers its cell becomes), which get one sum; else None.
    """
    leaf = Tensor(model.library.asarray(x[None]), requires_grad=True)
    z = model(leaf)
    answer = int(z.data[0].argmax())
    z[0, answer].backward()
    p, blame = softmax(z.data).data[0], to_numpy(leaf.grad[0]) * x
    for w in model.named_parameters().values():
        w.grad = None  # nothing is learned here
    shown = {"truth": truth, "answer": answer, "p": float(p[answer]), "shape": list(x.shape)}
    if columns:
        ends = np.cumsum([width for _, width in columns])[:-1]
        blame = np.array([part.sum() for part in np.split(blame, ends)])
        return shown | {"names": [name for name, _ in columns], "blame": numbers(blame)}
    return shown | {"x": numbers(x), "blame": numbers(blame)}
