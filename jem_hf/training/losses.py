"""Training losses, each a function of logits or of the function that gives them."""

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment


def contrastive_divergence(log_p_data: torch.Tensor, log_p_samples: torch.Tensor) -> torch.Tensor:
    """`mean log p~(x-) - mean log p~(x+)`: its gradient is minus that of the likelihood (Kelly et al. 2021, eq. 5)."""
    return log_p_samples.mean() - log_p_data.mean()


def nearest_neighbour_entropy(x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean log distance of images `x` (B, C, H, W) to their nearest of `others` (M, C, H, W) (Du et al. 2021)."""
    distance = torch.cdist(x.flatten(1), others.flatten(1))
    return distance.min(dim=1).values.clamp(min=1e-6).log().mean()


def optimal_transport_pairing(x0: torch.Tensor, x1: torch.Tensor, group_size: int = 64) -> torch.Tensor:
    """
    Indices (B,) into `x0` that pair it with `x1` at the least sum of squared distances.

    Pairs are within groups of `group_size` neighbours: the time of an assignment is cubic in their number.
    """
    groups = zip(x1.flatten(1).split(group_size), x0.flatten(1).split(group_size), strict=True)
    costs = [torch.cdist(a, b).square() for a, b in groups]
    pairings = [torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1]) for cost in costs]
    return torch.cat([i * group_size + pairing for i, pairing in enumerate(pairings)]).to(x0.device)


def random_observed_sets(labels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Labels (B, K) of which a random part is hidden (-1).

    Half of the rows keep all; one in ten none; one in five a few (one to three on average); the rest any share.
    """
    batch, num_attributes = labels.shape
    kind, share = torch.rand(2, batch, 1, generator=generator, device=labels.device)
    few = (1 + 2 * share) / num_attributes
    density = torch.where(kind < 0.5, 1.0, torch.where(kind < 0.6, 0.0, torch.where(kind < 0.8, few, share)))
    keep = torch.rand(labels.shape, generator=generator, device=labels.device) < density
    return labels.where(keep, -1)


def equilibrium_matching(
    label_distribution: Callable,
    x1: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator | None = None,
    decay_start: float = 0.8,
) -> torch.Tensor:
    """
    Equilibrium Matching (Wang and Du 2025, arXiv 2510.02300) of a joint energy, on random observed sets.

    Where labels cannot be summed out all are observed, and those that are missing are drawn from `p(y | x_t, y_O)`.

    With noise x0, `x_t = (1 - t) x0 + t x1` and `c(t) = min(1, (1 - t) / (1 - decay_start))`, the mean over pixels of
    `(grad_x log p~(x_t, y_O) - c(t) (x1 - x0))^2`. Noise and data are paired by optimal transport.

    Args:
        label_distribution: Function from images (B, C, H, W) to the distribution of their labels.
        x1: Data (B, C, H, W) in [-1, 1].
        labels: (B, K), -1 where missing.
    """
    x0 = torch.empty_like(x1).normal_(generator=generator)
    x0 = x0[optimal_transport_pairing(x0, x1)]
    t = torch.rand(len(x1), 1, 1, 1, generator=generator, device=x1.device)
    x_t = torch.lerp(x0, x1, t).requires_grad_(True)
    distribution = label_distribution(x_t)
    observed = (
        random_observed_sets(labels, generator) if distribution.is_exact else distribution.draw(labels, generator)
    )
    (gradient,) = torch.autograd.grad(distribution.log_joint(observed).sum(), x_t, create_graph=True)
    target = ((1 - t) / (1 - decay_start)).clamp(max=1) * (x1 - x0)
    return (gradient - target).square().mean()
