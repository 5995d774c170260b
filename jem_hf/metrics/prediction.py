"""Numbers that judge a model: calibrated prediction of attributes, requests met by generated images, copied images.

Plain functions of arrays. Predicted probabilities have the shape (N, K, V): N images, K attributes, V the largest
number of values; an attribute with fewer values has zeros beyond them. Labels are integers (N, K), -1 where missing,
and a missing label is left out everywhere.
"""

from collections.abc import Sequence

import numpy as np
import torch

METRICS = ("accuracy", "f1", "ap", "auroc", "nll", "brier", "ece", "ece_equal_mass", "ece_positive")
CALIBRATION_ERRORS = {"ece": {}, "ece_equal_mass": {"equal_mass": True}, "ece_positive": {"positive": True}}


def prediction_metrics(probabilities, labels, attributes: Sequence[str], num_bins: int = 15) -> dict:
    """Quality and calibration of predicted attribute probabilities, per attribute and overall.

    Args:
        probabilities: (N, K, V), each row over V sums to one.
        labels: (N, K) integers, -1 for missing.
        attributes: the K names.
        num_bins: bins of the calibration errors.

    Returns:
        Numbers under "accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece", "ece_equal_mass" and
        "ece_positive", and under "per_attribute" for each name: "accuracy", "f1", "ap", "auroc", "nll", "brier",
        "ece", "ece_equal_mass", "ece_positive" and "frequency" (of the positive class; a list over the values of a
        categorical attribute). None where a number is not defined.

        - accuracy, f1_macro, ap, auroc, nll, brier: means over the attributes for which the number is defined.
        - f1, ap, auroc: of the positive class of a binary attribute; of a categorical one the mean over its values,
          one against the rest. ap and auroc are not defined where all labels are equal.
        - f1_micro: from the true and false positives of all attributes pooled.
        - nll: mean of -log p(label), in nats; a probability counts as at least 1e-12.
        - brier: mean of sum_v (p_v - [label = v])^2 in [0, 2] (Brier 1950); if binary, twice (p - label)^2.
        - ece: top-label expected calibration error (Guo et al. 2017); ece_equal_mass: the same over bins of equal
          mass; ece_positive: of the probability of the positive class against its frequency. See
          [`reliability_curve`]. All three are pooled over the (image, attribute) pairs, so that opposite errors of
          two attributes at one confidence cancel; the errors of each attribute stand in "per_attribute".

    Raises:
        ValueError: shapes or names that do not fit, NaN, rows that do not sum to one, labels without a value, or no
            label at all.
    """
    probabilities, labels = checked_predictions(probabilities, labels, attributes)
    columns = []
    for k, num_values in enumerate(value_counts(probabilities, labels)):
        present = labels[:, k] >= 0
        columns.append((probabilities[present, k, :num_values], labels[present, k]))
    rows = [_attribute_metrics(p, y, num_bins) for p, y in columns]
    overall = {name: _mean([row[name] for row in rows]) for name in METRICS}
    return {
        "accuracy": overall["accuracy"],
        "f1_macro": overall["f1"],
        "f1_micro": _f1_micro(columns),
        **{name: overall[name] for name in ("ap", "auroc", "nll", "brier")},
        **_calibration_errors(probabilities, labels, num_bins),
        "per_attribute": dict(zip(attributes, rows, strict=True)),
    }


