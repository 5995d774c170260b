"""Energy: how well `log p~(x)` tells real images from others."""

import numpy as np
import torch
from torchvision.transforms.v2.functional import gaussian_blur, pil_to_tensor

from ..data.avatars import ATTRIBUTES, render
from ..models.configuration_jem import JemConfig
from ..models.modeling_jem import JemModel
from .prediction import predict


def outlier_detection(model: JemModel, images: torch.Tensor, num_avatars: int = 300) -> dict:
    """
    AUROC with which `log p~(x)` tells real images from outliers.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W)): Real ones, uint8.
        num_avatars (`int`): Cartoon faces among the outliers, not more than N; 0 leaves them out.

    Returns:
        {"auroc": a} for each set: "noise" (uniform), "one_colour" (each image another), what is made of the images
        ("noisy", "blurred", "upside_down"), and "avatars", unless the model knows avatars, has no three colour
        channels, or the packages that draw them are not there.
    """
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    changes = {
        "noise": lambda x: torch.rand(x.shape, generator=generator) * 2 - 1,
        "one_colour": lambda x: (torch.rand(*x.shape[:2], 1, 1, generator=generator) * 2 - 1).expand_as(x),
        "noisy": lambda x: (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(-1, 1),
        "blurred": lambda x: gaussian_blur(x, [5, 5], [1.0, 1.0]),
        "upside_down": lambda x: x.flip(-2),
    }
    log_p_real = predict(model, images)[1]
    outliers = {name: predict(model, images, change)[1] for name, change in changes.items()}
    avatars = _avatars(model.config, min(num_avatars, len(images)))
    if avatars is not None:
        outliers["avatars"] = predict(model, avatars)[1]
    return {
        name: {"auroc": float(roc_auc_score([1] * len(images) + [0] * len(log_p), [*log_p_real, *log_p]))}
        for name, log_p in outliers.items()
    }


def energy_quantiles(model: JemModel, images: torch.Tensor) -> list[float]:
    """The 101 percentiles, 0 to 100, of `-log p(x)` of images, uint8 (N, C, H, W)."""
    return np.quantile(-predict(model, images)[1], np.linspace(0, 1, 101)).tolist()


def _avatars(config: JemConfig, num: int) -> torch.Tensor | None:
    """Cartoon faces, uint8 (num, 3, H, W), as images from elsewhere."""
    if num == 0 or config.num_channels != 3 or set(config.attributes) <= set(ATTRIBUTES):
        return None
    try:
        return torch.stack([pil_to_tensor(render(index, size=config.image_size)[0]) for index in range(num)])
    except ImportError:  # resvg-py has no wheels for some machines
        return None
