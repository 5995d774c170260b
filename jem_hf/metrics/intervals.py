"""Intervals of prediction metrics from resampled images, for one model and for the difference between two.

The bootstrap draws images with replacement, each with all its attributes, so that the dependence between the
attributes of one image is kept (Efron and Tibshirani 1993, chapter 13). A resample is a weight for each image: how
often it was drawn, and of so many weightings each number is computed at once. `scipy.stats.bootstrap` would hand out
indices, which this has to count, and gives up where a single resample lacks a class.

Intervals lie between percentiles of the resamples. A calibration error is never negative, so the noise of its bins
makes it too large, and resampling makes it too large by as much again: its interval is the "basic" one, the
percentiles mirrored at the number, which takes that excess off. It may therefore lie below the number itself.
"""

from collections.abc import Sequence

import numpy as np

from .prediction import LEAST_PROBABILITY, binned_pairs, checked_predictions, one_against_rest

NUM_BINS = 15  # of calibration errors, as in prediction_metrics
BLOCK = 4_000_000  # weights at once: a bound on memory


def bootstrap_intervals(
    probabilities: np.ndarray,
    labels: np.ndarray,
    attributes: Sequence[str],
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float] | None]:
    """
    Bootstrap intervals of overall numbers of [`prediction_metrics`].

    Args:
        probabilities, labels, attributes: As for [`prediction_metrics`].
        num_resamples (`int`): How many times the N images are drawn anew.
        confidence (`float`): Share of the resamples in the interval, in (0, 1).
        seed (`int`): Of the draws.

    Returns:
        [low, high] for each of "accuracy", "ap", "nll" and "ece"; None where that is undefined, and of a single image.

    Raises:
        ValueError: as for `prediction_metrics`; a confidence outside (0, 1), or fewer than two resamples.
    """
    probabilities, labels = checked_predictions(probabilities, labels, attributes)
    numbers = _resampled(probabilities, labels, num_resamples, seed)
    intervals = {name: _interval(name, values, confidence) for name, values in numbers.items()}
    return {name: interval and [max(0.0, bound) for bound in interval] for name, interval in intervals.items()}


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    attributes: Sequence[str],
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float] | None]:
    """
    Differences of the overall numbers of two models on the same images, with bootstrap intervals.

    Both models are judged on the same resamples, so what the images make easy or hard for both cancels.

    Args:
        first, second (`np.ndarray` of shape (N, K, V)): Probabilities of the two models.
        others: As for [`bootstrap_intervals`], and so are the errors.

    Returns:
        For each name of [`bootstrap_intervals`] the "difference" first less second, and "low" and "high" of its
        interval; None where it has none. Where "high" of "ece" lies below zero, the first model is better calibrated.
    """
    first, labels = checked_predictions(first, labels, attributes)
    second, labels = checked_predictions(second, labels, attributes)
    numbers, others = (_resampled(p, labels, num_resamples, seed) for p in (first, second))
    result = {}
    for name in numbers:
        differences = numbers[name] - others[name]
        interval = _interval(name, differences, confidence)
        result[name] = interval and {"difference": float(differences[0]), "low": interval[0], "high": interval[1]}
    return result


@np.errstate(invalid="ignore")  # 0 / 0 where nothing was drawn
def weighted_metrics(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    "accuracy", "ap", "nll" and "ece" (R,) of [`prediction_metrics`] for weights (R, N) of the images at once.

    Whole weights give the numbers of the images repeated as often; NaN where a number is not defined.
    """
    num_images, num_attributes = labels.shape
    present = labels >= 0
    likelihood = np.take_along_axis(probabilities, labels.clip(0)[..., None], -1)[..., 0].clip(LEAST_PROBABILITY)
    right = probabilities.argmax(-1) == labels
    drawn = weights @ present
    pairs = one_against_rest(probabilities, labels)
    ap = np.full((len(weights), num_attributes), np.nan)
    for k in range(num_attributes):
        rows, values = present[:, k], pairs[:, k].any(0).nonzero()[0]
        if len(values):
            of_values = [
                _average_precision(probabilities[rows, k, v], labels[rows, k] == v, weights[:, rows]) for v in values
            ]
            ap[:, k] = _mean_of_defined(np.stack(of_values, 1))
    image, bins, _, confidences, came_true = binned_pairs(probabilities, labels, NUM_BINS)
    gaps = np.bincount(image * NUM_BINS + bins, came_true - confidences, num_images * NUM_BINS)
    return {
        "accuracy": _mean_of_defined(weights @ (right & present) / drawn),
        "ap": _mean_of_defined(ap),
        "nll": _mean_of_defined(weights @ np.where(present, -np.log(likelihood), 0) / drawn),
        "ece": np.abs(weights @ gaps.reshape(num_images, NUM_BINS)).sum(1) / drawn.sum(1),
    }


def _average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,), of scores (N,): scikit-learn's for each `sample_weight` (R, N), sorted once; NaN for a single class."""
    order = np.argsort(-scores, kind="stable")
    first_of_equal = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    drawn, hits = (np.add.reduceat(w[:, order], first_of_equal, axis=1) for w in (weights, weights * truth))
    precision = hits.cumsum(1) / np.maximum(drawn.cumsum(1), 1e-300)
    positives = hits.sum(1)
    single = (positives == 0) | (positives == drawn.sum(1))
    return np.where(single, np.nan, (precision * hits).sum(1) / np.maximum(positives, 1e-300))


def _resampled(probabilities, labels, num_resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays (1 + num_resamples,) of each number: of the images themselves, then of the resamples."""
    if num_resamples < 2:
        raise ValueError(f"num_resamples is {num_resamples}, but an interval needs two resamples or more")
    num_images, rng = len(labels), np.random.default_rng(seed)
    draws = rng.multinomial(num_images, np.full(num_images, 1 / num_images), num_resamples)
    if num_images == 1:
        draws[:] = 0  # one image says nothing of others: no number is defined
    weights = np.concatenate([np.ones((1, num_images)), draws])
    blocks = np.array_split(weights, -(-weights.size // BLOCK))
    numbers = [weighted_metrics(probabilities, labels, block) for block in blocks]
    return {name: np.concatenate([each[name] for each in numbers]) for name in numbers[0]}


def _interval(name: str, values: np.ndarray, confidence: float) -> list[float] | None:
    """[low, high] of a number, from its values for the images themselves and for the resamples; None if undefined."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1, such as 0.95")
    value, draws = values[0], values[1:][~np.isnan(values[1:])]
    if np.isnan(value) or not len(draws):
        return None
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return [float(2 * value - high), float(2 * value - low)] if name == "ece" else [low, high]


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean (R,) over the columns of (R, M) of what is not NaN; NaN where all are."""
    return np.nansum(values, 1) / (~np.isnan(values)).sum(1)
