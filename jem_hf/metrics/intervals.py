"""Intervals of prediction metrics from resampled images, for one model and for the difference between two.

The bootstrap draws images with replacement, each with all its attributes, so that the dependence between the
attributes of one image is kept; the intervals lie between quantiles of the resamples (Efron and Tibshirani 1993,
chapter 13). A resample is a weight for each image: how often it was drawn.

A calibration error is never negative, so the noise of resampling adds to it: the resamples of a well calibrated model
lie above its error. Their median is therefore moved to the error before the quantiles are taken. Another bias stays:
the error itself is too large by the noise of its bins, so the interval of a perfectly calibrated model does not hold
zero, and the difference between two models is drawn towards zero where one is far better calibrated.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from .prediction import CALIBRATION_ERRORS, bin_edges, bin_index, checked_predictions, confidence_pairs, value_counts

BLOCK = 4_000_000  # weights at once


def bootstrap_intervals(
    probabilities,
    labels,
    attributes: Sequence[str],
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    num_bins: int = 15,
) -> dict[str, list[float] | None]:
    """Percentile bootstrap intervals of the overall numbers of [`prediction_metrics`].

    Args:
        probabilities: (N, K, V), each row over V sums to one.
        labels: (N, K) integers, -1 for missing.
        attributes: the K names.
        num_resamples: how many times the N images are drawn anew.
        confidence: share of the resamples that lie within the interval, in (0, 1).
        seed: of the draws.
        num_bins: bins of the calibration errors.

    Returns:
        [low, high] for each of "accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece",
        "ece_equal_mass" and "ece_positive"; None where the number is not defined.

    Raises:
        ValueError: as for `prediction_metrics`; a confidence outside (0, 1), or fewer than two resamples.
    """
    probabilities, labels = checked_predictions(probabilities, labels, attributes)
    _check_settings(num_resamples, confidence)
    draws = _resample(probabilities, labels, num_resamples, seed, num_bins)
    intervals = {name: _interval(name, values, confidence) for name, values in draws.items()}
    return {name: interval and [max(interval[0], 0.0), interval[1]] for name, interval in intervals.items()}


def paired_bootstrap(
    first,
    second,
    labels,
    attributes: Sequence[str],
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    num_bins: int = 15,
) -> dict[str, dict[str, float] | None]:
    """Differences of the overall numbers of two models on the same images, with percentile bootstrap intervals.

    Both models are judged on the same resamples, so what the images make easy or hard for both cancels.

    Args:
        first, second: probabilities (N, K, V) of the two models.
        labels: (N, K) integers, -1 for missing.
        attributes, num_resamples, confidence, seed, num_bins: as for [`bootstrap_intervals`].

    Returns:
        For each name of [`bootstrap_intervals`] the "difference" first less second, and "low" and "high" of its
        interval; None where it is not defined. The first model is better calibrated, beyond what the choice of images
        explains, where "high" of "ece" lies below zero.

    Raises:
        ValueError: as for `bootstrap_intervals`.
    """
    first, labels = checked_predictions(first, labels, attributes)
    second, labels = checked_predictions(second, labels, attributes)
    _check_settings(num_resamples, confidence)
    draws, other = (_resample(p, labels, num_resamples, seed, num_bins) for p in (first, second))
    result = {}
    for name in draws:
        differences = draws[name] - other[name]
        interval = _interval(name, differences, confidence)
        result[name] = interval and {"difference": float(differences[0]), "low": interval[0], "high": interval[1]}
    return result


def weighted_metrics(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_bins: int = 15
) -> dict[str, np.ndarray]:
    """The overall numbers of [`prediction_metrics`] for R weightings of the images at once.

    With whole weights they are the numbers of the images repeated as often, with one exception: bins of equal mass
    keep the edges of the unweighted images.

    Args:
        probabilities: (N, K, V) float64.
        labels: (N, K) integers, -1 for missing.
        weights: (R, N), at least zero.

    Returns:
        Arrays (R,); NaN where a number is not defined.
    """
    rows, pooled = [], np.zeros((3, len(weights)))
    for k, num_values in enumerate(value_counts(probabilities, labels)):
        present = labels[:, k] >= 0
        row, counts = _weighted_attribute(
            probabilities[present, k, :num_values], labels[present, k], weights[:, present]
        )
        rows.append(row)
        pooled += counts
    true_positives, guessed, positives = pooled
    means = {name: _defined_mean([row[name] for row in rows]) for name in rows[0]}
    return {
        "accuracy": means["accuracy"],
        "f1_macro": means["f1"],
        "f1_micro": 2 * true_positives / np.maximum(guessed + positives, 1e-12),
        **{name: means[name] for name in ("ap", "auroc", "nll", "brier")},
        **{
            name: _weighted_calibration_error(probabilities, labels, weights, num_bins, **kind)
            for name, kind in CALIBRATION_ERRORS.items()
        },
    }


def weighted_ranking(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC (R,) of scores (N,) for truth (N,), 0 or 1, under each of the weights (R, N).

    What scikit-learn's `average_precision_score` and `roc_auc_score` give for each `sample_weight`, sorted once. NaN
    where the weights leave a single class.
    """
    order = np.argsort(-scores, kind="stable")
    scores, truth, weights = scores[order], truth[order], weights[:, order]
    new, new_hits = weights, weights * truth  # at each score, from high to low
    first_of_equal = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    if len(first_of_equal) < len(scores):
        new, new_hits = (np.add.reduceat(w, first_of_equal, axis=1) for w in (new, new_hits))
    drawn, hits = new.cumsum(1), new_hits.cumsum(1)
    positives, negatives = weights @ truth, weights @ (1 - truth)
    precision = hits / np.maximum(drawn, 1e-300)
    # A hit and a miss of equal score count half: the trapezoid under the curve of hits over misses.
    beaten = np.einsum("rn,rn->r", new - new_hits, hits - new_hits / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        ap = np.einsum("rn,rn->r", new_hits, precision) / positives
        auroc = beaten / (positives * negatives)
    both = (positives > 0) & (negatives > 0)
    return np.where(both, ap, np.nan), np.where(both, auroc, np.nan)


def _weighted_attribute(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[dict, np.ndarray]:
    """Numbers (R,) of one attribute, and its true positives, claimed and actual positives (3, R)."""
    num_values = probabilities.shape[1]
    truth = np.eye(num_values)[labels]
    guesses = np.eye(num_values)[probabilities.argmax(1)]
    likelihood = np.maximum((probabilities * truth).sum(1), 1e-12)
    columns = ((truth * guesses).sum(1), -np.log(likelihood), ((probabilities - truth) ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        accuracy, nll, brier = (weights @ np.stack(columns, 1) / weights.sum(1, keepdims=True)).T
    values = [1] if num_values == 2 else range(num_values)
    counts = np.stack(
        [weights @ (truth * guesses)[:, values], weights @ guesses[:, values], weights @ truth[:, values]]
    )
    true_positives, claims = counts[0], counts[1] + counts[2]
    nothing = 0.0 if num_values == 2 else np.nan  # a value that neither occurs nor is guessed
    f1 = np.where(claims > 0, 2 * true_positives / np.maximum(claims, 1e-12), nothing)
    f1[weights.sum(1) == 0] = np.nan
    rankings = [weighted_ranking(probabilities[:, v], truth[:, v], weights) for v in values]
    row = {
        "accuracy": accuracy,
        "f1": _defined_mean(list(f1.T)),
        "ap": _defined_mean([ap for ap, _ in rankings]),
        "auroc": _defined_mean([auroc for _, auroc in rankings]),
        "nll": nll,
        "brier": brier,
    }
    return row, counts.sum(2)


def _weighted_calibration_error(
    probabilities, labels, weights, num_bins: int, equal_mass: bool = False, positive: bool = False
) -> np.ndarray:
    """Sums over the pairs of an image first: the error is then one product with the weights."""
    image, confidences, right = confidence_pairs(probabilities, labels, positive)
    bins = bin_index(confidences, bin_edges(confidences, num_bins, equal_mass))
    num_images = len(labels)
    gaps = np.bincount(image * num_bins + bins, right - confidences, num_images * num_bins)
    count = np.bincount(image, minlength=num_images)
    with np.errstate(invalid="ignore"):
        return np.abs(weights @ gaps.reshape(num_images, num_bins)).sum(1) / (weights @ count)


def _resample(probabilities, labels, num_resamples: int, seed: int, num_bins: int) -> dict[str, np.ndarray]:
    """Arrays (1 + num_resamples,) of each number: of the images themselves, then of the resamples."""
    blocks = [weighted_metrics(probabilities, labels, w, num_bins) for w in _draws(len(labels), num_resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _draws(num_images: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights (R, N): ones, then those of the resamples in blocks of at most 4 million weights."""
    yield np.ones((1, num_images))
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // num_images)
    for start in range(0, num_resamples, size):
        rows = range(start, min(start + size, num_resamples))
        images = (rng.integers(num_images, size=num_images) for _ in rows)
        yield np.stack([np.bincount(drawn, minlength=num_images) for drawn in images]).astype(np.float64)


def _interval(name: str, values: np.ndarray, confidence: float) -> list[float] | None:
    """[low, high] from what `_resample` gives; None where the number is not defined."""
    value, draws = values[0], values[1:][~np.isnan(values[1:])]
    if np.isnan(value):
        return None
    if name in CALIBRATION_ERRORS:
        draws = draws - np.median(draws) + value
    tail = (1 - confidence) / 2
    return np.quantile(draws, [tail, 1 - tail]).tolist()


def _defined_mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over arrays (R,) of what is not NaN; NaN where all are."""
    stacked = np.stack(arrays)
    defined = ~np.isnan(stacked)
    count = defined.sum(0)
    return np.where(count > 0, np.where(defined, stacked, 0).sum(0) / np.maximum(count, 1), np.nan)


def _check_settings(num_resamples: int, confidence: float) -> None:
    if num_resamples < 2:
        raise ValueError(f"num_resamples is {num_resamples}, but an interval needs two resamples or more")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1, such as 0.95")
