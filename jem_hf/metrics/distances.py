"""How far apart images are: two sets of them in the features of a network, those of one request, and copies."""

import warnings

import numpy as np
import torch
from torch import nn


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float | None:
    """
    Squared Fréchet distance of the Gaussians of two sets of features (Dowson and Landau 1982; Heusel et al. 2017).

    It is biased upwards by few images: compare only numbers of as many.

    Args:
        features (`torch.Tensor` of shape (N, D)), reference (`torch.Tensor` of shape (M, D)):
            From `FeatureNetwork.extract`. Of fewer than two rows the distance is None.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # imports matplotlib

    if min(len(features), len(reference)) < 2:
        return None
    metric = FrechetInceptionDistance(nn.Identity(), normalize=True, input_img_size=features.shape[1:])
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return metric.compute().item()


def kernel_distance(
    features: torch.Tensor, reference: torch.Tensor, num_subsets: int = 20, subset_size: int = 1000, seed: int = 0
) -> float | None:
    """
    Squared maximum mean discrepancy of two sets of features, cubic kernel, without bias (Binkowski et al. 2018).

    It is the mean over random subsets of `subset_size` rows, or of as many as the smaller set has; see
    [`frechet_distance`] for the arguments.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    subset_size = min(len(features), len(reference), subset_size)
    if subset_size < 2:
        return None
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # it keeps the features: so do we
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(nn.Identity(), subsets=num_subsets, subset_size=subset_size)
        metric.update(reference, real=True)
        metric.update(features, real=False)
        return metric.compute()[0].item()


def mean_pairwise_distances(points: torch.Tensor, groups: torch.Tensor) -> dict[int, float]:
    """For each group with two or more of the points (N, D) their mean distance; `groups` (N,) says whose each is."""
    members = {group: points[groups == group] for group in groups.unique().tolist()}
    return {group: torch.pdist(rows).mean().item() for group, rows in members.items() if len(rows) > 1}


def nearest_distance(
    images: torch.Tensor, reference: torch.Tensor, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """
    Distance of each image to the nearest of the reference images: zero for a copy.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W)), reference (`torch.Tensor` of shape (M, C, H, W)):
            uint8 or floats in [-1, 1].

    Returns:
        Distances (N,), the root mean square over pixels and channels, where black and white are 0 and 1; and the
        indices (N,) of the reference images.
    """
    images, reference = _unit_rows(images), _unit_rows(reference)
    squares = reference.square().sum(1)
    distances, indices = [], []
    for batch in images.split(batch_size):
        index = torch.addmm(squares, batch, reference.T, alpha=-2).argmin(1)
        # Again from the difference: the expanded square above is off by rounding, and a copy must be at zero.
        distances.append((batch - reference[index]).square().mean(1).sqrt())
        indices.append(index)
    return torch.cat(distances).cpu().numpy(), torch.cat(indices).cpu().numpy()


def _unit_rows(images: torch.Tensor) -> torch.Tensor:
    """Images as rows of pixels in [0, 1]."""
    unit = images.float() / 255 if images.dtype == torch.uint8 else (images.float().clamp(-1, 1) + 1) / 2
    return unit.flatten(1)
