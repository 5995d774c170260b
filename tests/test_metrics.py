import json

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from jem_hf.metrics.distances import nearest_distance
from jem_hf.metrics.prediction import (
    expected_calibration_error,
    prediction_metrics,
    reliability_curve,
    request_metrics,
)


def binary(positive):
    positive = np.asarray(positive, dtype=np.float64)
    return np.stack([1 - positive, positive], axis=-1)


@pytest.fixture
def data():
    """500 images; attribute "hat" is binary, "hair" has three values; a fifth of the labels is missing."""
    rng = np.random.default_rng(0)
    hat = np.concatenate([binary(rng.random(500)), np.zeros((500, 1))], 1)
    hair = rng.dirichlet([0.5, 0.7, 0.9], 500)
    probabilities = np.stack([hat, hair], 1)
    labels = np.array([[rng.choice(3, p=p) for p in row] for row in probabilities])
    labels[rng.random(labels.shape) < 0.2] = -1
    return probabilities, labels


def test_binary_attribute_equals_sklearn(data):
    probabilities, labels = data
    keep = labels[:, 0] >= 0
    p, y = probabilities[keep, 0, 1], labels[keep, 0]
    row = prediction_metrics(probabilities, labels, ["hat", "hair"])["per_attribute"]["hat"]
    assert row["accuracy"] == pytest.approx(((p > 0.5) == y).mean())
    assert row["f1"] == pytest.approx(f1_score(y, p > 0.5))
    assert row["ap"] == pytest.approx(average_precision_score(y, p))
    assert row["auroc"] == pytest.approx(roc_auc_score(y, p))
    assert row["nll"] == pytest.approx(log_loss(y, p))
    assert row["brier"] == pytest.approx(2 * ((p - y) ** 2).mean())
    assert row["frequency"] == pytest.approx(y.mean())
    top = torch.tensor(np.maximum(p, 1 - p)), torch.tensor(((p > 0.5) == y).astype(int))
    assert row["ece"] == pytest.approx(binary_calibration_error(*top, n_bins=15, norm="l1").item(), abs=1e-6)


