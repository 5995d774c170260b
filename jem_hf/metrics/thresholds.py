"""The probability from which an attribute counts as there, chosen on labelled images."""

from collections.abc import Sequence

import numpy as np

NEVER = 1.1  # where no threshold does what is asked for


def parse_rule(text: str) -> tuple[str, float]:
    """
    `"f1"`, `"precision=0.9"` or a number, as what is to be done and a number.

    Raises:
        ValueError: anything else, or a number that is not between 0 and 1.
    """
    name, _, number = str(text).rpartition("=")
    try:
        value = 0.0 if text == "f1" else float(number)
        if text == "f1" or (name in ("", "precision") and 0 < value < 1):
            return (text if text == "f1" else name or "fixed"), value
    except ValueError:
        pass
    raise ValueError(f"a threshold is f1, precision=0.9 or a number between 0 and 1, not {text!r}")


def choose_thresholds(p: np.ndarray, labels: np.ndarray, attributes: Sequence[str], rule: str) -> dict[str, float]:
    """
    Thresholds of binary attributes by name.

    Args:
        p (`np.ndarray` of shape (N, K)): Probability that each attribute is there.
        labels (`np.ndarray` of shape (N, K)): 0, 1, or -1 where missing.
        attributes (`Sequence[str]`): The K names.
        rule (`str`): A number, for all; "f1", the one of the largest F1; "precision=0.9", the lowest at which so many
            of the images that count as positive are. Where none is: above 1, so that no image counts. An attribute
            without a positive label has none.

    Raises:
        ValueError: another rule.
    """
    from sklearn.metrics import precision_recall_curve

    kind, value = parse_rule(rule)
    if kind == "fixed":
        return dict.fromkeys(attributes, value)
    found = {}
    for k, name in enumerate(attributes):
        present = labels[:, k] >= 0
        if not (labels[present, k] == 1).any():
            continue
        precision, recall, thresholds = precision_recall_curve(labels[present, k], p[present, k])
        precision, recall = precision[:-1], recall[:-1]  # of the point without a threshold
        if kind == "f1":
            best = np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
            found[name] = float(thresholds[best])
        else:
            enough = precision >= value
            found[name] = float(thresholds[enough].min()) if enough.any() else NEVER
    return found
