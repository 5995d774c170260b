"""Bits per dimension of images under a model, whose log Z is estimated by annealed importance sampling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from ..models.image_samplers_jem import LogDensity, hmc
from ..models.modeling_jem import JemModel
from ..training.augmentation import dequantise
from .judges import no_progress

AnnealingCallback = Callable[[float, torch.Tensor], None]
NUM_LEAPFROG = 5
TARGET_ACCEPTANCE = 0.65  # best for HMC in many dimensions (Beskos et al. 2013)


@dataclass(frozen=True)
class LogZ:
    """
    An estimate of `log Z`, in nats.

    Args:
        log_weights (`torch.Tensor` of shape (N,), float64): `log w`, what each chain alone estimates.
        samples (`torch.Tensor` of shape (N, ...)): Where the chains ended.
        acceptance (`torch.Tensor` of shape (T,)): Mean acceptance, in order of rising b.
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


def inverse_temperatures(num: int) -> list[float]:
    """
    The `num + 1` values of b, rising from 0 to 1, in small steps near both ends.

    They are `sigmoid(4 (2t/T - 1))` rescaled (Wu et al. 2017, arXiv 1611.04273).
    """
    betas = torch.sigmoid(8 * torch.linspace(0, 1, num + 1, dtype=torch.float64) - 4)
    return ((betas - betas[0]) / (betas[-1] - betas[0])).tolist()


