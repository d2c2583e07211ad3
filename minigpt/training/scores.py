"""How often a classifier or an answer is right, and in which way it is wrong."""

import numpy as np

from minigpt.engine.arrays import to_numpy
from minigpt.engine.autograd import no_grad
from minigpt.engine.functional import IGNORED, softmax


def accuracy(p, y):
    """The part of the rows whose most probable class is the true one.  p (N, K), y (N,)"""
    return float((p.argmax(1) == y).mean())


def confusion(p, y):
    """How many rows of class i are taken for class j.  p (N, K), y (N,) -> (K, K)"""
    k = p.shape[1]
    return np.bincount(y * k + p.argmax(1), minlength=k * k).reshape(k, k)


def auc(score, positive):
    """The probability that a positive scores above a negative, ties half; NaN if one is absent.

    (R - n (n + 1) / 2) / (n m), R the ranks of the n positives among all n + m, summed.
    score (N,), positive (N,) bool.  Source: Mann and Whitney 1947; Hanley and McNeil 1982.
    """
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal scores share their mean rank
    n, m = int(positive.sum()), int((~positive).sum())
    return float(ranks[positive].sum() - n * (n + 1) / 2) / (n * m) if n * m else float("nan")


def threshold(score, positive):
    """The cut, midway between neighbouring scores, of the largest sensitivity + specificity - 1.

    score (N,), positive (N,) bool, some of them true and some false.  Source: Youden 1950.
    """
    values, place = np.unique(np.asarray(score, float), return_inverse=True)
    n, m = (np.bincount(place[rows], minlength=len(values)) for rows in (positive, ~positive))
    gain = np.cumsum(m / m.sum() - n / n.sum())  # of a cut above the value; 0 above the last
    best = int(gain[:-1].argmax()) if len(values) > 1 else 0
    return float(values[best : best + 2].mean())


def rates(score, positive, cut):
    """Sensitivity, the positives above the cut, and specificity, the others below; NaN of none."""
    above = np.asarray(score, float) > cut  # in float32 the cut could round up to a score
    return [h.mean() if len(h) else np.nan for h in (above[positive], ~above[~positive])]


def report(p, y, classes, cut=None, positive=None, groups=None):
    """Lines that say how good p (N, K) is for y (N,); of two classes also at the cut, and there for
    each group of rows, groups = (title, names (N,))."""
    lines, table = [f"accuracy {accuracy(p, y):.2%} of {len(y)}"], confusion(p, y)
    if len(classes) > 20:
        wrong = 1 - table.diagonal() / np.maximum(table.sum(1), 1)
        worst = np.argsort(-wrong, kind="stable")[:5]
        rows = ((classes[k], f"{wrong[k]:.1%}", table[k].sum()) for k in worst)
        lines += aligned(("worst classes", "wrong", "of"), *rows)
    else:
        lines += aligned(("true, taken for", *classes), *zip(classes, *table.T, strict=True))
    if cut is not None:
        score, truth = p[:, positive].astype(float), y == positive
        line = f"AUC {auc(score, truth):.4f}; {classes[positive]} if above {cut:.3f}: sensitivity "
        lines.append(line + "{:.1%}, specificity {:.1%}".format(*rates(score, truth, cut)))
        lines += audit(score, truth, cut, *groups) if groups else []
    return lines


def audit(score, positive, cut, title, names):
    """Lines with the rates of errors in each group of rows."""
    rows = [(title, "rows", "errors", "false positive", "false negative")]
    for name, of in ((name, names == name) for name in np.unique(names)):
        hit, spared = rates(score[of], positive[of], cut)
        wrong = ((score[of] > cut) != positive[of]).mean()
        parts = [f"{part:.1%}".replace("nan%", "-") for part in (wrong, 1 - spared, 1 - hit)]
        rows.append((name, of.sum(), *parts))
    return aligned(*rows)


def aligned(*rows):
    """Rows of cells as lines, the first column to the left, the others to the right."""
    w, *widths = (max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True))
    form = f"{{!s:{w}}}" + "".join(f"  {{!s:>{w}}}" for w in widths)
    return [form.format(*row) for row in rows]


def probabilities(model, x, batch_size=256):
    """softmax of what the model says of x (N, ...), dropout off -> (N, K), a NumPy array"""
    xp, training = model.library, model.training
    model.eval()
    with no_grad():
        parts = [x[i : i + batch_size] for i in range(0, len(x), batch_size)]
        p = [to_numpy(softmax(model(xp.asarray(part))).data) for part in parts]
    model.train(training)
    return np.concatenate(p)


def held_out(model, examples):
    """The report on the test part; of two classes the cut is chosen on the validation part."""
    (x, y), positive, cut = examples.validation, examples.positive, None
    if positive is not None:
        cut = threshold(probabilities(model, x)[:, positive], y == positive)
    x, y = examples.test
    return report(probabilities(model, x), y, examples.classes, cut, positive, examples.groups)


def exact(model, x, y, batch_size=64):
    """Whether greedy decoding gives each answer to its last token, in order -> (answers,) bool

    It does if each token is the likeliest behind the true ones before it, so one pass tells. x, y
    (N, T): neighbouring targets that are not IGNORED are an answer.
    """
    xp, training = model.library, model.training
    model.eval()
    with no_grad():
        parts = [x[i : i + batch_size] for i in range(0, len(x), batch_size)]
        likeliest = [to_numpy(model(xp.asarray(part)).data.argmax(2)) for part in parts]
    model.train(training)
    y = to_numpy(y)
    scored = np.pad(y != IGNORED, ((0, 0), (1, 0)))  # so that no answer crosses rows
    answer = np.cumsum(scored[:, 1:] & ~scored[:, :-1]).reshape(y.shape) - 1
    wrong = (np.concatenate(likeliest) != y) & scored[:, 1:]
    return np.bincount(answer[scored[:, 1:]], wrong[scored[:, 1:]]) == 0


def exact_by_kind(model, x, y, kinds):
    """Lines that say how many answers are exact, of all and of each kind; kinds (answers,)"""
    right, names = exact(model, x, y), np.array(kinds)
    lines = [f"exact match {right.mean():.1%} of {len(right):,}"]
    of = {name: right[names == name] for name in sorted(set(kinds))}
    return lines + aligned(*((name, f"{hits.mean():.1%}", len(hits)) for name, hits in of.items()))
