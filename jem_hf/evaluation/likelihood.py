"""
Log Z of an unnormalised density by annealed importance sampling, both ways, and with it bits per dimension.

    settings = adapt_step_sizes(model.log_marginal, (16, 3, 32, 32), AnnealingSettings(num_temperatures=2000))
    forward = annealed_importance_sampling(model.log_marginal, (64, 3, 32, 32), settings)
    reverse = reverse_annealed_importance_sampling(model.log_marginal, forward.samples, settings)  # see there
    bits_per_dimension(model.log_marginal, images, forward, reverse)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..models.chains_jem import LogDensity
from ..models.image_samplers_jem import hmc, mala
from ..training.buffer import dequantise

AnnealingCallback = Callable[[float, torch.Tensor], None]

TRANSITIONS = ("hmc", "mala")
SCHEDULES = ("sigmoidal", "linear")
BASES = ("uniform", "normal")


@dataclass(frozen=True)
class AnnealingSettings:
    """
    A path of densities `p_b ~ base^(1-b) p~^b` from a base that can be drawn from (b = 0) to the target p~ (b = 1).

    Args:
        base (`str`): `"uniform"` in [-1, 1]^D: log Z is the integral over this box, which chains never leave.
            `"normal"` in R^D: log Z is the integral over all of it. An energy that was trained on pixels of [-1, 1]
            alone need not have one, so compare such models over the box.
        base_std (`float`): Standard deviation of the normal base, whose mean is 0.
        num_temperatures (`int`): Values of b after 0, the last being 1.
        schedule (`str`): `"sigmoidal"`, `b_t = sigmoid(4 (2t/T - 1))` rescaled to [0, 1], with small steps near both
            ends (Wu et al. 2017, arXiv 1611.04273), or `"linear"`.
        transition (`str`): `"hmc"` or `"mala"`, each of which leaves p_b as it is.
        num_steps (`int`): Transitions at every temperature.
        num_leapfrog (`int`): Leapfrog steps of a transition by HMC.
        step_size (`float` or a tuple of `num_temperatures` floats): Of the transitions; [`adapt_step_sizes`] finds it.

    Raises:
        ValueError: a name that is not known or a number out of its range.
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
        for field, known in {"base": BASES, "schedule": SCHEDULES, "transition": TRANSITIONS}.items():
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
        if isinstance(self.step_size, (int, float)):
            return (self.step_size,) * self.num_temperatures
        return self.step_size

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

    def move(self, log_density: LogDensity, x: torch.Tensor, beta: float, step_size: float, generator=None):
        """
        Transitions that leave p_b as it is; returns x (N, ...) and their mean acceptance.

        In the box they see the density continued beyond its walls by reflection, and the result is folded back: the
        chain is reflected. Rejecting what falls outside is as exact, but of many pixels one is nearly always outside.
        """
        fold = _reflect if self.base == "uniform" else torch.nn.Identity()

        def tempered(x):
            x = fold(x)
            return (1 - beta) * self.log_base(x) + beta * log_density(x)

        kwargs = dict(num_steps=self.num_steps, step_size=step_size, generator=generator)
        if self.transition == "hmc":
            x, info = hmc(tempered, x, num_leapfrog=self.num_leapfrog, **kwargs)
        else:
            x, info = mala(tempered, x, **kwargs)
        return fold(x), info.acceptance.mean()


