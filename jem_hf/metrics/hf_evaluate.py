"""The numbers of the functions in `prediction.py` as `evaluate.Metric`s, used directly and without the Hub."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .prediction import prediction_metrics, request_metrics

CITATION = """\
@article{kelly2021directly,
  title={Directly Training Joint Energy-Based Models for Conditional Synthesis and Calibrated Prediction of
         Multi-Attribute Data},
  author={Kelly, Jacob and Zemel, Richard and Grathwohl, Will},
  journal={arXiv preprint arXiv:2108.04227},
  year={2021}
}"""
LABELS, POSITIVE = datasets.List(datasets.Value("int64")), datasets.List(datasets.Value("float64"))


class AttributePrediction(evaluate.Metric):
    """
    Quality and calibration of predicted attributes, the numbers of [`prediction_metrics`].

    Args:
        predictions: For each image the probabilities of the positive class (K,), or of every value (K, V).
        references: For each image the labels (K,), -1 for missing.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, [{"predictions": of, "references": LABELS} for of in (datasets.List(POSITIVE), POSITIVE)])

    def _compute(self, predictions, references, attributes: Sequence[str] | None = None, num_bins: int = 15) -> dict:
        probabilities, labels = np.asarray(predictions), np.asarray(references)
        if probabilities.ndim == 2:
            probabilities = np.stack([1 - probabilities, probabilities], axis=-1)
        names = [str(k) for k in range(labels.shape[1])] if attributes is None else attributes
        return prediction_metrics(probabilities, labels, names, num_bins)


class RequestAgreement(evaluate.Metric):
    """
    How far the attributes that an oracle sees in generated images are those requested: [`request_metrics`].

    Args:
        predictions: For each image the values (K,) that an oracle sees in it.
        references: For each image the values (K,) requested of it, -1 where nothing is requested.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, [{"predictions": LABELS, "references": LABELS}])

    def _compute(self, predictions, references) -> dict:
        return request_metrics(predictions, references)


def _info(metric: evaluate.Metric, features: list[dict]) -> evaluate.MetricInfo:
    description, inputs = type(metric).__doc__.split("Args:")
    features = list(map(datasets.Features, features))
    return evaluate.MetricInfo(
        description=description.strip(), citation=CITATION, inputs_description=f"Args:{inputs}", features=features
    )