def uniform_images(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draws from the density at b = 0, on the device of the generator."""
    return torch.empty(shape, device=generator.device).uniform_(-1, 1, generator=generator)


def annealed_importance_sampling(
    log_density: LogDensity,
    start: torch.Tensor,
    step_sizes: Sequence[float],
    generator: torch.Generator,
    *,
    reverse: bool = False,
    callback: AnnealingCallback = no_progress,
) -> LogZ:
    """
    Annealed importance sampling (Neal 2001, arXiv physics/9803008): chains go from uniform noise to the target p~.

    They pass the densities `p_b ~ uniform^(1-b) p~^b` in the box [-1, 1]^D, with one trajectory of HMC at each b. The
    mean of the weights has expectation Z, so the estimate of log Z is below it on average (Jensen), and more than `c`
    above it with probability at most `exp(-c)` (Markov), whether or not the chains mix.

    In reverse they go from samples of the target to noise. If these are exact, `E 1/w = 1/Z`: the estimate is on
    average above log Z, and more than `c` below it with probability at most `exp(-c)` (bidirectional Monte Carlo,
    Grosse et al. 2015, arXiv 1511.02543). With samples of another distribution q (data, chains that have not mixed) it
    bounds nothing: the mean of `log w` is then at least `log Z - KL(q || p)`. Chains that mix on their way forget q,
    so a gap to the forward estimate that closes as temperatures are added is evidence, though no proof, for both.

    Args:
        log_density: Function from x (N, ...) to the unnormalised log density (N,), in nats: for images
            `model.log_marginal`, whose Z is also that of the joint `p~(x, y)`.
        start (`torch.Tensor` of shape (N, ...)): In [-1, 1]: [`uniform_images`], or in reverse samples of the target.
        step_sizes (`Sequence[float]`): T of them, one for each b above 0, see [`adapt_step_sizes`]; more temperatures
            bring the two estimates together.
        generator: The source of all randomness.
        callback: Called with b and the log weights (N,) so far after every temperature.

    Raises:
        ValueError: fewer than two chains, images outside the box, a `log_density` of another shape, or weights that
            are not numbers.
    """
    if len(start) < 2:
        raise ValueError(f"two chains or more are needed for a standard error, not {len(start)}")
    if start.abs().max() > 1:
        raise ValueError("chains start beyond [-1, 1], where the uniform density is zero: clamp the images")
    num_temperatures = len(step_sizes)
    betas, x = inverse_temperatures(num_temperatures), start.detach()
    log_weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    acceptance = torch.zeros(num_temperatures, device=x.device)
    for t in reversed(range(num_temperatures)) if reverse else range(num_temperatures):
        if reverse:  # the same steps in the opposite order
            x, acceptance[t] = reflected_hmc(log_density, x, betas[t + 1], step_sizes[t], generator)
        with torch.no_grad():
            log_ratio = _log_p(log_density, x) - _log_uniform(x).double()
        log_weights = log_weights + (betas[t + 1] - betas[t]) * log_ratio
        if not reverse:
            x, acceptance[t] = reflected_hmc(log_density, x, betas[t + 1], step_sizes[t], generator)
        callback(betas[t if reverse else t + 1], log_weights)
    if log_weights.isnan().any() or (log_weights == math.inf).any():
        raise ValueError("log weights are not finite: the density is not")
    return LogZ(log_weights, x, acceptance, reverse)


def adapt_step_sizes(
    log_density: LogDensity,
    shape: tuple[int, ...],
    num_temperatures: int,
    generator: torch.Generator,
    callback: AnnealingCallback = no_progress,
) -> list[float]:
    """
    A step size for each temperature, found by chains (N, ...) from noise to the target which are then forgotten.

    Adapting along the chains that are weighed would bias them; steps found beforehand leave both bounds exact. The
    logarithm of the step follows the acceptance minus its target (Andrieu and Thoms 2008, algorithm 4), fast at first.
    There are 500 moves at least, whatever the number of temperatures.

    `callback` is called with b and the mean acceptance of the last move after every temperature.
    """
    if num_temperatures < 1:
        raise ValueError(f"num_temperatures is 1 or more, not {num_temperatures}")
    x = uniform_images(shape, generator)
    step_size, step_sizes = 0.1, []
    repeats = math.ceil(500 / num_temperatures)
    for temperature, beta in enumerate(inverse_temperatures(num_temperatures)[1:]):
        for trial in range(repeats if temperature else repeats + 20):
            x, acceptance = reflected_hmc(log_density, x, beta, step_size, generator)
            rate = 1.0 if temperature == 0 and trial < 20 else 0.2
            step_size *= math.exp(rate * (acceptance.item() - TARGET_ACCEPTANCE))
            step_size = min(1.0, step_size)  # near flat noise any step is accepted
        step_sizes.append(step_size)
        callback(beta, acceptance)
    return step_sizes


def reflected_hmc(
    log_density: LogDensity, x: torch.Tensor, beta: float, step_size: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A trajectory of HMC that leaves p_b as it is: x (N, ...) and the mean acceptance.

    It is reflected by the walls of the box. Rejecting what falls outside is as exact, but of many pixels one is nearly
    always outside.
    """

    def fold(x):  # as light between two mirrors, the identity in the box
        return 1 - (torch.remainder(x + 1, 4) - 2).abs()

    def tempered(x):
        x = fold(x)
        return (1 - beta) * _log_uniform(x) + beta * log_density(x)

    x, info = hmc(tempered, x, num_steps=1, step_size=step_size, num_leapfrog=NUM_LEAPFROG, generator=generator)
    return fold(x), info.acceptance.mean()


def _log_uniform(x):
    return x.new_full(x.shape[:1], -x[0].numel() * math.log(2))


def _log_p(log_density, x):
    log_p = log_density(x)
    if log_p.shape != x.shape[:1]:
        raise ValueError(f"log_density gave shape {tuple(log_p.shape)} for {len(x)} images; ({len(x)},) expected")
    return log_p.double()


@torch.no_grad()
def bits_per_dimension(
    log_density: LogDensity,
    images: torch.Tensor,
    *log_z: LogZ,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """
    What 8-bit images cost under a density of pixels in [-1, 1], an upper bound (Theis et al. 2016, arXiv 1511.01844).

    An image i is the cell of all `x = 2 (i + u) / 256 - 1`, u in [0, 1]^D: D sides of 1/128. Its probability is the
    integral of the density p over the cell, `P(i) = 128^-D E_u p(x)`, so by Jensen's inequality

        -log2 P(i) / D  <=  7 + (log Z - E_u log p~(x)) / (D log 2),

    with one draw of u an image here. The uniform density of the box, `log p = -D log 2`, has 8 bits, as it should.

    Args:
        log_density: As in [`annealed_importance_sampling`].
        images (`torch.Tensor` of shape (N, C, H, W)): uint8.
        log_z (`LogZ`): One or more of the same density: a forward and a reverse one bracket it.

    Returns:
        "bits_per_dimension": the mean over the images, with the mean of the estimates of log Z; "low" and "high": the
        same with the ends of the 95% intervals of log Z, of its lowest and its highest estimate. They say how well Z
        is known, not how much other images would differ.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are uint8, not {images.dtype}")
    if not log_z:
        raise ValueError("give one LogZ or more: forward, reverse, or both")
    batches = (dequantise(batch, generator) for batch in images.split(batch_size))
    log_p = torch.cat([_log_p(log_density, x) for x in batches])
    nats_per_bit = images[0].numel() * math.log(2)
    values_of_log_z = {
        "bits_per_dimension": sum(z.estimate for z in log_z) / len(log_z),
        "low": min(z.estimate - 1.96 * z.standard_error for z in log_z),
        "high": max(z.estimate + 1.96 * z.standard_error for z in log_z),
    }
    return {name: (7 + (value - log_p) / nats_per_bit).mean().item() for name, value in values_of_log_z.items()}


def estimate_likelihood(
    model: JemModel,
    images: torch.Tensor,
    num_chains: int = 16,
    num_temperatures: int = 200,
    progress: Callable[[int, int], None] = no_progress,
) -> dict[str, float]:
    """
    Bits per dimension of images under p(x) over the box [-1, 1]^D, by chains from uniform noise to the model and back.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W)): uint8.
        num_chains (`int`): Each way; two or more.
        num_temperatures (`int`): More bring the two estimates of log Z together.
        progress: Called with the steps done and the steps in all.

    Returns:
        The numbers of [`bits_per_dimension`]; "log_z_forward" and "log_z_reverse" in nats, the smaller
        "effective_sample_size" of the two, "num_images", "num_chains" and "num_temperatures".

    Raises:
        ValueError: an energy of codes, which has no density of pixels.
    """
    if model.autoencoder is not None:
        raise ValueError("the energy is one of codes, and bits per dimension are of pixels: leave them out")
    done = count(1)

    def step(*_):
        progress(next(done), 3 * num_temperatures)

    generator = torch.Generator(model.device).manual_seed(0)
    log_density, images = model.log_marginal, images.to(model.device)
    shape = images.shape[1:]
    few = (min(4, num_chains), *shape)  # which suffice to find step sizes
    steps = adapt_step_sizes(log_density, few, num_temperatures, generator, step)
    noise = uniform_images((num_chains, *shape), generator)
    forward = annealed_importance_sampling(log_density, noise, steps, generator, callback=step)
    reverse = annealed_importance_sampling(log_density, forward.samples, steps, generator, reverse=True, callback=step)
    return {
        **bits_per_dimension(log_density, images, forward, reverse, generator=generator),
        "log_z_forward": forward.estimate,
        "log_z_reverse": reverse.estimate,
        "effective_sample_size": min(forward.effective_sample_size, reverse.effective_sample_size),
        "num_images": len(images),
        "num_chains": num_chains,
        "num_temperatures": num_temperatures,
    }