@dataclass(frozen=True)
class LogZ:
    """
    An estimate of `log Z`, in nats.

    Args:
        log_weights (`torch.Tensor` of shape (N,), float64): `log w`, what each chain alone estimates.
        samples (`torch.Tensor` of shape (N, ...)): Where the chains ended.
        acceptance (`torch.Tensor` of shape (num_temperatures,)): Mean acceptance, in order of rising b.
        reverse (`bool`): False: `E w = Z`, the estimate is the log of the mean weight and on average too low. True:
            `E 1/w = 1/Z`, the estimate is the log of the harmonic mean and on average too high.
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
        """
        Standard error of `estimate` by the delta method: that of the mean weight over the mean weight.

        It is at most 1, and too small where the effective sample size is a few chains or chains miss a mode.
        """
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
    `c` above it with probability at most `exp(-c)` (Markov): a stochastic lower bound, whether or not the chains mix.
    More temperatures and more chains close the gap.

    Args:
        log_density: Function from x (N, ...) to the unnormalised log density (N,), in nats: for images
            `model.log_marginal`, whose Z is also that of the joint `p~(x, y)`.
        shape: (N, ...): N chains, and the shape of an image.
        settings: The path and the transitions.
        device: Of the chains; `generator` must be on it too.
        generator: Source of all randomness.
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
    The chains of [`annealed_importance_sampling`] run backwards, from samples of the target to the base.

    With exact samples, `E 1/w = 1/Z`: the estimate is a stochastic upper bound on log Z, on average above it and more
    than `c` below it with probability at most `exp(-c)` (bidirectional Monte Carlo, Grosse et al. 2015, arXiv
    1511.02543). Its weights have the heavier tails: give it many temperatures.

    With samples of another distribution q (data, chains that have not mixed) it bounds nothing: the mean of `log w`
    is then at least `log Z - KL(q || p)`, and the estimate may be lower still. Chains that mix on their way forget q,
    so a gap to the forward estimate that closes as temperatures are added is evidence, though no proof, for both.

    What holds for any image x is that `p~(x) / w` estimates the density of the forward chains' ends at x without bias
    (Burda et al. 2015, arXiv 1412.8566): the mean of `log p~(x) - log w` over data is a stochastic lower bound on
    their log-likelihood.

    Args:
        log_density: As in [`annealed_importance_sampling`].
        samples: (N, ...), of the target, one a chain.
        settings: The path and the transitions, for a bracket those of the forward run.
        generator: Source of all randomness.
        callback: Called with b and the log weights (N,) so far after every temperature.

    Raises:
        ValueError: as in [`annealed_importance_sampling`]; samples outside the box of a uniform base.
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
) -> AnnealingSettings:
    """
    The settings with a step size for each temperature, found by a forward run whose chains are then forgotten.

    Adapting along the chains that are weighed would bias them; steps found beforehand leave both bounds exact. The
    logarithm of the step follows the acceptance minus its target (Andrieu and Thoms 2008, algorithm 4), fast at first.
    There are 500 moves at least, whatever the number of temperatures, and no step above 1 in the box.

    Args:
        log_density, shape, device, generator: As in [`annealed_importance_sampling`]; few chains suffice.
        settings: Their step size is the first guess.
        target_acceptance: 0.65 is best for HMC (Beskos et al. 2013), 0.57 for MALA (Roberts and Rosenthal 1998).

    Raises:
        ValueError: a target that is not between 0 and 1.
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
    return replace(settings, step_size=tuple(step_sizes))


@dataclass(frozen=True)
class BitsPerDimension:
    """
    Bits per dimension of images.

    Args:
        estimate (`float`): Mean over the images, with the mean of the estimates of log Z.
        low (`float`), high (`float`): The same with the ends of the 95% intervals of log Z: of the lowest estimate and
            of the highest. They say how well Z is known for these images, not how much other images would differ.
        per_image (`torch.Tensor` of shape (N,), float64): What `estimate` is the mean of.
    """

    estimate: float
    low: float
    high: float
    per_image: torch.Tensor


@torch.no_grad()
def bits_per_dimension(
    log_density: LogDensity,
    images: torch.Tensor,
    *log_z: LogZ,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> BitsPerDimension:
    """
    What 8-bit images cost under a density of pixels in [-1, 1], an upper bound (Theis et al. 2016, arXiv 1511.01844).

    An image i is the cell of all `x = 2 (i + u) / 256 - 1`, u in [0, 1]^D: D sides of 1/128. Its probability is the
    integral of the density p over the cell, `P(i) = 128^-D E_u p(x)`, so by Jensen's inequality

        -log2 P(i) / D  <=  7 + (log Z - E_u log p~(x)) / (D log 2),

    with one draw of u an image here. The uniform density of the box, `log p = -D log 2`, has 8 bits, as it should.

    Args:
        log_density: Function from x (B, C, H, W) to the unnormalised log density (B,), in nats.
        images: uint8 (N, C, H, W).
        log_z: One or more [`LogZ`] of the same density: a forward and a reverse one bracket it.
        batch_size: Images at a time.
        generator: Source of u.

    Raises:
        ValueError: images that are not uint8, or no `log_z`.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are uint8, not {images.dtype}")
    if not log_z:
        raise ValueError("give one LogZ or more: forward, reverse, or both")
    batches = (dequantise(batch, generator) for batch in images.split(batch_size))
    log_p = torch.cat([_evaluate(log_density, x) for x in batches])
    nats_per_bit = images[0].numel() * math.log(2)

    def bits(log_z):
        return 7 + (log_z - log_p) / nats_per_bit

    per_image = bits(sum(z.estimate for z in log_z) / len(log_z))
    low = min(z.estimate - 1.96 * z.standard_error for z in log_z)
    high = max(z.estimate + 1.96 * z.standard_error for z in log_z)
    return BitsPerDimension(per_image.mean().item(), bits(low).mean().item(), bits(high).mean().item(), per_image)


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
    return _evaluate(log_density, x) - settings.log_base(x).double()


def _evaluate(log_density, x) -> torch.Tensor:
    log_p = log_density(x)
    if log_p.shape != x.shape[:1]:
        raise ValueError(f"log_density gave shape {tuple(log_p.shape)} for {len(x)} images; ({len(x)},) expected")
    return log_p.double()


def _reflect(x: torch.Tensor) -> torch.Tensor:
    """Fold R into [-1, 1] as light between two mirrors, the identity inside."""
    return 1 - (torch.remainder(x + 1, 4) - 2).abs()