def reliability_curve(
    probabilities, labels, num_bins: int = 15, *, equal_mass: bool = False, positive: bool = False
) -> dict:
    """Accuracy against confidence over all pairs of image and attribute.

    Args:
        probabilities: (N, K, V), each row over V sums to one.
        labels: (N, K) integers, -1 for missing.
        num_bins: bins of the confidence. A bin holds its lower edge; the last one holds the highest confidence too.
        equal_mass: bins between quantiles of the confidences, which hold equally many of them (Nguyen and O'Connor
            2015; "adaptive" in Nixon et al. 2019), in place of bins of equal width over [0, 1]. Equal confidences
            are never parted: where one value fills several bins, some of them stay empty.
        positive: confidence is the probability of the positive class and accuracy is its frequency; a categorical
            attribute counts with all its values, each against the rest. Else confidence is the probability of the
            most probable value and accuracy is how often that is right (top label, Guo et al. 2017).

    Returns:
        Arrays (num_bins,): the mean "confidence" and the "accuracy" in each bin, NaN in an empty one, and its "count";
        and the "edges" of the bins (num_bins + 1,).

    Raises:
        ValueError: as for `prediction_metrics`.
    """
    probabilities, labels = checked_predictions(probabilities, labels)
    _, confidences, right = confidence_pairs(probabilities, labels, positive)
    edges = bin_edges(confidences, num_bins, equal_mass)
    bins = bin_index(confidences, edges)
    count = np.bincount(bins, minlength=num_bins)
    divisor = np.where(count > 0, count, np.nan)
    return {
        "confidence": np.bincount(bins, confidences, num_bins) / divisor,
        "accuracy": np.bincount(bins, right, num_bins) / divisor,
        "count": count,
        "edges": edges,
    }


def confidence_pairs(
    probabilities: np.ndarray, labels: np.ndarray, positive: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the image, confidence and whether it came true (M,), of what a [`reliability_curve`] is made of."""
    if not positive:
        present = labels >= 0
        right = probabilities.argmax(-1) == labels
        return present.nonzero()[0], probabilities.max(-1)[present], right[present]
    counts = value_counts(probabilities, labels)[:, None]
    values = np.arange(probabilities.shape[2])
    asked = np.where(counts == 2, values == 1, values < counts)  # (K, V)
    chosen = (labels >= 0)[..., None] & asked
    return chosen.nonzero()[0], probabilities[chosen], (labels[..., None] == values)[chosen]


def bin_edges(confidences: np.ndarray, num_bins: int, equal_mass: bool = False) -> np.ndarray:
    """Edges (num_bins + 1,), ascending, of bins of equal width over [0, 1] or of equal mass of the confidences."""
    quantiles = np.linspace(0, 1, num_bins + 1)
    return np.quantile(confidences, quantiles) if equal_mass else quantiles


def bin_index(confidences: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin in which each confidence lies. A bin holds its lower edge."""
    return np.searchsorted(edges[1:-1], confidences, side="right")


def expected_calibration_error(curve: dict) -> float:
    """Gap between accuracy and confidence, averaged over a [`reliability_curve`] (Guo et al. 2017, eq. 3)."""
    gaps = np.abs(curve["accuracy"] - curve["confidence"])
    return float(np.nansum(gaps * curve["count"]) / curve["count"].sum())


def checked_predictions(
    probabilities, labels, attributes: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K, V) as float64 and labels (N, K) as arrays, or a ValueError that says what is wrong."""
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 3 or probabilities.shape[:2] != labels.shape:
        raise ValueError(f"probabilities {probabilities.shape} must be (N, K, V) and labels {labels.shape} (N, K)")
    if np.isnan(probabilities).any():
        raise ValueError("probabilities contain NaN")
    if (probabilities < 0).any() or (np.abs(probabilities.sum(-1) - 1) > 1e-2).any():
        raise ValueError("probabilities must be at least zero and sum to one over the values of an attribute")
    if (labels >= probabilities.shape[2]).any():
        raise ValueError(f"a label is {labels.max()}, but the largest number of values is {probabilities.shape[2]}")
    if not (labels >= 0).any():
        raise ValueError("there is no label: all are missing")
    if attributes is not None and len(attributes) != labels.shape[1]:
        raise ValueError(f"{len(attributes)} attribute names for {labels.shape[1]} attributes")
    return probabilities, labels


def value_counts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """V_k (K,): the values of each attribute up to the last that has probability anywhere or occurs; at least two."""
    occurs = (probabilities > 0).any(0)  # (K, V)
    last = occurs.shape[1] - 1 - occurs[:, ::-1].argmax(1)
    return np.maximum(np.maximum(last, labels.max(0)), 1) + 1


def request_metrics(predicted, requested) -> dict:
    """How far an oracle finds the requested attributes in generated images.

    Args:
        predicted: (N, K) integers, the values that the oracle sees.
        requested: (N, K) integers, -1 where nothing is requested.

    Returns:
        "agreement": share of the requested entries that are met; "all_right": share of the images with all of theirs
        met; "num_images": N.

    Raises:
        ValueError: the shapes differ, or an image has no request.
    """
    predicted, requested = np.asarray(predicted), np.asarray(requested)
    if predicted.shape != requested.shape or predicted.ndim != 2:
        raise ValueError(f"predicted {predicted.shape} and requested {requested.shape} must have one shape (N, K)")
    asked = requested >= 0
    if not len(asked) or not asked.any(1).all():
        raise ValueError("every image needs at least one requested attribute")
    met = predicted == requested
    return {
        "agreement": float(met[asked].mean()),
        "all_right": float((met | ~asked).all(1).mean()),
        "num_images": len(asked),
    }


def nearest_distance(images, reference, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each image to the nearest of the reference images: zero for a copy.

    Args:
        images: tensor (N, C, H, W), uint8 or floats in [-1, 1].
        reference: tensor (M, C, H, W), likewise.

    Returns:
        distance: (N,), root mean square over pixels and channels, where black and white are 0 and 1.
        index: (N,), which reference image.
    """
    images, reference = _unit_rows(images), _unit_rows(reference)
    squares = reference.square().sum(1)
    distances, indices = [], []
    for batch in images.split(batch_size):
        index = torch.addmm(squares, batch, reference.T, alpha=-2).argmin(1)
        # Again from the difference: the expanded square above is off by rounding, and a copy must be at zero.
        distances.append((batch - reference[index]).square().mean(1).sqrt())
        indices.append(index)
    return torch.cat(distances).cpu().numpy(), torch.cat(indices).cpu().numpy()


def _attribute_metrics(probabilities: np.ndarray, labels: np.ndarray, num_bins: int) -> dict:
    """The metrics of one attribute from its present labels (N,) and their probabilities (N, V_k)."""
    if not len(labels):
        return {**dict.fromkeys(METRICS), "frequency": None}
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    num_values = probabilities.shape[1]
    guesses = probabilities.argmax(1)
    truth = np.eye(num_values)[labels]
    frequency = truth.mean(0).tolist()
    values = [1] if num_values == 2 else range(num_values)
    ranked = [v for v in values if 0 < frequency[v] < 1]
    seen = [v for v in values if num_values == 2 or frequency[v] > 0 or (guesses == v).any()]
    return {
        "accuracy": float((guesses == labels).mean()),
        "f1": _mean([f1_score(truth[:, v], guesses == v, zero_division=0) for v in seen]),
        "ap": _mean([average_precision_score(truth[:, v], probabilities[:, v]) for v in ranked]),
        "auroc": _mean([roc_auc_score(truth[:, v], probabilities[:, v]) for v in ranked]),
        "nll": float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean()),
        "brier": float(((probabilities - truth) ** 2).sum(1).mean()),
        **_calibration_errors(probabilities[:, None], labels[:, None], num_bins),
        "frequency": frequency[1] if num_values == 2 else frequency,
    }


