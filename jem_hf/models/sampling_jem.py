"""Chains over images and labels. They see a function from images to distributions of labels, and no model class."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .image_samplers_jem import IMAGE_SAMPLERS, ChainInfo, Schedule, linear, progress_of, scheduled
from .label_distributions_jem import InteractingDistribution, ProductDistribution

LabelDistribution = ProductDistribution | InteractingDistribution
NEVER = -2  # fills the place of an alternative that a request does not have


@dataclass(frozen=True)
class ChainSettings:
    """
    How a chain moves: `x <- x + step_size * grad_x log p~(x, y) + noise_scale * noise`, in pixels of [-1, 1].

    Args:
        num_steps (`int`): Langevin steps.
        step_size (`float`): Factor of the gradient; or a schedule, see [`linear`].
        noise_scale (`float`): Standard deviation of the noise; `sqrt(2 * step_size)` samples the density itself.
        gibbs_every (`int`): Free labels are drawn anew before every so many steps; 0 marginalises them.
        guidance_scale (`float`): g in `log p~(x) + g log p(y|x)`.
        clamp (`bool`): Keep pixels in [-1, 1].
    """

    num_steps: int = 40
    step_size: float | Schedule = 4.0
    noise_scale: float = 0.002
    gibbs_every: int = 1
    guidance_scale: float = 1.0
    clamp: bool = True

    @property
    def step_sizes(self) -> list[float]:
        """Of each step."""
        return [scheduled(self.step_size, progress_of(step, self.num_steps)) for step in range(self.num_steps)]


def flow_settings(num_steps: int = 16, flow_time: float = 1.6, **kwargs) -> ChainSettings:
    """
    Gradient flow without noise, for an energy trained by Equilibrium Matching (Wang and Du 2025, section 3).

    The steps rise from half to one and a half of their mean: fewer are needed than of equal ones.
    """
    mean = flow_time / num_steps
    step_size = linear(0.5 * mean, 1.5 * mean)
    return ChainSettings(num_steps=num_steps, step_size=step_size, noise_scale=0.0, clamp=False, **kwargs)


def initial_noise(sampler: str, shape: tuple[int, ...], device=None, generator=None) -> torch.Tensor:
    """Where a chain starts: standard normal pixels for `"flow"`, uniform ones in [-1, 1] for `"langevin"`."""
    noise = torch.empty(shape, device=device)
    return noise.normal_(generator=generator) if sampler == "flow" else noise.uniform_(-1, 1, generator=generator)


@dataclass(frozen=True)
class Condition:
    """
    What images are to show: `log p~(x, y_O)`, or more than one label vector together.

    Args:
        labels (`torch.LongTensor` of shape (B, K) or (B, M, K)): -1 where free. M label vectors are alternatives that
            exclude each other, `NEVER` where there are fewer: `log p~(x, R) = logsumexp_m log p~(x, y_m)`.
        weights (`torch.Tensor` of shape (B, K)): Factors of `log p(y_k|x)`.
        shares (`torch.Tensor` of shape (B, M)): The M label vectors are mixed: `sum_m shares_m log p~(x, y_m)`.
    """

    labels: torch.Tensor
    weights: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def log_joint(self, distribution: LabelDistribution) -> torch.Tensor:
        """(B,), unnormalised."""
        if self.labels.ndim == 2:
            return distribution.log_joint(self.labels, self.weights)
        each = torch.stack([distribution.log_joint(labels, self.weights) for labels in self.labels.unbind(1)], dim=1)
        if self.shares is not None:
            return (self.shares * each).sum(1)
        return each.masked_fill((self.labels == NEVER).any(-1), -torch.inf).logsumexp(1)

    def most_probable(self, distribution: LabelDistribution) -> torch.Tensor:
        """Of the alternatives the label vector (B, K) with the highest `log p~(x, y_m)`."""
        if self.labels.ndim == 2:
            return self.labels
        each = [Condition(labels[:, None]).log_joint(distribution) for labels in self.labels.unbind(1)]
        best = torch.stack(each, dim=1).argmax(1)
        return self.labels[torch.arange(len(best), device=best.device), best]

    def guided(
        self, distribution: LabelDistribution, guidance_scale: float, contrast: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        `log p~(x) + g log p(R|x)` (B,), for g = 1 the log-joint itself. One gradient serves any g.

        Where labels cannot be summed out, `contrast` (B, K) are labels drawn from `p(y|x)`: `log p~(x, contrast)` then
        has the gradient of `log p~(x)` on average (Fisher's identity).
        """
        joint = self.log_joint(distribution)
        if guidance_scale == 1:
            return joint
        marginal = distribution.log_marginal() if contrast is None else distribution.log_joint(contrast)
        return guidance_scale * joint + (1 - guidance_scale) * marginal


def as_condition(labels: "torch.Tensor | Condition") -> Condition:
    """Labels (B, K) as the condition to show them."""
    # a Condition may be of another copy of this file: transformers makes one each of a folder's model and pipeline
    return Condition(labels) if isinstance(labels, torch.Tensor) else labels


