"""How often a classifier or an answer is right, and in which way it is wrong.

Here N rows are examples and K is the number of classes; p (N, K) holds the probabilities that a
model gives, and y (N,) the true classes. Where there are two classes, the one to be found (an
illness, say) is called positive, and its probability is the score: score (N,), positive (N,) bool.
"""

import numpy as np

from minigpt.engine.arrays import to_numpy
from minigpt.engine.autograd import no_grad
from minigpt.engine.functional import IGNORED, softmax


def accuracy(p, y):
    """The share of the rows whose most probable class is the true one."""
    return float((p.argmax(1) == y).mean())


def confusion(p, y):
    """How many rows of class i are taken for class j -> (K, K)"""
    k = p.shape[1]
    pair = y * k + p.argmax(1)  # i K + j: a number of its own for each pair (i, j)
    return np.bincount(pair, minlength=k * k).reshape(k, k)


def rates(score, positive, cut):
    """How often a cut in the scores is right: among the positives, and among the negatives.

    Sensitivity is the share of the positives that score above the cut, specificity the share of the
    negatives that do not -> [sensitivity, specificity], NaN for a class that is absent
    """
    above = np.asarray(score, float) > cut  # in float32 the cut could round up to a score
    found, spared = above[positive], ~above[~positive]
    return [hits.mean() if len(hits) else np.nan for hits in (found, spared)]


def auc(score, positive):
    """The probability that a random positive scores above a random negative; a tie counts half.

    A model that guesses gets 0.5, a perfect one 1. (The name: it is also the area under the curve
    of sensitivity over 1 - specificity.) Of n positives and m negatives there are n m pairs, which
    need not be compared one by one if all rows are ranked by their scores:

        AUC = (R - n (n + 1) / 2) / (n m)        R: the sum of the ranks of the positives

    The rank of a positive, counted from 1, says how many rows score as high or lower. So R counts
    the negatives below each positive, the pairs in the right order, and also the positives up to
    each positive, itself included: 1 + 2 + ... + n = n (n + 1) / 2. NaN if a class is absent.
    Source: Mann & Whitney 1947; Hanley & McNeil 1982.
    """
    n, m = int(positive.sum()), int((~positive).sum())
    if not n * m:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the highest rank among the rows of each distinct score
    ranks = (last - (counts - 1) / 2)[place]  # equal scores share their mean rank
    return float(ranks[positive].sum() - n * (n + 1) / 2) / (n * m)


def threshold(score, positive):
    """The cut above which a row is best called positive: the largest sensitivity + specificity.

    It lies midway between two neighbouring scores. Each distinct score is tried as the last below
    the cut: then all negatives up to it are right, and all positives up to it are missed.
    Both classes must be present.  Source: Youden 1950.
    """
    values, place = np.unique(np.asarray(score, float), return_inverse=True)
    n = np.bincount(place[positive], minlength=len(values))  # positives with each score
    m = np.bincount(place[~positive], minlength=len(values))  # negatives
    gain = np.cumsum(m / m.sum() - n / n.sum())  # sensitivity + specificity - 1 of a cut above it
    best = int(gain[:-1].argmax()) if len(values) > 1 else 0  # a cut above all finds nothing
    return float(values[best : best + 2].mean())


def report(p, y, classes, cut=None, positive=None, groups=None):
    """Lines of text that say how good p is: accuracy, confusion matrix, and the rates at a cut.

    With two classes there may be a cut for the class `positive`, and groups = (title, names (N,))
    of the rows, for each of which the errors at the cut are listed.
    """
    table = confusion(p, y)
    rows = [("true, taken for", *classes), *zip(classes, *table.T, strict=True)]
    if len(classes) > 20:
        rows = worst(table, classes)
    lines = [f"accuracy {accuracy(p, y):.2%} of {len(y)}", *aligned(*rows)]
    if cut is not None:
        score, truth = p[:, positive].astype(float), y == positive
        sensitivity, specificity = rates(score, truth, cut)
        found = f"sensitivity {sensitivity:.1%}, specificity {specificity:.1%}"
        found = f"{classes[positive]} if above {cut:.3f}: {found}"
        lines.append(f"AUC {auc(score, truth):.4f}; {found}")
        if groups:
            lines += audit(score, truth, cut, *groups)
    return lines


