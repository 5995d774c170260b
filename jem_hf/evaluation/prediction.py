"""What a model says of images: their attributes, beside classifiers."""

from collections.abc import Callable

import numpy as np
import torch

from ..data.tensors import AttributeTensors
from ..metrics.calibration import AttributeScaling, TemperatureScaling
from ..metrics.intervals import bootstrap_intervals, paired_bootstrap
from ..metrics.prediction import prediction_metrics, reliability_curve
from ..models.image_processing_jem import to_pixels
from ..models.modeling_jem import JemModel


@torch.no_grad()
def predict(
    model: JemModel,
    images: torch.Tensor,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    batch_size: int = 250,
) -> tuple[torch.Tensor, np.ndarray]:
    """
    Logits f(x) (N, K, V) and `log p~(x)` (N,) of images, uint8 or pixels in [-1, 1], of shape (N, C, H, W).

    `change` is called with the pixels of each batch and gives those that the model sees.
    """
    logits, log_p = [], []
    for batch in images.split(batch_size):
        pixels = to_pixels(batch)
        output = model((pixels if change is None else change(pixels)).to(model.device))
        logits.append(output.attribute_logits.cpu())
        log_p.append(-output.energy.cpu())
    return torch.cat(logits), torch.cat(log_p).numpy()


def compare_prediction(
    model: JemModel,
    classifiers: dict[str, JemModel],
    validation: AttributeTensors | None,
    test: AttributeTensors,
    num_resamples: int = 200,
) -> tuple[dict, dict]:
    """
    A joint model beside classifiers, and beside one that is calibrated on `validation`: that called
    "scaled_classifier", which is not reported as it is, or where there is none "classifier".

    Args:
        classifiers (`dict`): `JemModel` by name; without one the joint model stands alone.
        validation, test (`AttributeTensors`): What the classifier did not train on.
        num_resamples (`int`): Of the bootstrap.

    Returns:
        report: "prediction" of the joint model and "baselines" (the classifiers, and "classifier_temperature"
            and "classifier_attribute_scaling"), each with [`prediction_metrics`] and [`bootstrap_intervals`] under
            "intervals", and "comparison": [`paired_bootstrap`] of joint model less "rival", the classifier with
            temperature, or scaled per attribute where the model is calibrated itself.
        curves: for each of them its [`reliability_curve`] and its calibration error.
    """
    logits = {"joint": predict(model, test.images)[0]}
    logits |= {name: predict(each, test.images)[0] for name, each in classifiers.items()}
    if "classifier" in classifiers:
        name = "scaled_classifier" if "scaled_classifier" in classifiers else "classifier"
        to_fit = predict(classifiers[name], validation.images)[0]
        to_scale = logits.pop("scaled_classifier", logits["classifier"])
        for name, scaling in (("temperature", TemperatureScaling()), ("attribute_scaling", AttributeScaling())):
            logits[f"classifier_{name}"] = scaling.fit(to_fit, validation.labels)(to_scale)
    probabilities = {name: each.softmax(-1).numpy() for name, each in logits.items()}
    labels, attributes = test.labels.numpy(), model.config.attributes
    rows, curves = {}, {}
    for name, p in probabilities.items():
        rows[name] = prediction_metrics(p, labels, attributes, values=model.config.attribute_values)
        rows[name]["intervals"] = bootstrap_intervals(p, labels, attributes, num_resamples)
        curves[name] = (reliability_curve(p, labels), rows[name]["ece"])
    report = {"prediction": rows.pop("joint")}
    if "classifier" in classifiers:
        rival = "classifier_attribute_scaling" if model.config.calibrated else "classifier_temperature"
        pair = probabilities["joint"], probabilities[rival]
        report |= {"baselines": rows, "rival": rival}
        report["comparison"] = paired_bootstrap(*pair, labels, attributes, num_resamples)
    return report, curves


def zero_shot_recognition(logits: torch.Tensor, labels: torch.Tensor, combinations: torch.Tensor) -> dict | None:
    """
    How often the held-out combination of an image is told from the others (Kelly et al. 2021).

    The guess is the combination with the largest product of `p(y_k | x)` over its attributes. Images that match none
    or several of the combinations are left out.

    Args:
        logits (`torch.Tensor` of shape (N, K, V)), labels (`torch.Tensor` of shape (N, K)): Of the images.
        combinations (`torch.Tensor` of shape (C, K)): -1 where an attribute is not part of the combination.

    Returns:
        "accuracy", "chance" (one over C), "most_frequent" (the accuracy of always naming the most frequent one) and
        "num_images"; None where there is no image or there are fewer than two combinations.
    """
    asked = combinations >= 0
    match = ((labels[:, None] == combinations) | ~asked).all(-1)
    single = match.sum(1) == 1
    if len(combinations) < 2 or not single.any():
        return None
    log_p = logits[single].log_softmax(-1)
    attributes = torch.arange(labels.shape[1])
    scores = log_p[:, attributes, combinations.clamp(min=0)].masked_fill(~asked, 0).sum(-1)
    truth = match[single].int().argmax(1)
    return {
        "accuracy": (scores.argmax(1) == truth).float().mean().item(),
        "chance": 1 / len(combinations),
        "most_frequent": (truth.bincount().max() / len(truth)).item(),
        "num_images": len(truth),
    }
