"""The last step of training: probabilities fitted to images that were not trained on."""

import torch

from ..data.tensors import AttributeTensors
from ..metrics.calibration import AttributeScaling
from ..models.image_processing_jem import to_pixels
from ..models.modeling_jem import JemModel


@torch.no_grad()
def calibrate(model: JemModel, validation: AttributeTensors, batch_size: int = 250) -> None:
    """
    Fit the [`Calibration`](../models/calibration_jem.py) of a model, whatever it was before.

    Args:
        model ([`JemModel`]): With `calibrated` in its config.
        validation (`AttributeTensors`): Images and labels that were neither trained on nor are to be tested on.
    """
    calibration = model.calibration
    calibration.reset()
    parts = (to_pixels(batch.to(model.device)) for batch in validation.images.split(batch_size))
    logits = torch.cat([model.label_distribution(model.encode(part)).logits.cpu() for part in parts])
    scaling = AttributeScaling().fit(logits, validation.labels)
    calibration.scale.copy_(scaling.scale[:, None])
    calibration.bias.copy_(scaling.bias)
