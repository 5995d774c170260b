import numpy as np
import pytest
import torch

from jem_hf.metrics.hf_evaluate import AttributePrediction, RequestAgreement
from jem_hf.metrics.prediction import prediction_metrics, request_metrics

NAMES = ["hat", "glasses", "smile"]


@pytest.fixture
def data():
    """Probabilities of the positive class (40, 3) and labels (40, 3), some of them missing."""
    rng = np.random.default_rng(0)
    return rng.random((40, 3)), rng.integers(-1, 2, (40, 3))


def both(positive):
    return np.stack([1 - positive, positive], axis=-1)


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, np.ndarray.tolist], ids=["numpy", "torch", "lists"])
@pytest.mark.parametrize("shape", [np.asarray, both], ids=["positive class", "every value"])
@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_give_the_numbers_of_the_function(data, convert, shape, keep_in_memory, tmp_path):
    positive, labels = data
    predictions = shape(positive)
    metric = AttributePrediction(cache_dir=str(tmp_path), keep_in_memory=keep_in_memory)
    for rows in (slice(0, 25), slice(25, 40)):
        metric.add_batch(predictions=convert(predictions[rows]), references=convert(labels[rows]))
    assert metric.compute(attributes=NAMES) == prediction_metrics(both(positive), labels, NAMES)


def test_single_examples_give_the_numbers_of_the_function(data, tmp_path):
    positive, labels = data
    metric = AttributePrediction(cache_dir=str(tmp_path))
    for prediction, reference in zip(positive, labels):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == prediction_metrics(both(positive), labels, ["0", "1", "2"])


def test_categorical_attributes(tmp_path):
    rng = np.random.default_rng(1)
    probabilities, labels = rng.dirichlet([1, 1, 1], (30, 2)), rng.integers(0, 3, (30, 2))
    result = AttributePrediction(cache_dir=str(tmp_path)).compute(predictions=probabilities, references=labels)
    assert result == prediction_metrics(probabilities, labels, ["0", "1"])


def test_request_agreement(tmp_path):
    requested = [[1, -1, 0], [-1, -1, 2], [1, 1, 1]]
    seen = [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    metric = RequestAgreement(cache_dir=str(tmp_path))
    assert metric.compute(predictions=seen, references=requested) == request_metrics(seen, requested)


def test_errors_of_the_function_come_through(data, tmp_path):
    positive, labels = data
    metric = AttributePrediction(cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="2 attribute names for 3"):
        metric.compute(predictions=positive, references=labels, attributes=["a", "b"])


def test_metric_describes_itself(tmp_path):
    for metric in (AttributePrediction, RequestAgreement):
        described = metric(cache_dir=str(tmp_path))
        assert "references" in described.inputs_description and "2108.04227" in described.citation
