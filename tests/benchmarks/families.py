"""One block, three mechanisms: each model on a text, on every application, and folds of tables."""

import re
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import numpy as np

from tests.benchmarks import measure

SEEDS = 1337, 1, 2
TEXT = ["gpt", "lstm", "gru", "rnn", "conv"]
MECHANISMS = {"convolution": "conv", "recurrence": "lstm", "attention": "gpt"}
APPLICATIONS = {
    "digits": "handwritten digits",
    "sounds": "timbre of sounds",
    "tumours": "tumours: malignant?",
    "credit": "credit: bad?",
}


def run(*words, out=None):
    """train.py in an empty folder, or in `out`, which stays -> what it printed, s in all"""
    start = time.perf_counter()
    with TemporaryDirectory() as empty:
        command = [sys.executable, str(measure.ROOT / "train.py"), *words, "--out", out or empty]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start


def families(data, seconds):
    """Each family for as long on the same text: the command's own words."""
    rows = {}
    for model in TEXT:
        said, _ = run("--data", str(data), "--model", model, "--minutes", str(seconds / 60))
        steps, trained = re.findall(r"step +(\d+) +(\d+) s", said)[-1]
        tokens = np.prod([int(n) for n in re.search(r"of (\d+) x (\d+) tokens", said).groups()])
        rows[model] = {
            "loss": float(re.search(r"whole split: ([\d.]+)", said)[1]),
            "parameters": float(re.search(r"([\d.]+) M parameters", said)[1]),
            "form": re.search(r"2 build +\w+: (.*?):", said)[1],
            "steps": int(steps),
            "seconds": int(trained),
            "tokens_per_s": int(tokens) * int(steps) / int(trained),
        }
        print(model, rows[model], flush=True)
    return {"data": str(data).split("/")[-1], "rows": rows}


def applications(data, seconds):
    """Each application by each mechanism: the default command's held-out score."""
    rows = {}
    for name in APPLICATIONS:
        for mechanism, model in MECHANISMS.items():
            said, took = run("--data", name, "--model", model)
            found = {"accuracy": float(re.search(r"accuracy ([\d.]+)%", said)[1]), "seconds": took}
            if two := re.search(r"AUC ([\d.]+)", said):
                found["auc"] = float(two[1])
            rows.setdefault(name, {})[mechanism] = found
            print(name, mechanism, found, flush=True)
    return {"rows": rows}


def tasks(data, seconds):
    """Each task by each mechanism: how many held-out answers the default command gives exactly.
    Attention from three seeds."""
    rows = {}
    for name in ("qa", "translation"):
        for mechanism, model in reversed(MECHANISMS.items()):
            seeds = SEEDS if mechanism == "attention" else SEEDS[:1]
            runs = [answered("--data", name, "--model", model, "--seed", str(s)) for s in seeds]
            kinds = {  # percent of each seed, how many questions
                kind: [[found[kind][0] for found, _ in runs], n]
                for kind, (_, n) in runs[0][0].items()
            }
            seconds = np.mean([took for _, took in runs])
            rows.setdefault(name, {})[mechanism] = {"kinds": kinds, "seconds": float(seconds)}
            print(name, mechanism, rows[name][mechanism], flush=True)
    return {"rows": rows}


def answered(*words):
    """train.py -> {kind of question: (percent that is exact, how many)}, s in all"""
    said, took = run(*words)
    report = said.partition("exact match ")[2].partition("next:")[0].splitlines()[1:]
    kinds = re.findall(r"^ +(.*?) +([\d.]+)% +(\d+)$", "\n".join(report), re.M)
    return {kind: (float(percent), int(n)) for kind, percent, n in kinds}, took


def folds(data, seconds):
    """Repeated 5-fold: minigpt's attention (the mean of a few seeds) and scikit-learn's models on
    the same columns and folds; accuracy, AUC, and AUC minus logistic regression's by fold."""
    rows = {}
    for name in ("tumours", "credit"):
        scores = {}
        for repeat in range(int(seconds)):
            for fold, found in enumerate(one_repeat(name, repeat)):
                for model, pair in found.items():
                    scores.setdefault(model, []).append(pair)
                print(name, repeat, fold, found, flush=True)
        reference = np.array(scores["logistic regression"])[:, 1]
        rows[name] = {}
        for model, pairs in scores.items():
            accuracy, auc = np.array(pairs).T
            gain = auc - reference
            rows[name][model] = {
                "accuracy": [accuracy.mean(), accuracy.std()],
                "auc": [auc.mean(), auc.std()],
                "gain": [gain.mean(), gain.std() / len(gain) ** 0.5],
                "wins": int((gain > 0).sum()),
                "folds": len(gain),
            }
    return {"rows": rows}


def one_repeat(name, repeat):
    """Five folds -> for each {model: (accuracy, AUC)}"""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    from minigpt.datasets import tables
    from minigpt.datasets.examples import EXAMPLES
    from minigpt.training.scores import accuracy, auc

    target, positive = (EXAMPLES[name].columns[key] for key in ("target", "positive"))
    columns = tables.read_csv(measure.ROOT / "data" / f"{name}.csv").columns
    y = (np.array(columns.pop(target)) == positive).astype(np.int32)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=repeat).split(y, y):
        encoder = tables.TableEncoder.fit(columns, train)
        x = encoder.encode_columns(columns)
        boosting = GradientBoostingClassifier(max_depth=2, random_state=0)
        fits = {
            "logistic regression": LogisticRegression(C=0.1, max_iter=5000).fit(x[train], y[train]),
            "gradient boosting": boosting.fit(x[train], y[train]),
        }
        p = {model: fit.predict_proba(x[test]) for model, fit in fits.items()}
        p["minigpt, attention"] = np.mean(
            [learned(x[train], y[train], x[test], encoder.shape, seed) for seed in range(3)], axis=0
        )
        yield {m: (accuracy(q, y[test]), auc(q[:, 1], y[test] == 1)) for m, q in p.items()}


def learned(x, y, x_test, widths, seed):
    """Probabilities of the default attention model after its default steps; widths: how many
    features each column has."""
    from minigpt.applications.options import fitted
    from minigpt.datasets.examples import Rows
    from minigpt.nn import model_class
    from minigpt.nn.classifier import classifier
    from minigpt.nn.gpt import GPTConfig
    from minigpt.nn.module import Flat
    from minigpt.training import optimizer_class
    from minigpt.training.scores import probabilities
    from minigpt.training.trainer import Trainer

    c = fitted("table", {"seed": seed, "eval_every": 10**6})
    rng = np.random.default_rng(seed)
    shape = {name: getattr(c, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    config = GPTConfig(2, dropout=c.dropout, **shape)
    model = classifier("table", model_class("gpt"), widths, config, rng)
    optimizer = optimizer_class(c.optimizer)(Flat(model), c.weight_decay)
    with TemporaryDirectory() as out:
        stream = Rows(x, y, seed)
        trainer = Trainer(model, optimizer, stream, (x[:8], y[:8]), c, rng, out, {}, print_nothing)
        trainer.run()
    return probabilities(model, x_test)


def print_nothing(*_):
    """For Trainer's on_evaluate."""
