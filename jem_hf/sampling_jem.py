"""Chains over images and labels. They see a function from images to distributions of labels, and no model class."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .label_distributions_jem import InteractingDistribution, ProductDistribution

LabelDistribution = ProductDistribution | InteractingDistribution
NEVER = -2  # fills the place of an alternative that a request does not have


@dataclass(frozen=True)
class ChainSettings:
    """
    How a chain moves: `x <- x + step_size * grad_x log p~(x, y) + noise_scale * noise`, in pixels of [-1, 1].

    Args:
        num_steps (`int`): Langevin steps.
        step_size (`float`): Factor of the gradient.
        noise_scale (`float`): Standard deviation of the noise; `sqrt(2 * step_size)` samples the density itself.
        gibbs_every (`int`): Free labels are drawn anew before every so many steps; 0 marginalises them.
        guidance_scale (`float`): g in `log p~(x) + g log p(y|x)`.
        clamp (`bool`): Keep pixels in [-1, 1].
    """

    num_steps: int = 40
    step_size: float = 4.0
    noise_scale: float = 0.002
    gibbs_every: int = 1
    guidance_scale: float = 1.0
    clamp: bool = True


def flow_settings(num_steps: int = 24, flow_time: float = 1.6, **kwargs) -> ChainSettings:
    """Gradient flow without noise, for an energy trained by Equilibrium Matching (Wang and Du 2025, section 3)."""
    return ChainSettings(num_steps=num_steps, step_size=flow_time / num_steps, noise_scale=0.0, clamp=False, **kwargs)


def initial_noise(sampler: str, shape: tuple[int, ...], device=None, generator=None) -> torch.Tensor:
    """Where a chain starts: standard normal pixels for `"flow"`, uniform ones in [-1, 1] for `"langevin"`."""
    noise = torch.empty(shape, device=device)
    return noise.normal_(generator=generator) if sampler == "flow" else noise.uniform_(-1, 1, generator=generator)


@dataclass
class ChainInfo:
    """
    What a chain looked like before each step, all of shape (B,) and on the chain's device.

    Args:
        step (`int`): 0 to `num_steps - 1`.
        log_joint: `log p~(x, y)`, guided where the chain is.
        grad_norm: Euclidean norm of its gradient.
        saturated: Share of the pixels at or beyond -1 or 1.
    """

    step: int
    log_joint: torch.Tensor
    grad_norm: torch.Tensor
    saturated: torch.Tensor


def log_request(distribution: LabelDistribution, labels: torch.Tensor, weights: torch.Tensor | None = None):
    """
    `log p~(x, R)` (B,) of requests R.

    Args:
        labels: (B, K), -1 where free; or (B, M, K), M alternatives that exclude each other, `NEVER` where there are
            fewer: `log p~(x, R) = logsumexp_m log p~(x, y_m)`.
        weights: (B, K), factors of `log p(y_k|x)`.
    """
    if labels.ndim == 2:
        return distribution.log_joint(labels, weights)
    alternatives = torch.stack([distribution.log_joint(each, weights) for each in labels.unbind(1)])
    return alternatives.masked_fill((labels == NEVER).any(-1).T, -torch.inf).logsumexp(0)


def guided_log_joint(
    distribution: LabelDistribution,
    labels: torch.Tensor,
    guidance_scale: float,
    weights: torch.Tensor | None = None,
    contrast: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    `log p~(x) + g log p(R|x)` (B,), for g = 1 the log-joint itself. One gradient serves any g.

    Where labels cannot be summed out, `contrast` (B, K) are labels drawn from `p(y|x)`: `log p~(x, contrast)` then has
    the gradient of `log p~(x)` on average (Fisher's identity).
    """
    joint = log_request(distribution, labels, weights)
    if guidance_scale == 1:
        return joint
    marginal = distribution.log_marginal() if contrast is None else distribution.log_joint(contrast)
    return guidance_scale * joint + (1 - guidance_scale) * marginal


def run_chain(
    label_distribution: Callable[[torch.Tensor], LabelDistribution],
    x: torch.Tensor,
    labels: torch.Tensor,
    settings: ChainSettings,
    generator: torch.Generator | None = None,
    callback: Callable[[torch.Tensor, ChainInfo], bool | None] | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gibbs on the free labels interleaved with Langevin on the images (Kelly et al. 2021, algorithm 1).

    One forward pass a step serves both: the labels are drawn from the potentials whose gradient moves the images.

    Args:
        label_distribution: Function from images (B, C, H, W) to the distribution of their labels.
        x: Start of the images.
        labels: (B, K), -1 where free, labels that are given stay as they are; or alternatives, see [`log_request`].
        settings: How the chain moves.
        generator: Source of all randomness.
        callback: Called with the images and [`ChainInfo`] before each step; True stops the chain.
        weights: (B, K), see [`log_request`].

    Returns:
        The images and the labels at the end, detached. Labels stay -1 where they were marginalised.
    """
    x = x.detach()
    current, drawn, contrast = labels, None, None
    for step in range(settings.num_steps):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            distribution = label_distribution(x)
            gibbs_every = settings.gibbs_every or int(not distribution.is_exact)
            if gibbs_every and step % gibbs_every == 0 and labels.ndim == 2:
                current = drawn = distribution.draw(labels, generator, start=drawn)
            if settings.guidance_scale != 1 and not distribution.is_exact:
                free = torch.full((len(x), labels.shape[-1]), -1, device=x.device)
                contrast = distribution.draw(free, generator, start=contrast)
            log_density = guided_log_joint(distribution, current, settings.guidance_scale, weights, contrast)
            (gradient,) = torch.autograd.grad(log_density.sum(), x)
        x = x.detach()
        if callback is not None:
            info = ChainInfo(
                step=step,
                log_joint=log_density.detach(),
                grad_norm=gradient.flatten(1).norm(dim=1),
                saturated=(x.abs() >= 1).flatten(1).float().mean(1),
            )
            if callback(x, info):
                break
        x = x + settings.step_size * gradient
        if settings.noise_scale:
            x.add_(torch.empty_like(x).normal_(generator=generator), alpha=settings.noise_scale)
        if settings.clamp:
            x.clamp_(-1, 1)
    return x, current


def last_langevin_step(
    label_distribution: Callable[[torch.Tensor], LabelDistribution],
    x: torch.Tensor,
    labels: torch.Tensor,
    settings: ChainSettings,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One more Langevin step whose result still depends on the parameters (improved CD, Du et al. 2021, eq. 9)."""
    x = x.detach().requires_grad_(True)
    log_density = guided_log_joint(label_distribution(x), labels, settings.guidance_scale)
    (gradient,) = torch.autograd.grad(log_density.sum(), x, create_graph=True)
    noise = torch.empty_like(x).normal_(generator=generator)
    x = x + settings.step_size * gradient + settings.noise_scale * noise
    return x.clamp(-1, 1) if settings.clamp else x