def _f1_micro(columns) -> float:
    """F1 of all attributes pooled: of positives where binary, of every value where categorical."""
    true_positives = guessed = positives = 0
    for probabilities, labels in columns:
        guesses = probabilities.argmax(1)
        counted = labels >= (1 if probabilities.shape[1] == 2 else 0)
        claimed = guesses >= (1 if probabilities.shape[1] == 2 else 0)
        true_positives += (counted & (guesses == labels)).sum()
        guessed += claimed.sum()
        positives += counted.sum()
    return float(2 * true_positives / max(guessed + positives, 1))


def _calibration_errors(probabilities: np.ndarray, labels: np.ndarray, num_bins: int) -> dict[str, float]:
    return {
        name: expected_calibration_error(reliability_curve(probabilities, labels, num_bins, **kind))
        for name, kind in CALIBRATION_ERRORS.items()
    }


def _mean(numbers: Sequence[float | None]) -> float | None:
    defined = [number for number in numbers if number is not None]
    return float(np.mean(defined)) if defined else None


def _unit_rows(images: torch.Tensor) -> torch.Tensor:
    """Images as rows of pixels in [0, 1]."""
    unit = images.float() / 255 if images.dtype == torch.uint8 else (images.float().clamp(-1, 1) + 1) / 2
    return unit.flatten(1)
