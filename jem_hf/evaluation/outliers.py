"""How well a model tells images from what is none of their kind."""

from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2.functional import gaussian_blur, pil_to_tensor

from ..data.avatars import ATTRIBUTES, render
from ..data.tensors import random_rows
from ..models.configuration_jem import JemConfig
from ..models.image_processing_jem import to_pixels
from ..models.modeling_jem import JemModel
from ..training.corruptions import shuffle_patches
from .prediction import predict


def outlier_sets(images: torch.Tensor) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """What outliers are made of real images (B, C, H, W) in [-1, 1], by name."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(16, generator=generator)
    return {
        "noise": lambda x: torch.rand(x.shape, generator=generator) * 2 - 1,
        "one_colour": lambda x: (torch.rand(*x.shape[:2], 1, 1, generator=generator) * 2 - 1).expand_as(x),
        "noisy": lambda x: (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(-1, 1),
        "blurred": lambda x: gaussian_blur(x, [5, 5], [1.0, 1.0]),
        "very_blurred": lambda x: gaussian_blur(x, [9, 9], [2.0, 2.0]),
        "upside_down": lambda x: x.flip(-2),
        "shuffled": lambda x: shuffle_patches(x, order),
        "inverted": lambda x: -x,
    }


def outlier_detection(
    model: JemModel, images: torch.Tensor, num: int = 500, outliers: dict[str, torch.Tensor] | None = None
) -> dict:
    """
    How well a model tells real images from outliers.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W)): Real ones, uint8.
        num (`int`): Of them that are looked at, and of each kind of outlier.
        outliers (`dict[str, torch.Tensor]`, *optional*):
            Images (M, C, H, W) in [-1, 1] by name; by default what [`outlier_sets`] makes of the real ones, and
            "avatars", 300 cartoon faces, unless the model knows avatars, has no three colour channels, or the packages
            that draw them are not there.

    Returns:
        For each set "log_p_auroc", by `log p(x)`, and where the model has an outlier score "auroc" by it and "fpr95",
        the share of outliers that pass where 95% of the real images do; without one "auroc" is by `log p(x)` too.
    """
    real = to_pixels(images[random_rows(len(images), num)])
    if outliers is None:
        outliers = {
            name: torch.cat([change(x) for x in real.split(250)]) for name, change in outlier_sets(real).items()
        }
        avatars = _avatars(model.config, min(300, len(real)))
        outliers |= {} if avatars is None else {"avatars": to_pixels(avatars)}
    score = _distances if model.has_outlier_score else _surprise
    of_real, by_log_p = score(model, real), _surprise(model, real)
    report = {}
    for name, x in outliers.items():
        found = score(model, x)
        report[name] = {"auroc": _auroc(of_real, found), "fpr95": float((found <= np.quantile(of_real, 0.95)).mean())}
        report[name]["log_p_auroc"] = _auroc(by_log_p, _surprise(model, x))
    return report


def _distances(model: JemModel, x: torch.Tensor) -> np.ndarray:
    return torch.cat([model.outlier_distance(part.to(model.device)).cpu() for part in x.split(250)]).numpy()


def _surprise(model: JemModel, x: torch.Tensor) -> np.ndarray:
    """`-log p~(x)` (N,)."""
    return -predict(model, x)[1]


def _auroc(of_real: np.ndarray, of_outliers: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([0] * len(of_real) + [1] * len(of_outliers), [*of_real, *of_outliers]))


def energy_quantiles(model: JemModel, images: torch.Tensor) -> list[float]:
    """The 101 percentiles, 0 to 100, of `-log p(x)` of images, uint8 (N, C, H, W)."""
    return np.quantile(-predict(model, images)[1], np.linspace(0, 1, 101)).tolist()


def _avatars(config: JemConfig, num: int) -> torch.Tensor | None:
    """Cartoon faces, uint8 (num, 3, H, W), as images from elsewhere."""
    if config.num_channels != 3 or set(config.attributes) <= set(ATTRIBUTES):
        return None
    try:
        return torch.stack([pil_to_tensor(render(index, size=config.image_size)[0]) for index in range(num)])
    except ImportError:  # resvg-py has no wheels for some machines
        return None
