"""Log Z of an unnormalised density by annealed importance sampling, from both ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..models.image_samplers_jem import LogDensity, hmc, mala

AnnealingCallback = Callable[[float, torch.Tensor], None]
CHOICES = {"base": ("uniform", "normal"), "schedule": ("sigmoidal", "linear"), "transition": ("hmc", "mala")}


@dataclass(frozen=True)
class AnnealingSettings:
    """
    A path of densities `p_b ~ base^(1-b) p~^b` from a base that can be drawn from (b = 0) to the target p~ (b = 1).

    Args:
        base (`str`): `"uniform"` in the box [-1, 1]^D, which chains never leave, or `"normal"` in R^D: log Z is the
            integral over the one or the other, and an energy trained on pixels of the box need not have the second.
        base_std (`float`): Standard deviation of the normal base, whose mean is 0.
        num_temperatures (`int`): Values of b after 0, the last being 1.
        schedule (`str`): `"sigmoidal"`, `b_t = sigmoid(4 (2t/T - 1))` rescaled to [0, 1], with small steps near both
            ends (Wu et al. 2017, arXiv 1611.04273), or `"linear"`.
        transition (`str`): `"hmc"` or `"mala"`.
        num_steps (`int`), num_leapfrog (`int`): Transitions at every temperature, and leapfrog steps of one by HMC.
        step_size (`float` or `num_temperatures` of them): Of the transitions; [`adapt_step_sizes`] finds it.
    """

    base: str = "uniform"
    base_std: float = 1.0
    num_temperatures: int = 1000
    schedule: str = "sigmoidal"
    transition: str = "hmc"
    num_steps: int = 1
    num_leapfrog: int = 5
    step_size: float | tuple[float, ...] = 0.1

    def __post_init__(self):
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; choose {' or '.join(known)}")
        for field in ("num_temperatures", "num_steps", "num_leapfrog"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is 1 or more, not {getattr(self, field)}")
        if len(self.step_sizes) != self.num_temperatures:
            raise ValueError(f"{len(self.step_sizes)} step sizes for {self.num_temperatures} temperatures")
        if min(self.base_std, *self.step_sizes) <= 0:
            raise ValueError("base_std and step_size are above 0")

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """One for each value of b after 0."""
        return self.step_size if isinstance(self.step_size, tuple) else (self.step_size,) * self.num_temperatures

    @property
    def betas(self) -> list[float]:
        """The `num_temperatures + 1` values of b, rising from 0 to 1."""
        betas = torch.linspace(0, 1, self.num_temperatures + 1, dtype=torch.float64)
        if self.schedule == "sigmoidal":
            betas = torch.sigmoid(8 * betas - 4)
            betas = (betas - betas[0]) / (betas[-1] - betas[0])
        return betas.tolist()

    def draw_base(self, shape: tuple[int, ...], device=None, generator=None) -> torch.Tensor:
        x = torch.empty(shape, device=device)
        if self.base == "uniform":
            return x.uniform_(-1, 1, generator=generator)
        return x.normal_(std=self.base_std, generator=generator)

    def log_base(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised log density (N,) of the base at x (N, ...), which is in the box where the base is uniform."""
        dimensions = x[0].numel()
        if self.base == "uniform":
            return x.new_full(x.shape[:1], -dimensions * math.log(2))
        normaliser = dimensions * math.log(self.base_std * math.sqrt(2 * math.pi))
        return -0.5 * (x / self.base_std).flatten(1).square().sum(1) - normaliser

    def move(
        self, log_density: LogDensity, x: torch.Tensor, beta: float, step_size: float, generator=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Transitions that leave p_b as it is: x (N, ...), and their mean acceptance.

        In the box chains are reflected by its walls. Rejecting what falls outside is as exact, but of many pixels one
        is nearly always outside.
        """
        fold = _reflect if self.base == "uniform" else torch.nn.Identity()

        def tempered(x):
            x = fold(x)
            return (1 - beta) * self.log_base(x) + beta * log_density(x)

        sampler = partial(hmc, num_leapfrog=self.num_leapfrog) if self.transition == "hmc" else mala
        x, info = sampler(tempered, x, num_steps=self.num_steps, step_size=step_size, generator=generator)
        return fold(x), info.acceptance.mean()


@dataclass(frozen=True)
class LogZ:
    """
    An estimate of `log Z`, in nats.

    Args:
        log_weights (`torch.Tensor` of shape (N,), float64): `log w`, what each chain alone estimates.
        samples (`torch.Tensor` of shape (N, ...)): Where the chains ended.
        acceptance (`torch.Tensor` of shape (num_temperatures,)): Mean acceptance, in order of rising b.
        reverse (`bool`): Whether `E 1/w = 1/Z`, so that the mean of the weights is the harmonic one; else `E w = Z`.
    """

    log_weights: torch.Tensor
    samples: torch.Tensor
    acceptance: torch.Tensor
    reverse: bool

    @property
    def estimate(self) -> float:
        """Log of the mean weight, harmonic where `reverse`."""
        log_mean = self._signed.logsumexp(0).item() - math.log(len(self.log_weights))
        return -log_mean if self.reverse else log_mean

    @property
    def effective_sample_size(self) -> float:
        """`(sum w)^2 / sum w^2`, from 1 (one chain has all the weight) to N."""
        return 1 / self._signed.softmax(0).square().sum().item()

    @property
    def standard_error(self) -> float:
        """Of `estimate` by the delta method, at most 1; too small where few chains count or chains miss a mode."""
        num = len(self.log_weights)
        return math.sqrt(max(0.0, 1 / self.effective_sample_size - 1 / num) * num / (num - 1))

    @property
    def _signed(self):
        return -self.log_weights if self.reverse else self.log_weights


def annealed_importance_sampling(
    log_density: LogDensity,
    shape: tuple[int, ...],
    settings: AnnealingSettings = AnnealingSettings(),
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    callback: AnnealingCallback | None = None,
) -> LogZ:
    """
    Annealed importance sampling (Neal 2001, arXiv physics/9803008): chains go from the base to the target.

    The mean of the weights has expectation Z, so the estimate of log Z is below it on average (Jensen), and more than
    `c` above it with probability at most `exp(-c)` (Markov), whether or not the chains mix.

    Args:
        log_density: Function from x (N, ...) to the unnormalised log density (N,), in nats: for images
            `model.log_marginal`, whose Z is also that of the joint `p~(x, y)`.
        shape (`tuple`): (N, ...): N chains, and the shape of an image.
        settings (`AnnealingSettings`): The path and the transitions; more temperatures close the gap.
        device: Of the chains and of `generator`, the source of all randomness.
        callback: Called with b and the log weights (N,) so far after every temperature.

    Raises:
        ValueError: fewer than two chains, a `log_density` of another shape, or weights that are not numbers.
    """
    x = settings.draw_base(shape, device, generator)
    return _anneal(log_density, x, settings, generator, callback, reverse=False)


def reverse_annealed_importance_sampling(
    log_density: LogDensity,
    samples: torch.Tensor,
    settings: AnnealingSettings = AnnealingSettings(),
    *,
    generator: torch.Generator | None = None,
    callback: AnnealingCallback | None = None,
) -> LogZ:
    """
    The chains of [`annealed_importance_sampling`] run backwards, from samples (N, ...) of the target to the base.

    With exact samples, `E 1/w = 1/Z`: the estimate is on average above log Z, and more than `c` below it with
    probability at most `exp(-c)` (bidirectional Monte Carlo, Grosse et al. 2015, arXiv 1511.02543). With samples of
    another distribution q (data, chains that have not mixed) it bounds nothing: the mean of `log w` is then at least
    `log Z - KL(q || p)`. Chains that mix on their way forget q, so a gap to the forward estimate that closes as
    temperatures are added is evidence, though no proof, for both.

    Args, Raises: as in [`annealed_importance_sampling`]; samples outside the box of a uniform base are refused.
    """
    if settings.base == "uniform" and samples.abs().max() > 1:
        raise ValueError(
            "samples reach beyond [-1, 1], where the uniform base has no density: clamp them or use normal"
        )
    return _anneal(log_density, samples.detach(), settings, generator, callback, reverse=True)


def adapt_step_sizes(
    log_density: LogDensity,
    shape: tuple[int, ...],
    settings: AnnealingSettings = AnnealingSettings(),
    *,
    target_acceptance: float = 0.65,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    callback: AnnealingCallback | None = None,
) -> AnnealingSettings:
    """
    The settings with a step size for each temperature, found by a forward run whose chains are then forgotten.

    Adapting along the chains that are weighed would bias them; steps found beforehand leave both bounds exact. The
    logarithm of the step follows the acceptance minus its target (Andrieu and Thoms 2008, algorithm 4), fast at first.
    There are 500 moves at least, whatever the number of temperatures, and no step above 1 in the box.

    Args:
        target_acceptance (`float`): Best are .65 for HMC (Beskos et al. 2013), .57 for MALA (Roberts, Rosenthal 1998).
        callback: Called with b and the mean acceptance of the last move after every temperature.
    """
    if not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance is between 0 and 1, not {target_acceptance}")
    x = settings.draw_base(shape, device, generator)
    step_size, step_sizes = settings.step_sizes[0], []
    limit = 1.0 if settings.base == "uniform" else math.inf  # near the flat base any step is accepted
    repeats = math.ceil(500 / settings.num_temperatures)
    for temperature, beta in enumerate(settings.betas[1:]):
        for trial in range(repeats if temperature else repeats + 20):
            x, acceptance = settings.move(log_density, x, beta, step_size, generator)
            rate = 1.0 if temperature == 0 and trial < 20 else 0.2
            step_size = min(limit, step_size * math.exp(rate * (acceptance.item() - target_acceptance)))
        step_sizes.append(step_size)
        if callback is not None:
            callback(beta, acceptance)
    return replace(settings, step_size=tuple(step_sizes))


def log_p_of(log_density: LogDensity, x: torch.Tensor) -> torch.Tensor:
    """`log_density(x)` in float64. Raises `ValueError` where it does not give one number (N,) an image."""
    log_p = log_density(x)
    if log_p.shape != x.shape[:1]:
        raise ValueError(f"log_density gave shape {tuple(log_p.shape)} for {len(x)} images; ({len(x)},) expected")
    return log_p.double()


def _anneal(log_density, x, settings, generator, callback, reverse) -> LogZ:
    """Forward: weigh, then move, b rising. Reverse: the same steps in the opposite order."""
    if len(x) < 2:
        raise ValueError(f"two chains or more are needed for a standard error, not {len(x)}")
    betas, step_sizes, num_temperatures = settings.betas, settings.step_sizes, settings.num_temperatures
    log_weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    acceptance = torch.zeros(num_temperatures, device=x.device)
    for t in reversed(range(num_temperatures)) if reverse else range(num_temperatures):
        if not reverse:
            log_weights = log_weights + (betas[t + 1] - betas[t]) * _log_ratio(log_density, x, settings)
        x, acceptance[t] = settings.move(log_density, x, betas[t + 1], step_sizes[t], generator)
        if reverse:
            log_weights = log_weights + (betas[t + 1] - betas[t]) * _log_ratio(log_density, x, settings)
        if callback is not None:
            callback(betas[t if reverse else t + 1], log_weights)
    if log_weights.isnan().any() or (log_weights == math.inf).any():
        raise ValueError(
            "log weights are not finite: the density is not, or has no finite integral; try a uniform base"
        )
    return LogZ(log_weights, x, acceptance, reverse)


@torch.no_grad()
def _log_ratio(log_density, x, settings) -> torch.Tensor:
    return log_p_of(log_density, x) - settings.log_base(x).double()


def _reflect(x: torch.Tensor) -> torch.Tensor:
    """Fold R into [-1, 1] as light between two mirrors, the identity inside."""
    return 1 - (torch.remainder(x + 1, 4) - 2).abs()
