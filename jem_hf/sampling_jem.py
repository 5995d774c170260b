"""Chains over images and labels. They see a function from images to logits, and no model class."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .heads_jem import log_joint, log_marginal

AttributeLogits = Callable[[torch.Tensor], torch.Tensor]


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


def draw_labels(logits: torch.Tensor, labels: torch.Tensor, generator=None) -> torch.Tensor:
    """Labels (B, K) with every -1 replaced by an exact draw from `p(y_k|x) = softmax(f_k(x))`; logits (B, K, V)."""
    draws = torch.multinomial(logits.detach().softmax(-1).flatten(0, 1), 1, generator=generator)
    return torch.where(labels >= 0, labels, draws.view_as(labels))


def guided_log_joint(logits: torch.Tensor, labels: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """`log p~(x) + g log p(y_O|x)` (B,), for g = 1 the log-joint itself. One gradient serves any g."""
    joint = log_joint(logits, labels)
    if guidance_scale == 1:
        return joint
    return guidance_scale * joint + (1 - guidance_scale) * log_marginal(logits)


def run_chain(
    attribute_logits: AttributeLogits,
    x: torch.Tensor,
    labels: torch.Tensor,
    settings: ChainSettings,
    generator: torch.Generator | None = None,
    callback: Callable[[torch.Tensor, ChainInfo], bool | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gibbs on the free labels interleaved with Langevin on the images (Kelly et al. 2021, algorithm 1).

    One forward pass a step serves both: the labels are drawn from the logits whose gradient moves the images.

    Args:
        attribute_logits: Function from images (B, C, H, W) to logits (B, K, V).
        x: Start of the images.
        labels: (B, K), -1 where free; labels that are given stay as they are.
        settings: How the chain moves.
        generator: Source of all randomness.
        callback: Called with the images and [`ChainInfo`] before each step; True stops the chain.

    Returns:
        The images and the labels at the end, detached. Labels stay -1 where they were marginalised.
    """
    x = x.detach()
    current = labels
    for step in range(settings.num_steps):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = attribute_logits(x)
            if settings.gibbs_every and step % settings.gibbs_every == 0:
                current = draw_labels(logits, labels, generator)
            log_density = guided_log_joint(logits, current, settings.guidance_scale)
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
    attribute_logits: AttributeLogits,
    x: torch.Tensor,
    labels: torch.Tensor,
    settings: ChainSettings,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One more Langevin step whose result still depends on the parameters (improved CD, Du et al. 2021, eq. 9)."""
    x = x.detach().requires_grad_(True)
    log_density = guided_log_joint(attribute_logits(x), labels, settings.guidance_scale)
    (gradient,) = torch.autograd.grad(log_density.sum(), x, create_graph=True)
    noise = torch.empty_like(x).normal_(generator=generator)
    x = x + settings.step_size * gradient + settings.noise_scale * noise
    return x.clamp(-1, 1) if settings.clamp else x
