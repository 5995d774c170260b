"""How far apart two sets of images are in the features of a network, and how varied one set is."""

import warnings

import torch
from torch import nn


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """
    Squared Fréchet distance of the Gaussians of two sets of features (Dowson and Landau 1982; Heusel et al. 2017).

    It is biased upwards by few images: compare only numbers of as many.

    Args:
        features: (N, D), from `FeatureNetwork.extract`.
        reference: (M, D), likewise.

    Raises:
        ValueError: fewer than two rows in either.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(nn.Identity(), normalize=True, input_img_size=features.shape[1:])
    return _updated(metric, features, reference).compute().item()


def kernel_distance(
    features: torch.Tensor, reference: torch.Tensor, num_subsets: int = 20, subset_size: int = 1000, seed: int = 0
) -> float:
    """
    Squared maximum mean discrepancy of two sets of features, cubic kernel, without bias (Binkowski et al. 2018).

    The mean over random subsets of `subset_size` rows, or of as many as the smaller set has.

    Args:
        features: (N, D), from `FeatureNetwork.extract`.
        reference: (M, D), likewise.

    Raises:
        ValueError: fewer than two rows in either.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    subset_size = min(len(features), len(reference), subset_size)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # it keeps the features: so do we
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(nn.Identity(), subsets=num_subsets, subset_size=max(1, subset_size))
        return _updated(metric, features, reference).compute()[0].item()


def mean_pairwise_distances(points: torch.Tensor, groups: torch.Tensor) -> dict[int, float]:
    """For each group with two or more of the points (N, D) their mean distance; `groups` (N,) says whose each is."""
    members = {group: points[groups == group] for group in groups.unique().tolist()}
    return {group: torch.pdist(rows).mean().item() for group, rows in members.items() if len(rows) > 1}


def _updated(metric, features: torch.Tensor, reference: torch.Tensor):
    """A torchmetrics metric of images that has seen features instead."""
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"sets of {len(features)} and {len(reference)} images: a distance needs two images or more")
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return metric
