"""The numbers of the functions in `metrics` as `evaluate.Metric`s, used directly and without the Hub:

metric = AttributePrediction()
metric.add_batch(predictions=probabilities, references=labels)
metric.compute(attributes=["Smiling", "Male"])
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .prediction import CALIBRATION_ERRORS, prediction_metrics, request_metrics

CITATION = """\
@article{kelly2021directly,
  title={Directly Training Joint Energy-Based Models for Conditional Synthesis and Calibrated Prediction of
         Multi-Attribute Data},
  author={Kelly, Jacob and Zemel, Richard and Grathwohl, Will},
  journal={arXiv preprint arXiv:2108.04227},
  year={2021}
}"""
PROBABILITIES = """
Args:
    predictions: for each image the probabilities of the positive class (K,), or of every value (K, V).
    references: for each image the labels (K,), -1 for missing.
"""


class AttributePrediction(evaluate.Metric):
    """Quality and calibration of predicted attributes, the numbers of [`prediction_metrics`]."""

    def _info(self):
        inputs = f"{PROBABILITIES}    attributes: the K names; their numbers 0 to K - 1 if not given.\n"
        return _info(
            "Quality and calibration of predicted attributes, overall and for each.", inputs, _probabilities()
        )

    def _compute(self, predictions, references, attributes: Sequence[str] | None = None, num_bins: int = 15) -> dict:
        return _prediction_metrics(predictions, references, attributes, num_bins)


class AttributeCalibration(evaluate.Metric):
    """Calibration of predicted attributes: "nll", "brier", "ece", "ece_equal_mass" and "ece_positive" over all."""

    def _info(self):
        return _info("Calibration of predicted attributes, over all of them.", PROBABILITIES, _probabilities())

    def _compute(self, predictions, references, num_bins: int = 15) -> dict:
        result = _prediction_metrics(predictions, references, None, num_bins)
        return {name: result[name] for name in ("nll", "brier", *CALIBRATION_ERRORS)}


class RequestAgreement(evaluate.Metric):
    """How far the attributes that an oracle sees in generated images are those requested: [`request_metrics`]."""

    def _info(self):
        inputs = """
Args:
    predictions: for each image the values (K,) that an oracle sees in it.
    references: for each image the values (K,) requested of it, -1 where nothing is requested.
"""
        labels = datasets.List(datasets.Value("int64"))
        features = datasets.Features({"predictions": labels, "references": labels})
        return _info("How far generated images meet the requests for them.", inputs, features)

    def _compute(self, predictions, references) -> dict:
        return request_metrics(predictions, references)


def _probabilities() -> list[datasets.Features]:
    """Of every value, or of the positive class alone."""
    positive = datasets.List(datasets.Value("float64"))
    labels = datasets.List(datasets.Value("int64"))
    return [
        datasets.Features({"predictions": predictions, "references": labels})
        for predictions in (datasets.List(positive), positive)
    ]


def _info(description: str, inputs: str, features) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation=CITATION, inputs_description=inputs, features=features
    )


def _prediction_metrics(predictions, references, attributes, num_bins: int) -> dict:
    probabilities, labels = np.asarray(predictions), np.asarray(references)
    if probabilities.ndim == 2:
        probabilities = np.stack([1 - probabilities, probabilities], axis=-1)
    names = [str(k) for k in range(labels.shape[1])] if attributes is None else attributes
    return prediction_metrics(probabilities, labels, names, num_bins)
