"""Statistics against closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from residua import statistics


def drawn(count: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(count, num_classes, generator=generator)).softmax(1)
    return probabilities, torch.randint(num_classes, (count,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_wilson_interval_is_wilsons_formula(count: int, share: float) -> None:
    successes = round(share * count)
    z, p = 1.959963984540054, successes / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    low, high = statistics.wilson_interval(successes, count)
    assert (low, high) == pytest.approx((max(0.0, centre - half), min(1.0, centre + half)), abs=1e-12)
    assert 0 <= low <= p <= high <= 1


def test_the_wilson_interval_of_no_errors_is_not_empty() -> None:
    assert statistics.wilson_interval(0, 100) == pytest.approx((0, 0.0370), abs=1e-4)
    assert statistics.wilson_interval(0, 10, level=0.5)[1] < statistics.wilson_interval(0, 10)[1]


def test_the_confusion_matrix_counts_labels_in_rows() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 0, 2])
    assert statistics.confusion_matrix(labels, predicted, 4) == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


def test_the_class_table_has_none_where_nothing_is_divided() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 3, 3, 2, 0, 2])
    zero, one, two, three, four = statistics.class_scores(labels, predicted, 5)
    assert zero == statistics.ClassScore(2, 0.5, 0.5, 0.5)
    assert one == statistics.ClassScore(1, 0.0, None, 0.0)
    assert two == statistics.ClassScore(3, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert three == statistics.ClassScore(0, None, 0.0, 0.0)
    assert four == statistics.ClassScore(0, None, None, None)


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur() -> None:
    probabilities, labels = drawn(300, 6)
    labels[labels == 4] = 3
    predicted = probabilities.argmax(1)
    predicted[predicted == 4] = 3
    ours = statistics.balanced_accuracy(statistics.class_scores(labels, predicted, 6))
    assert ours == pytest.approx(metrics.balanced_accuracy_score(labels, predicted), abs=1e-12)


def test_balanced_accuracy_is_not_moved_by_a_class_that_is_only_predicted() -> None:
    scores = statistics.class_scores(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 2, 1]), 3)
    assert statistics.balanced_accuracy(scores) == pytest.approx((2 / 3 + 1) / 2)


def test_the_calibration_error_of_constructed_cases() -> None:
    sure = torch.tensor([[1.0, 0.0]] * 4)
    bins = statistics.reliability(sure, torch.tensor([0, 0, 0, 1]))
    assert len(bins) == 15
    assert bins[-1] == statistics.Bin(pytest.approx(14 / 15), 1.0, 4, 1.0, 0.75)
    assert all(item.count == 0 and item.confidence is None and item.accuracy is None for item in bins[:-1])
    assert statistics.expected_calibration_error(bins) == pytest.approx(0.25)

    mixed = torch.tensor([[0.75, 0.25]] * 4 + [[0.45, 0.55]] * 4, dtype=torch.float64)
    bins = statistics.reliability(mixed, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), num_bins=10)
    assert statistics.expected_calibration_error(bins) == pytest.approx((0.0 + 0.45) / 2)
    assert [item.count for item in bins] == [0, 0, 0, 0, 0, 4, 0, 4, 0, 0]


@pytest.mark.parametrize("confidence", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_confidence_on_an_edge_belongs_to_the_lower_bin(confidence: float) -> None:
    rest = (1 - confidence) / 9
    bins = statistics.reliability(torch.tensor([[confidence] + [rest] * 9], dtype=torch.float64), torch.tensor([0]), num_bins=5)
    assert [item.count for item in bins].index(1) == round(confidence * 5) - 1


def test_every_sample_is_in_one_bin() -> None:
    probabilities, labels = drawn(500, 4, seed=1)
    bins = statistics.reliability(probabilities, labels)
    assert sum(item.count for item in bins) == 500
    right = sum(item.count * item.accuracy for item in bins if item.accuracy is not None)
    assert right == pytest.approx(int((probabilities.argmax(1) == labels).sum()))


def test_likelihood_and_brier_score_agree_with_scikit_learn() -> None:
    probabilities, labels = drawn(400, 5, seed=2)
    double = probabilities.double() / probabilities.double().sum(1, keepdim=True)
    assert statistics.negative_log_likelihood(double, labels) == pytest.approx(metrics.log_loss(labels, double), rel=1e-9)
    by_class = [np.mean((double[:, k].numpy() - (labels == k).numpy()) ** 2) for k in range(5)]
    assert statistics.brier_score(double, labels) == pytest.approx(sum(by_class), rel=1e-9)


def test_a_probability_of_zero_costs_a_finite_number_of_nats() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert statistics.negative_log_likelihood(probabilities, torch.tensor([0, 1])) == pytest.approx(87.3365 / 2, abs=1e-3)
    assert statistics.brier_score(probabilities, torch.tensor([0, 1])) == pytest.approx(1.0)
