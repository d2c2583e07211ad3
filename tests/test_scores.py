"""Scores of classifiers against slow loops, closed forms and scikit-learn."""

import numpy as np
import pytest

from minigpt.training import scores


def draw(n=60, k=3, seed=0):
    """Probabilities p (n, k) of which many are equal, and classes y (n,)."""
    rng = np.random.default_rng(seed)
    p = rng.integers(1, 6, (n, k)) / 1.0
    return p / p.sum(1, keepdims=True), rng.integers(k, size=n)


def draw_scores(seed, n=40):
    """Scores (n,), a few values that repeat, higher for the positives; and who is positive."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 3 == 0
    return np.round(rng.random(n) + 0.4 * positive, 1), positive


def test_accuracy_counts_the_rows_whose_largest_probability_is_right():
    p, y = draw()
    right = [max(range(3), key=lambda k, row=row: row[k]) == t for row, t in zip(p, y, strict=True)]
    assert scores.accuracy(p, y) == sum(right) / 60


def test_a_row_of_the_confusion_matrix_is_a_true_class():
    p, y = draw()
    expected = np.zeros((3, 3), int)
    for row, truth in zip(p, y, strict=True):
        expected[truth, row.argmax()] += 1
    assert scores.confusion(p, y).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_part_of_pairs_in_order_ties_counting_half(seed):
    score, positive = draw_scores(seed)
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    assert scores.auc(score, positive) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auc_equals_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    score, positive = draw_scores(9, 500)
    expected = metrics.roc_auc_score(positive, score)
    assert scores.auc(score, positive) == pytest.approx(expected, abs=1e-12)


def test_auc_of_one_class_alone_is_not_a_number():
    assert np.isnan(scores.auc(np.arange(3.0), np.ones(3, bool)))
    assert np.isnan(scores.auc(np.arange(3.0), np.zeros(3, bool)))


@pytest.mark.parametrize("seed", range(5))
def test_no_cut_beats_the_threshold(seed):
    score, positive = draw_scores(seed)

    def youden(cut):
        return (score[positive] > cut).mean() + (score[~positive] <= cut).mean() - 1

    cut = scores.threshold(score, positive)
    assert youden(cut) == pytest.approx(max(map(youden, np.linspace(-0.05, 1.55, 641))), abs=1e-12)


def test_the_threshold_lies_midway_between_neighbouring_scores():
    score = np.array([0.1, 0.2, 0.6, 0.7], np.float32)
    cut = scores.threshold(score, np.array([False, False, True, True]))
    assert cut == pytest.approx(0.4, abs=1e-7) and isinstance(cut, float)  # float32 rounds scores


def test_the_threshold_of_equal_scores_is_their_value():
    assert scores.threshold(np.full(4, 0.5), np.array([True, False, True, False])) == 0.5


def test_the_threshold_parts_neighbours_that_float32_cannot_part():
    low = np.float32(0.3)
    score = np.array([low, np.nextafter(low, np.float32(1))])
    positive = np.array([False, True])
    assert scores.rates(score, positive, scores.threshold(score, positive)) == [1, 1]


def test_rates_are_the_parts_of_each_kind_on_its_side_of_the_cut():
    score = np.array([0.9, 0.8, 0.1, 0.7, 0.2, 0.3, 0.4])
    positive = np.array([True, True, True, False, False, False, False])
    assert scores.rates(score, positive, 0.5) == pytest.approx([2 / 3, 3 / 4], abs=1e-12)


def test_rates_of_an_absent_kind_are_not_numbers():
    sensitivity, specificity = scores.rates(np.array([0.1, 0.9]), np.zeros(2, bool), 0.5)
    assert np.isnan(sensitivity) and specificity == 0.5


def test_the_report_of_two_classes_says_what_happens_at_the_cut_and_in_each_group():
    p = np.array([0.9, 0.6, 0.2, 0.7, 0.1])
    groups = ("age", np.array(["old", "old", "young", "young", "young"]))
    y = np.array([0, 0, 0, 1, 1])  # class 0, whose probability is p, is to be found
    lines = scores.report(np.stack([p, 1 - p], 1), y, ["bad", "good"], 0.65, 0, groups)
    assert lines == [
        "accuracy 60.00% of 5",
        "true, taken for  bad  good",
        "bad                2     1",
        "good               1     1",
        "AUC 0.6667; bad if above 0.650: sensitivity 33.3%, specificity 50.0%",
        "age    rows  errors  false positive  false negative",
        "old       2   50.0%               -           50.0%",
        "young     3   66.7%           50.0%          100.0%",
    ]


def test_the_report_of_many_classes_names_the_five_worst():
    y = np.repeat(np.arange(21), 4)
    p = np.eye(21)[y]
    for k, wrong in ((3, 4), (20, 3), (7, 2), (8, 2), (0, 1), (1, 1)):
        p[4 * k : 4 * k + wrong] = np.eye(21)[10]
    lines = scores.report(p, y, [f"class {k}" for k in range(21)])
    assert lines[1:] == [
        "worst classes   wrong  of",
        "class 3        100.0%   4",
        "class 20        75.0%   4",
        "class 7         50.0%   4",
        "class 8         50.0%   4",
        "class 0         25.0%   4",
    ]


def test_the_report_of_three_classes_ends_with_the_confusion():
    p, y = draw()
    assert len(scores.report(p, y, ["a", "b", "c"])) == 1 + 1 + 3
