"""Chains for a request. They see a function from images to distributions of labels, and no model class."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .chains_jem import Schedule, linear
from .image_samplers_jem import IMAGE_SAMPLERS, mixed_hmc
from .label_distributions_jem import LabelDistribution
from .values_jem import nearest_name

NEVER = -2  # fills the place of an alternative that a request does not have
SAMPLERS = IMAGE_SAMPLERS | {"mixed_hmc": mixed_hmc}
NOT_SETTINGS = {"num_steps", "start", "project", "keep_graph", "generator", "callback"}  # a chain gives them


def check_arguments(sampler: str, given: dict) -> None:
    """Raise `ValueError` for an argument that the sampler does not take or that is missing."""
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.items()
    own = {name: each for name, each in parameters if each.kind is each.KEYWORD_ONLY and name not in NOT_SETTINGS}
    for name, value in given.items():
        if name not in own:
            raise ValueError(f"the sampler {sampler!r} has no argument {name!r}{nearest_name(name, own)}")
        if isinstance(value, str | dict | None):
            raise ValueError(f"{name} of the sampler {sampler!r} is a number, not {value!r}")
    for name, parameter in own.items():
        if parameter.default is parameter.empty and name not in given:
            raise ValueError(f"the sampler {sampler!r} needs {name}: pass sampler_kwargs={{{name!r}: ...}}")


FLOW_TIME = 1.6  # for a flow without noise; it arrives at 1 where it keeps its first pace


def flow_steps(num_steps: int, flow_time: float = FLOW_TIME) -> Schedule:
    """Step sizes that add up to `flow_time`. They rise: 16 of them do what 24 equal ones do (benchmarks/README.md)."""
    mean = flow_time / num_steps
    return linear(0.5 * mean, 1.5 * mean)


def initial_noise(
    sampler: str, shape: tuple[int, ...], device: torch.device | None = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Where a chain starts: uniform pixels in [-1, 1] for `"langevin"`, standard normal ones for all others."""
    noise = torch.empty(shape, device=device)
    return noise.uniform_(-1, 1, generator=generator) if sampler == "langevin" else noise.normal_(generator=generator)