def run_chain(
    label_distribution: Callable[[torch.Tensor], LabelDistribution],
    x: torch.Tensor,
    condition: torch.Tensor | Condition,
    settings: ChainSettings,
    generator: torch.Generator | None = None,
    callback: Callable[[torch.Tensor, ChainInfo], bool | None] | None = None,
    project: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gibbs on the free labels interleaved with Langevin on the images (Kelly et al. 2021, algorithm 1).

    One forward pass a step serves both: the labels are drawn from the potentials whose gradient moves the images.

    Args:
        label_distribution: Function from images (B, C, H, W) to the distribution of their labels.
        x: Start of the images.
        condition: Labels (B, K), -1 where free, or a [`Condition`]. Labels that are given stay as they are.
        settings: How the chain moves.
        generator: Source of all randomness.
        callback: Called with the images and [`ChainInfo`] before each step; True stops the chain.
        project: Called with the images after each step and the share of the way that is done, of the sum of the step
            sizes; what it returns goes on.

    Returns:
        The images and the labels at the end, detached. Labels stay -1 where they were marginalised.
    """
    x, condition = x.detach(), as_condition(condition)
    labels, drawn, contrast = condition.labels, None, None
    step_sizes = settings.step_sizes
    way = sum(step_sizes)
    for step, step_size in enumerate(step_sizes):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            distribution = label_distribution(x)
            gibbs_every = settings.gibbs_every or int(not distribution.is_exact)
            if gibbs_every and step % gibbs_every == 0 and labels.ndim == 2:
                drawn = distribution.draw(labels, generator, start=drawn)
                condition = replace(condition, labels=drawn)
            if settings.guidance_scale != 1 and not distribution.is_exact:
                free = torch.full((len(x), labels.shape[-1]), -1, device=x.device)
                contrast = distribution.draw(free, generator, start=contrast)
            log_density = condition.guided(distribution, settings.guidance_scale, contrast)
            (gradient,) = torch.autograd.grad(log_density.sum(), x)
        x = x.detach()
        if callback is not None:
            info = ChainInfo(
                step=step,
                energy=-log_density.detach(),
                grad_norm=gradient.flatten(1).norm(dim=1),
                saturated=(x.abs() >= 1).flatten(1).float().mean(1),
                acceptance=torch.ones_like(log_density),
            )
            if callback(x, info):
                break
        x = torch.add(x, gradient, alpha=step_size)
        if settings.noise_scale:
            x.add_(torch.empty_like(x).normal_(generator=generator), alpha=settings.noise_scale)
        if settings.clamp:
            x.clamp_(-1, 1)
        if project is not None:
            x = project(x, sum(step_sizes[: step + 1]) / way if way else 1.0)
    return x, condition.labels


def run_sampler(
    sampler: str,
    label_distribution: Callable[[torch.Tensor], LabelDistribution],
    x: torch.Tensor,
    condition: torch.Tensor | Condition,
    *,
    num_steps: int,
    guidance_scale: float = 1.0,
    gibbs_every: int = 0,
    generator: torch.Generator | None = None,
    callback: Callable[[torch.Tensor, ChainInfo], bool | None] | None = None,
    **settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Images by a sampler of [`IMAGE_SAMPLERS`](image_samplers_jem.py); free labels as in [`run_chain`], by exact Gibbs.

    Args:
        sampler: Its name.
        settings: Its own arguments, such as `step_size` and `temperature`.

    Other arguments and returns as [`run_chain`] has them.
    """
    condition = as_condition(condition)
    labels, done, stopped = condition.labels, 0, False

    def observe(x, info):
        nonlocal stopped
        stopped = callback is not None and bool(callback(x, info._replace(step=done + info.step)))
        return stopped

    def log_density(x):
        return condition.guided(label_distribution(x), guidance_scale)

    while done < num_steps and not stopped:
        if gibbs_every and labels.ndim == 2:
            with torch.no_grad():
                condition = replace(condition, labels=label_distribution(x).draw(labels, generator))
        part = min(gibbs_every or num_steps, num_steps - done)
        x, _ = IMAGE_SAMPLERS[sampler](
            log_density, x, num_steps=part, generator=generator, callback=observe, **settings
        )
        done += part
    return x, condition.labels


def last_langevin_step(
    label_distribution: Callable[[torch.Tensor], LabelDistribution],
    x: torch.Tensor,
    labels: torch.Tensor,
    settings: ChainSettings,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One more Langevin step whose result still depends on the parameters (improved CD, Du et al. 2021, eq. 9)."""
    x = x.detach().requires_grad_(True)
    log_density = Condition(labels).guided(label_distribution(x), settings.guidance_scale)
    (gradient,) = torch.autograd.grad(log_density.sum(), x, create_graph=True)
    noise = torch.empty_like(x).normal_(generator=generator)
    x = x + settings.step_sizes[-1] * gradient + settings.noise_scale * noise
    return x.clamp(-1, 1) if settings.clamp else x