def test_categorical_attribute_equals_sklearn(data):
    probabilities, labels = data
    keep = labels[:, 1] >= 0
    p, y = probabilities[keep, 1], labels[keep, 1]
    one_hot = np.eye(3)[y]
    row = prediction_metrics(probabilities, labels, ["hat", "hair"])["per_attribute"]["hair"]
    assert row["accuracy"] == pytest.approx((p.argmax(1) == y).mean())
    assert row["f1"] == pytest.approx(f1_score(y, p.argmax(1), average="macro"))
    assert row["ap"] == pytest.approx(average_precision_score(one_hot, p, average="macro"))
    assert row["auroc"] == pytest.approx(roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert row["nll"] == pytest.approx(log_loss(y, p))
    assert row["brier"] == pytest.approx(((p - one_hot) ** 2).sum(1).mean())
    assert row["frequency"] == pytest.approx(one_hot.mean(0))


def test_values_of_a_categorical_attribute_equal_sklearn(data):
    probabilities, labels = data
    keep = labels[:, 1] >= 0
    p, y = probabilities[keep, 1], labels[keep, 1]
    values = {"hair": ["black", "blond", "red"]}
    found = prediction_metrics(probabilities, labels, ["hat", "hair"], values=values)["per_attribute"]
    assert "confusion" not in found["hat"]
    assert found["hair"]["confusion"] == confusion_matrix(y, p.argmax(1)).tolist()
    for v, row in enumerate(found["hair"]["per_value"].values()):
        assert row["frequency"] == pytest.approx((y == v).mean())
        assert row["ap"] == pytest.approx(average_precision_score(y == v, p[:, v]))
        assert row["precision"] == pytest.approx(precision_score(y == v, p.argmax(1) == v))
        assert row["recall"] == pytest.approx(recall_score(y == v, p.argmax(1) == v))
        error = binary_calibration_error(
            torch.tensor(p[:, v]), torch.tensor((y == v).astype(int)), n_bins=15, norm="l1"
        )
        assert row["ece"] == pytest.approx(error.item(), abs=1e-6)


def test_a_value_that_never_occurs_has_no_precision():
    probabilities = np.tile([0.6, 0.3, 0.1], (4, 1, 1))
    found = prediction_metrics(probabilities, np.array([[0], [0], [1], [-1]]), ["hair"], values={"hair": list("abc")})
    never = found["per_attribute"]["hair"]["per_value"]["c"]
    assert never["frequency"] == 0 and never["ece"] == pytest.approx(0.1)
    assert never["ap"] is never["precision"] is never["recall"] is None


def test_a_value_that_no_image_has_and_no_probability():
    probabilities = np.tile([0.4, 0.6, 0.0], (3, 1, 1))
    found = prediction_metrics(probabilities, np.array([[0], [1], [1]]), ["hair"], values={"hair": list("xyz")})
    assert found["per_attribute"]["hair"]["confusion"] == [[0, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_overall_numbers_are_means_over_attributes(data):
    result = prediction_metrics(*data, ["hat", "hair"])
    hat, hair = result["per_attribute"]["hat"], result["per_attribute"]["hair"]
    for overall, name in {"f1_macro": "f1", **{n: n for n in ("accuracy", "ap", "auroc", "nll", "brier")}}.items():
        assert result[overall] == pytest.approx((hat[name] + hair[name]) / 2)


def test_f1_micro_pools_binary_attributes_like_sklearn():
    rng = np.random.default_rng(1)
    p, y = rng.random((60, 5)), rng.integers(0, 2, (60, 5))
    result = prediction_metrics(binary(p), y, list("abcde"))
    assert result["f1_micro"] == pytest.approx(f1_score(y, p > 0.5, average="micro"))
    assert result["f1_macro"] == pytest.approx(f1_score(y, p > 0.5, average="macro"))


def test_overall_ece_pools_all_pairs():
    # The gaps cancel when pooled: .8 claimed on both attributes, right always on the one, 6 of 10 times on the other.
    labels = np.array([[1, 1]] * 6 + [[1, 0]] * 4)
    result = prediction_metrics(binary(np.full((10, 2), 0.8)), labels, ["a", "b"])
    assert result["per_attribute"]["a"]["ece"] == pytest.approx(0.2)
    assert result["per_attribute"]["b"]["ece"] == pytest.approx(0.2)
    assert result["ece"] == pytest.approx(0)


def test_hand_worked_reliability_curve_holds_confidence_one():
    p = binary([[1.0], [1.0], [0.0], [0.75], [0.75]])
    labels = np.array([[1], [0], [0], [1], [0]])
    curve = reliability_curve(p, labels, num_bins=10)
    assert curve["count"].tolist() == [0] * 7 + [2, 0, 3]
    assert curve["accuracy"][[7, 9]] == pytest.approx([1 / 2, 2 / 3])
    assert curve["confidence"][[7, 9]] == pytest.approx([0.75, 1.0])
    assert np.isnan(curve["accuracy"][:7]).all()
    assert expected_calibration_error(curve) == pytest.approx((2 * 0.25 + 3 * (1 / 3)) / 5)


def test_ece_equals_torchmetrics_over_the_values_of_an_attribute(data):
    probabilities, labels = (torch.tensor(x[:, 1]) for x in data)
    expected = multiclass_calibration_error(probabilities, labels, num_classes=3, n_bins=15, ignore_index=-1)
    row = prediction_metrics(*data, ["hat", "hair"])["per_attribute"]["hair"]
    assert row["ece"] == pytest.approx(expected.item(), abs=1e-6)


def test_ece_positive_equals_torchmetrics_over_all_positive_classes(data):
    def expected(*pairs):
        p, y = (torch.tensor(np.concatenate(column)) for column in zip(*pairs))
        return pytest.approx(binary_calibration_error(p, y.int(), n_bins=15, norm="l1").item(), abs=1e-6)

    probabilities, labels = data
    keep = labels >= 0
    hat = (probabilities[keep[:, 0], 0, 1], labels[keep[:, 0], 0] == 1)
    hair = [(probabilities[keep[:, 1], 1, v], labels[keep[:, 1], 1] == v) for v in range(3)]
    result = prediction_metrics(probabilities, labels, ["hat", "hair"])
    assert result["per_attribute"]["hat"]["ece_positive"] == expected(hat)
    assert result["per_attribute"]["hair"]["ece_positive"] == expected(*hair)
    assert result["ece_positive"] == expected(hat, *hair)


def test_bins_of_equal_mass_equal_scikit_learns_quantiles():
    rng = np.random.default_rng(2)
    p = rng.random(500) ** 3
    y = (rng.random(500) < p).astype(int)
    curve = reliability_curve(binary(p[:, None]), y[:, None], num_bins=7, equal_mass=True, positive=True)
    frequency, confidence = calibration_curve(y, p, n_bins=7, strategy="quantile")
    assert curve["accuracy"] == pytest.approx(frequency) and curve["confidence"] == pytest.approx(confidence)
    assert curve["count"].max() - curve["count"].min() <= 1
    assert (curve["edges"][0], curve["edges"][-1]) == (p.min(), p.max())


def test_bins_of_equal_mass_do_not_part_equal_confidences():
    p = binary([[0.6], [0.7], [0.8], [1.0], [1.0], [1.0], [1.0], [1.0]])
    labels = np.array([[1], [0], [1], [1], [1], [1], [1], [0]])
    curve = reliability_curve(p, labels, num_bins=4, equal_mass=True)
    assert curve["count"].tolist() == [2, 1, 0, 5]
    assert curve["accuracy"][[0, 1, 3]] == pytest.approx([1 / 2, 1, 4 / 5])
    result = prediction_metrics(p, labels, ["a"], num_bins=4)
    assert result["ece_equal_mass"] == pytest.approx((2 * 0.15 + 1 * 0.2 + 5 * 0.2) / 8)


def test_positive_and_top_label_errors_differ_by_hand():
    # Both are said with .9 and one is right; the class that always comes is said with .9 and .1.
    result = prediction_metrics(binary([[0.9], [0.1]]), np.array([[1], [1]]), ["a"])
    assert result["ece"] == pytest.approx(0.9 - 0.5)
    assert result["ece_positive"] == pytest.approx((0.1 + 0.9) / 2)


@pytest.mark.parametrize("name", ["ece", "ece_equal_mass", "ece_positive"])
def test_calibration_errors_of_calibrated_probabilities_are_small(name):
    # A bin of n pairs is off by sqrt(p (1 - p) / n) <= .5 / sqrt(n); fifteen bins of 60,000 pairs by less than .008.
    rng = np.random.default_rng(3)
    p = rng.random((20_000, 3))
    labels = (rng.random(p.shape) < p).astype(int)
    names = list("abc")
    assert prediction_metrics(binary(p), labels, names)[name] < 0.008
    assert prediction_metrics(binary(p**2 / (p**2 + (1 - p) ** 2)), labels, names)[name] > 0.08


def test_certain_and_wrong_is_finite_and_json():
    result = prediction_metrics(binary([[1.0], [0.0]]), np.array([[0], [1]]), ["a"])
    assert result["nll"] == pytest.approx(-np.log(1e-12))
    assert (result["accuracy"], result["brier"], result["ece"], result["auroc"]) == (0, 2, 1, 0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_missing_labels_change_nothing(data):
    probabilities, labels = data
    more = np.concatenate([probabilities, probabilities[:50, :, [1, 0, 2]] * [[1, 1, 0], [1, 1, 1]]])
    padded = np.concatenate([labels, np.full((50, 2), -1)])
    assert prediction_metrics(more, padded, ["hat", "hair"]) == prediction_metrics(
        probabilities, labels, ["hat", "hair"]
    )


def test_attribute_of_a_single_class_is_left_out_of_ranking_metrics():
    p = binary([[0.2, 0.9, 0.5], [0.7, 0.8, 0.5]])
    result = prediction_metrics(p, np.array([[0, 1, -1], [1, 1, -1]]), ["a", "b", "c"])
    assert result["per_attribute"]["b"]["ap"] is None and result["per_attribute"]["b"]["auroc"] is None
    assert result["per_attribute"]["c"]["accuracy"] is None
    assert (result["ap"], result["auroc"], result["accuracy"]) == (1, 1, 1)


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_without_a_label_no_number_is_defined(num_images):
    p, labels = binary(np.full((num_images, 2), 0.4)), np.full((num_images, 2), -1)
    result = prediction_metrics(p, labels, ["a", "b"])
    assert {value for name, value in result.items() if name != "per_attribute"} == {None}
    assert {value for row in result["per_attribute"].values() for value in row.values()} == {None}
    assert expected_calibration_error(reliability_curve(p, labels, equal_mass=True)) is None


def test_values_that_never_occur_are_left_out_of_ranking_and_f1():
    p, labels = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.8, 0.1]]]), np.array([[0], [1]])
    row = prediction_metrics(p, labels, ["a"])["per_attribute"]["a"]
    assert (row["ap"], row["auroc"], row["f1"], row["frequency"]) == (1, 1, 1, [0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("probabilities", "labels", "names", "message"),
    [
        (binary([[np.nan]]), [[1]], ["a"], "NaN"),
        (binary([[0.5]]) * 2, [[1]], ["a"], "sum to one"),
        (binary([[0.5]]), [[2]], ["a"], "a label is 2"),
        (binary([[0.5]]), [[1, 1]], ["a"], r"must be \(N, K, V\)"),
        (binary([[0.5]]), [[1]], ["a", "b"], "2 attribute names for 1"),
    ],
)
def test_bad_predictions_are_refused(probabilities, labels, names, message):
    with pytest.raises(ValueError, match=message):
        prediction_metrics(probabilities, labels, names)


def test_request_metrics_by_hand():
    requested = [[1, -1, 0], [-1, -1, 2], [1, 1, 1], [0, -1, -1]]
    predicted = [[1, 0, 0], [1, 1, 1], [1, 1, 0], [0, 1, 1]]
    assert request_metrics(predicted, requested) == {
        "agreement": pytest.approx(5 / 7),
        "all_right": 0.5,
        "num_images": 4,
    }


@pytest.mark.parametrize("requested", [[[1, 0], [-1, -1]], [[1], [0]], np.zeros((0, 2))])
def test_bad_requests_are_refused(requested):
    with pytest.raises(ValueError, match="request"):
        request_metrics(np.zeros((len(requested), 2)), requested)


def test_nearest_distance_is_in_units_of_black_to_white():
    reference = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    copies = reference[[7, 3, 39]]
    distance, index = nearest_distance(copies.float() / 127.5 - 1, reference, batch_size=2)
    assert index.tolist() == [7, 3, 39] and distance == pytest.approx(0, abs=1e-6)
    distance, _ = nearest_distance(copies, reference)
    assert (distance == 0).all()
    black, white = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    assert nearest_distance(black, white)[0].tolist() == [1]


def test_nearest_distance_equals_brute_force():
    generator = torch.Generator().manual_seed(1)
    images, reference = (torch.rand(n, 3, 6, 6, generator=generator) * 2 - 1 for n in (9, 30))
    brute = (((images[:, None] - reference) / 2) ** 2).flatten(2).mean(2).sqrt().min(1)
    distance, index = nearest_distance(images, reference, batch_size=4)
    assert (index == brute.indices.numpy()).all() and distance == pytest.approx(brute.values.numpy())