@dataclass(frozen=True)
class Condition:
    """
    What images are to show: `log p~(x, y_O)`, or more than one label vector together.

    Args:
        labels (`torch.LongTensor` of shape (B, K) or (B, M, K)): -1 where free. M label vectors are alternatives that
            exclude each other, `NEVER` where there are fewer: `log p~(x, R) = logsumexp_m log p~(x, y_m)`.
        weights (`torch.Tensor` of shape (B, K), *optional*): Factors of `log p(y_k|x)`.
        shares (`torch.Tensor` of shape (B, M), *optional*): The M label vectors are mixed,
            `sum_m shares_m log p~(x, y_m)`.
    """

    labels: torch.Tensor
    weights: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def log_joint(self, distribution: LabelDistribution) -> torch.Tensor:
        """(B,), unnormalised."""
        if self.labels.ndim == 2:
            return distribution.log_joint(self.labels, self.weights)
        each = self._each(distribution)
        return each.logsumexp(1) if self.shares is None else (self.shares * each).sum(1)

    def _each(self, distribution: LabelDistribution) -> torch.Tensor:
        """`log p~(x, y_m)` (B, M)."""
        each = torch.stack([distribution.log_joint(labels, self.weights) for labels in self.labels.unbind(1)], dim=1)
        return each.masked_fill((self.labels == NEVER).any(-1), -torch.inf)

    def most_probable(self, distribution: LabelDistribution) -> torch.Tensor:
        """Of the alternatives the label vector (B, K) with the highest `log p~(x, y_m)`."""
        if self.labels.ndim == 2:
            return self.labels
        best = self._each(distribution).argmax(1)
        return self.labels[torch.arange(len(best), device=best.device), best]

    def guided(
        self, distribution: LabelDistribution, guidance_scale: float, contrast: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        `log p~(x) + g log p(R|x)` (B,), for g = 1 the log-joint itself.

        Where labels cannot be summed out, `contrast` (B, K) are labels drawn from `p(y|x)`: `log p~(x, contrast)` then
        has the gradient of `log p~(x)` on average (Fisher's identity).
        """
        joint = self.log_joint(distribution)
        if guidance_scale == 1:
            return joint
        marginal = distribution.log_marginal() if contrast is None else distribution.log_joint(contrast)
        return guidance_scale * joint + (1 - guidance_scale) * marginal


class ConditionalDensity:
    """
    The log density of images that show a condition; one forward pass also draws free labels anew along the chain
    (Kelly et al. 2021, algorithm 1).

    Args:
        label_distribution: From images (B, C, H, W) to the distribution of their labels.
        condition ([`Condition`]): Labels that are given stay as they are, -1 is free.
        guidance_scale (`float`): g in `log p~(x) + g log p(R|x)`.
        gibbs_every (`int`): Free labels are drawn before every so many steps; 0 sums them out, where that is exact.
        generator (`torch.Generator`, *optional*): Source of all randomness.
    """

    def __init__(self, label_distribution, condition, guidance_scale=1.0, gibbs_every=0, generator=None):
        self.label_distribution, self.condition, self.free = label_distribution, condition, condition.labels
        self.guidance_scale, self.gibbs_every, self.generator = guidance_scale, gibbs_every, generator
        self.drawn = self.contrast = self.temperature = None

    def renew(self, step: int, temperature: float = 1.0) -> bool:
        """See [`image_samplers_jem`](image_samplers_jem.py). Labels are drawn with the evaluation that follows."""
        is_due = step == 0 or bool(self.gibbs_every and step % self.gibbs_every == 0)
        if is_due:
            self.temperature = temperature
        return is_due

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(B,) of images (B, C, H, W)."""
        distribution = self.label_distribution(x)
        if self.temperature is not None:
            self._draw(distribution, self.temperature)
            self.temperature = None
        return self.condition.guided(distribution, self.guidance_scale, self.contrast)

    def _draw(self, distribution: LabelDistribution, temperature: float) -> None:
        if not distribution.is_exact:
            self.gibbs_every = self.gibbs_every or 1
        if self.gibbs_every and self.free.ndim == 2:
            self.drawn = distribution.draw(self.free, self.generator, self.drawn, temperature)
            self.condition = replace(self.condition, labels=self.drawn)
        if self.guidance_scale != 1 and not distribution.is_exact:
            free = torch.full((len(self.free), self.free.shape[-1]), -1, device=self.free.device)
            self.contrast = distribution.draw(free, self.generator, self.contrast, temperature)


def run_chain(
    sampler: str, label_distribution: Callable[[torch.Tensor], LabelDistribution], x: torch.Tensor,
    condition: torch.Tensor | Condition, *, guidance_scale: float = 1.0, gibbs_every: int = 0,
    generator: torch.Generator | None = None, **settings,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """
    Images that show a condition, by a sampler of `SAMPLERS`.

    Args:
        sampler (`str`): Its name.
        label_distribution, condition, guidance_scale, gibbs_every, generator:
            See [`ConditionalDensity`]; a condition may be labels (B, K) alone.
        x (`torch.Tensor` of shape (B, C, H, W)): Start of the images.
        settings: The sampler's own arguments, such as `num_steps`, `step_size` and `callback`.

    Returns:
        The images and the labels at the end, detached. Labels stay -1 where they were summed out.
    """
    # a Condition may be of another copy of this file: transformers makes one each of a folder's model and pipeline
    condition = Condition(condition) if isinstance(condition, torch.Tensor) else condition
    if sampler == "mixed_hmc":
        return _run_mixed_hmc(label_distribution, x, condition, guidance_scale, generator, **settings)
    density = ConditionalDensity(label_distribution, condition, guidance_scale, gibbs_every, generator)
    x, _ = SAMPLERS[sampler](density, x, generator=generator, **settings)
    return x, density.condition.labels


def _run_mixed_hmc(label_distribution, x, condition, guidance_scale, generator, callback=None, **settings):
    """Images and free labels in one chain."""
    if condition.labels.ndim == 3 or condition.weights is not None:
        raise ValueError("mixed_hmc draws labels: it takes neither alternatives nor weights")

    def log_joint(x, encoded):
        distribution = label_distribution(x)
        joint = distribution.score(encoded)
        rest = 0.0 if guidance_scale == 1 else (1 - guidance_scale) * distribution.log_marginal()
        return guidance_scale * joint + rest

    def without_labels(x, labels, info):
        return callback(x, info)

    x, labels, _ = mixed_hmc(
        log_joint, x, condition.labels, label_distribution(x).num_values, generator=generator,
        callback=callback and without_labels, **settings,
    )  # fmt: skip
    return x, labels