def worst(table, classes):
    """Rows with the five classes that are most often taken for others; table (K, K)."""
    counts = table.sum(1)
    wrong = 1 - table.diagonal() / np.maximum(counts, 1)
    rows = [("worst classes", "wrong", "of")]
    for k in np.argsort(-wrong, kind="stable")[:5]:
        rows.append((classes[k], f"{wrong[k]:.1%}", counts[k]))
    return rows


def audit(score, positive, cut, title, names):
    """Lines with the rates of errors in each group of rows: is a model as good for the young?

    False positives are the negatives above the cut, false negatives the positives below it. A dash:
    the group has no such rows. title: what the groups are; names (N,): each row's group.
    """
    rows = [(title, "rows", "errors", "false positive", "false negative")]
    for name in np.unique(names):
        group = names == name
        errors = ((score[group] > cut) != positive[group]).mean()
        sensitivity, specificity = rates(score[group], positive[group], cut)
        shares = errors, 1 - specificity, 1 - sensitivity
        cells = ["-" if np.isnan(share) else f"{share:.1%}" for share in shares]
        rows.append((name, group.sum(), *cells))
    return aligned(*rows)


def aligned(*rows):
    """Rows of cells as lines of text: the first column to the left, the others to the right."""
    first, *others = (max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        line = f"{name!s:{first}}"
        for cell, width in zip(cells, others, strict=True):
            line += f"  {cell!s:>{width}}"
        lines.append(line)
    return lines


def predicted(model, x, batch_size, predict):
    """predict(z) of the logits z for x (N, ...), batch by batch, dropout off -> a NumPy array"""
    xp, training = model.library, model.training
    model.eval()
    parts = []
    with no_grad():
        for i in range(0, len(x), batch_size):
            z = model(xp.asarray(x[i : i + batch_size]))
            parts.append(to_numpy(predict(z)))
    model.train(training)
    return np.concatenate(parts)


def probabilities(model, x, batch_size=256):
    """What a classifier predicts for x: softmax of its logits.  x (N, ...) -> p, a NumPy array"""
    return predicted(model, x, batch_size, lambda z: softmax(z).data)


def held_out(model, examples):
    """The report on the test part. The cut between two classes is chosen on the validation part:
    chosen on the test part it would look better than it is."""
    positive, cut = examples.positive, None
    if positive is not None:
        x, y = examples.validation
        cut = threshold(probabilities(model, x)[:, positive], y == positive)
    x, y = examples.test
    return report(probabilities(model, x), y, examples.classes, cut, positive, examples.groups)


def exact(model, x, y, batch_size=64):
    """Whether greedy decoding gives each answer, right to its last token -> (answers,) bool

    Greedy decoding appends the likeliest token and reads on. As long as it is right, it reads the
    true tokens. So an answer comes out whole if each of its tokens is the likeliest after the true
    ones before it, and one pass over x tells that for all tokens.

    x, y (N, T) ids: neighbouring targets y that are not IGNORED are an answer. A row may hold
    several, and none goes on in the next row. They are numbered from the left, row by row:

        y               7  8  -100  9 | 5  -100  6  -100
        scored          1  1     0  1 | 1     0  1     0
        first           1  0     0  1 | 1     0  1     0      scored, but not the one before
        cumsum(first)   1  1     1  2 | 3     3  4     4      the number of the answer
    """
    likeliest = predicted(model, x, batch_size, lambda z: z.data.argmax(2))
    y = to_numpy(y)
    scored = y != IGNORED
    first = scored.copy()
    first[:, 1:] &= ~scored[:, :-1]
    answer = np.cumsum(first).reshape(y.shape) - 1  # counted from 0; meaningless where not scored
    wrong = (likeliest != y)[scored]
    mistakes = np.bincount(answer[scored], weights=wrong)  # how many tokens of each answer
    return mistakes == 0


def exact_by_kind(model, x, y, kinds):
    """Lines that say how many answers are exact, of all and of each kind; kinds (answers,)"""
    right, names = exact(model, x, y), np.array(kinds)
    lines, rows = [f"exact match {right.mean():.1%} of {len(right):,}"], []
    for name in sorted(set(kinds)):
        hits = right[names == name]
        rows.append((name, f"{hits.mean():.1%}", len(hits)))
    return lines + aligned(*rows)
