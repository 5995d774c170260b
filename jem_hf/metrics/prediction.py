"""Numbers that judge a model: calibrated prediction of attributes, and requests met by generated images.

Plain functions of arrays. Predicted probabilities have the shape (N, K, V): N images, K attributes, V the largest
number of values; an attribute with fewer values has zeros beyond them. Labels are integers (N, K), -1 where missing,
and a missing label is left out everywhere. A number that is not defined is None.
"""

from collections.abc import Mapping, Sequence

import numpy as np

METRICS = ("accuracy", "f1", "ap", "auroc", "nll", "brier", "ece", "ece_equal_mass", "ece_positive")
CALIBRATION_ERRORS = {"ece": {}, "ece_equal_mass": {"equal_mass": True}, "ece_positive": {"positive": True}}
LEAST_PROBABILITY = 1e-12  # of a label, or one that was held for impossible makes the mean of -log p infinite


def prediction_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    attributes: Sequence[str],
    num_bins: int = 15,
    values: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """
    Quality and calibration of predicted attribute probabilities, per attribute and overall.

    Args:
        probabilities (`np.ndarray` of shape (N, K, V)): Each row over V sums to one.
        labels (`np.ndarray` of shape (N, K)): Integers, -1 for missing.
        attributes (`Sequence[str]`): The K names.
        num_bins (`int`): Bins of the calibration errors.
        values (`Mapping[str, Sequence[str]]`, *optional*): Names of the values of attributes that are not binary.

    Returns:
        Numbers by name, and under "per_attribute" for each attribute its own, "f1" for the two below and "frequency"
        (of the positive class; a list over the values of a categorical attribute). None where one is not defined.

        - accuracy, f1_macro, ap, auroc, nll, brier: means over the attributes for which the number is defined.
        - f1, ap, auroc: of the positive class of a binary attribute; of a categorical one the mean over its values,
          one against the rest. ap and auroc are not defined where all labels are equal.
        - f1_micro: from the true and false positives of all attributes pooled.
        - nll: mean of -log p(label), in nats; a probability counts as at least 1e-12.
        - brier: mean of sum_v (p_v - [label = v])^2 in [0, 2] (Brier 1950); if binary, twice (p - label)^2.
        - ece: top-label expected calibration error (Guo et al. 2017); ece_equal_mass: the same over bins of equal
          mass; ece_positive: of the probability of the positive class against its frequency. See
          [`reliability_curve`]. All three are pooled over the (image, attribute) pairs, so that opposite errors of
          two attributes at one confidence cancel.

        An attribute that `values` names has beside these "confusion" (a list a label, of how often each value was
        guessed) and "per_value": by name frequency, precision, recall, ap and ece, this of the value's probability.

    Raises:
        ValueError: shapes or names that do not fit, NaN, rows that do not sum to one, or labels without a value.
    """
    from sklearn.metrics import f1_score

    probabilities, labels = checked_predictions(probabilities, labels, attributes)
    rows = []
    for k, num_values in enumerate(value_counts(probabilities, labels)):
        present = labels[:, k] >= 0
        p, y = probabilities[present, k], labels[present, k]
        rows.append(_attribute_metrics(p[:, :num_values], y, num_bins))
        if names := (values or {}).get(attributes[k]):
            rows[-1] |= _value_metrics(p[:, : len(names)], y, names, num_bins)
    defined = {name: [row[name] for row in rows if row[name] is not None] for name in METRICS}
    overall = {name: float(np.mean(numbers)) if numbers else None for name, numbers in defined.items()}
    pairs, places = one_against_rest(probabilities, labels), np.arange(probabilities.shape[2])
    truth, guessed = ((x[..., None] == places)[pairs] for x in (labels, probabilities.argmax(-1)))
    return {
        "accuracy": overall["accuracy"],
        "f1_macro": overall["f1"],
        "f1_micro": float(f1_score(truth, guessed, zero_division=0)) if len(truth) else None,
        **{name: overall[name] for name in ("ap", "auroc", "nll", "brier")},
        **_calibration_errors(probabilities, labels, num_bins),
        "per_attribute": dict(zip(attributes, rows, strict=True)),
    }


def reliability_curve(
    probabilities: np.ndarray,
    labels: np.ndarray,
    num_bins: int = 15,
    equal_mass: bool = False,
    positive: bool = False,
) -> dict[str, np.ndarray]:
    """
    Accuracy against confidence over all pairs of image and attribute.

    Args:
        probabilities, labels: As for [`prediction_metrics`], and so are the errors.
        num_bins (`int`): Bins of the confidence. A bin holds its lower edge, the last one the highest confidence too.
        equal_mass (`bool`): Bins between quantiles of the confidences, which hold equally many of them (Nguyen and
            O'Connor 2015), in place of equal width over [0, 1]. Equal confidences are never parted.
        positive (`bool`): Confidence is the probability of the positive class and accuracy is its frequency; a
            categorical attribute counts with all its values, each against the rest. Else confidence is the
            probability of the most probable value and accuracy is how often that is right.

    Returns:
        Arrays (num_bins,): the mean "confidence" and the "accuracy" in each bin, NaN in an empty one, and its "count";
        and the "edges" of the bins (num_bins + 1,).
    """
    probabilities, labels = checked_predictions(probabilities, labels)
    _, bins, edges, confidences, right = binned_pairs(probabilities, labels, num_bins, equal_mass, positive)
    count = np.bincount(bins, minlength=num_bins)
    divisor = np.where(count > 0, count, np.nan)
    return {
        "confidence": np.bincount(bins, confidences, num_bins) / divisor,
        "accuracy": np.bincount(bins, right, num_bins) / divisor,
        "count": count,
        "edges": edges,
    }


def expected_calibration_error(curve: dict[str, np.ndarray]) -> float | None:
    """Gap between accuracy and confidence, averaged over a [`reliability_curve`] (Guo et al. 2017, eq. 3)."""
    gaps = np.abs(curve["accuracy"] - curve["confidence"])
    total = curve["count"].sum()
    return float(np.nansum(gaps * curve["count"]) / total) if total else None


def binned_pairs(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int, equal_mass: bool = False, positive: bool = False
) -> tuple[np.ndarray, ...]:
    """What a [`reliability_curve`] is made of: image, bin (M,), edges (num_bins + 1,), confidence and truth (M,)."""
    if positive:
        pairs = one_against_rest(probabilities, labels)
        confidences, right = probabilities[pairs], (labels[..., None] == np.arange(probabilities.shape[2]))[pairs]
    else:
        pairs = labels >= 0
        confidences, right = probabilities.max(-1)[pairs], (probabilities.argmax(-1) == labels)[pairs]
    edges = np.linspace(0, 1, num_bins + 1)
    if equal_mass and len(confidences):
        edges = np.quantile(confidences, edges)
    return pairs.nonzero()[0], np.searchsorted(edges[1:-1], confidences, side="right"), edges, confidences, right


def one_against_rest(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mask (N, K, V) where labels are present: of binary attributes the positive class, of others every value."""
    counts = value_counts(probabilities, labels)[:, None]
    values = np.arange(probabilities.shape[2])
    return (labels >= 0)[..., None] & np.where(counts == 2, values == 1, values < counts)


def value_counts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """V_k (K,): the values of each attribute up to the last that has probability anywhere or occurs; at least two."""
    occurs = (probabilities > 0).any(0)  # (K, V)
    last = occurs.shape[1] - 1 - occurs[:, ::-1].argmax(1)
    return np.maximum(last, labels.max(0, initial=1)) + 1


def checked_predictions(
    probabilities: np.ndarray, labels: np.ndarray, attributes: Sequence[str] | None = None
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
    if attributes is not None and len(attributes) != labels.shape[1]:
        raise ValueError(f"{len(attributes)} attribute names for {labels.shape[1]} attributes")
    return probabilities, labels


def request_metrics(predicted: np.ndarray, requested: np.ndarray) -> dict:
    """
    How far an oracle finds the requested attributes in generated images.

    Args:
        predicted, requested (`np.ndarray` of shape (N, K)): The values that the oracle sees, and those that are
            requested, -1 where nothing is.

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


def _attribute_metrics(probabilities: np.ndarray, labels: np.ndarray, num_bins: int) -> dict:
    """The metrics of one attribute from its present labels (N,) and their probabilities (N, V_k)."""
    if not len(labels):
        return {**dict.fromkeys(METRICS), "frequency": None}
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    num_values = probabilities.shape[1]
    guesses, truth = probabilities.argmax(1), np.eye(num_values)[labels]
    frequency = truth.mean(0)
    values = [1] if num_values == 2 else range(num_values)
    ranked = [v for v in values if 0 < frequency[v] < 1]
    one_class = truth[:, ranked], probabilities[:, ranked]
    return {
        "accuracy": float((guesses == labels).mean()),
        "f1": float(
            f1_score(labels, guesses, labels=[1] if num_values == 2 else None, average="macro", zero_division=0)
        ),
        "ap": float(average_precision_score(*one_class)) if ranked else None,
        "auroc": float(roc_auc_score(*one_class)) if ranked else None,
        "nll": float(-np.log(probabilities[np.arange(len(labels)), labels].clip(LEAST_PROBABILITY)).mean()),
        "brier": float(((probabilities - truth) ** 2).sum(1).mean()),
        **_calibration_errors(probabilities[:, None], labels[:, None], num_bins),
        "frequency": float(frequency[1]) if num_values == 2 else frequency.tolist(),
    }


def _value_metrics(probabilities: np.ndarray, labels: np.ndarray, values: Sequence[str], num_bins: int) -> dict:
    """What tells the values of an attribute apart, from its present labels (N,) and their probabilities (N, V_k)."""
    from sklearn.metrics import average_precision_score

    confusion = np.zeros((len(values), len(values)), dtype=int)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    rows = {}
    for v, value in enumerate(values):
        truth, p, right = labels == v, probabilities[:, v], int(confusion[v, v])
        curve = reliability_curve(
            np.stack([1 - p, p], 1)[:, None], truth[:, None].astype(int), num_bins, positive=True
        )
        rows[value] = {
            "frequency": float(truth.mean()) if len(truth) else None,
            "precision": right / int(confusion[:, v].sum()) if confusion[:, v].any() else None,
            "recall": right / int(confusion[v].sum()) if confusion[v].any() else None,
            "ap": float(average_precision_score(truth, p)) if 0 < truth.sum() < len(truth) else None,
            "ece": expected_calibration_error(curve),
        }
    return {"confusion": confusion.tolist(), "per_value": rows}


def _calibration_errors(probabilities: np.ndarray, labels: np.ndarray, num_bins: int) -> dict[str, float | None]:
    return {
        name: expected_calibration_error(reliability_curve(probabilities, labels, num_bins, **kind))
        for name, kind in CALIBRATION_ERRORS.items()
    }
