"""
Samplers of images: chains that see a log density, and no model class.

Each is one function of one shape, `sampler(log_density, x, *, num_steps, step_size, ...) -> (x, ChainInfo)`, its loop
included, and `IMAGE_SAMPLERS` has them by name.

`log_density` maps x (B, ...) to unnormalised log densities (B,), one chain a row; `p^(1/temperature)` is sampled. A
step size or a temperature is a number or a schedule, a function of the progress from 0 (first step) to 1 (last; a
single one is at .5). A density that changes along the chain, as one whose labels are drawn anew, has a method
`renew(step, temperature)`, which is called before each step and says whether it is another one from now on.
"""

from collections.abc import Callable
from functools import partial

import torch

from .ancestral_jem import ancestral
from .chains_jem import (
    Bounds,
    Chain,
    ChainInfo,
    LogDensity,
    Number,
    choose,
    evaluate,
    metropolis,
    noise_of_start,
    normal_like,
    outside,
    renew,
    sum_of_squares,
)  # fmt: skip
from .label_samplers_jem import draw_categorical, flip, one_hot, possible_flips, start_labels


def langevin(
    log_density: LogDensity, x: torch.Tensor, *, num_steps: int, step_size: Number, noise_scale: Number | None = None,
    temperature: Number = 1.0, bounds: Bounds | None = None, tolerance: float = 0.0,
    generator: torch.Generator | None = None, callback: Callable | None = None, project: Callable | None = None,
    keep_graph: bool = False,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Langevin steps as energy-based models use them: `x <- x + step_size * gradient + noise_scale * noise`.

    With the noise that belongs to the steps, `sqrt(2 * step_size)`, it is unadjusted Langevin (Roberts and Tweedie
    1996), biased by the step size: for N(0, 1) it samples N(0, 1 / (1 - step_size / 2)). The two sizes need not belong
    together (Nijkamp et al. 2019, arXiv 1904.09770); with less noise the chains sample a sharper density.

    Args:
        log_density, x, num_steps, step_size, temperature: See the top of this file.
        noise_scale (`float`, *optional*): Standard deviation of the noise at temperature 1, a number or a schedule; it
            is multiplied by `sqrt(temperature)`. By default `sqrt(2 * step_size)`.
        bounds (`tuple[float, float]`, *optional*): Pixels are clamped to them after each step.
        tolerance, callback: See [`Chain`].
        generator (`torch.Generator`, *optional*): Source of all randomness, on the device of x.
        project (*optional*): Called with the images after each step and its number; what it returns goes on.
        keep_graph (`bool`, defaults to False): The last step can be differentiated by the parameters of the density,
            as improved contrastive divergence does (Du et al. 2021, eq. 9).

    Returns:
        The chains after the last step, detached, in the dtype of x, and the [`ChainInfo`] of all steps.
    """
    x, chain = x.detach(), Chain(num_steps, callback, tolerance)
    for step in chain:
        size, heat = chain.at(step_size), chain.at(temperature)
        renew(log_density, step, heat)
        x, value, gradient = evaluate(log_density, x, keep_graph and step == num_steps - 1)
        if chain.ends(value, gradient, x):
            break
        x = torch.add(x, gradient, alpha=size)
        noise = ((2 * size) ** 0.5 if noise_scale is None else chain.at(noise_scale)) * heat**0.5
        if noise:
            x.add_(normal_like(x, generator), alpha=noise)
        if bounds is not None:
            x.clamp_(*bounds)
        if project is not None:
            x = project(x, step)
        chain.moved(torch.ones_like(value))
    return x, chain.info


def flow(
    log_density: LogDensity, x: torch.Tensor, *, num_steps: int, step_size: Number, momentum: float = 0.0,
    temperature: Number = 0.0, bounds: Bounds | None = None, tolerance: float = 0.0,
    generator: torch.Generator | None = None, callback: Callable | None = None, project: Callable | None = None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Gradient flow, for energies trained by Equilibrium Matching (Wang and Du 2025, arXiv 2510.02300): ascent without
    noise, or from a `temperature` down to 0 with it, so that a chain leaves blends of images (compare the two regimes
    of Energy Matching, Balcerak et al. 2025, arXiv 2504.10612).

    With `momentum` m in [0, 1) it is Nesterov's accelerated gradient: `y = x + step_size * grad(x)`, then
    `x <- y + m * (y - y before)`; the chain is that of x, where the gradients are taken. A step at temperature T adds
    `sqrt(2 * step_size * T)` times normal noise, drawn from `generator`, or without one from the start of each chain:
    the same start ends the same, whatever else is in the batch. Labels are drawn as they are, at 1. `tolerance` ends
    the chain where it has arrived. Other arguments and returns as [`langevin`].
    """
    x, chain, velocity = x.detach(), Chain(num_steps, callback, tolerance), torch.zeros_like(x)
    draw = partial(normal_like, generator=generator) if generator else noise_of_start(x)
    for step in chain:
        size, heat = chain.at(step_size), chain.at(temperature)
        renew(log_density, step)
        x, value, gradient = evaluate(log_density, x)
        if chain.ends(value, gradient, x):
            break
        x = torch.add(x, gradient, alpha=size)
        if momentum:
            velocity = momentum * velocity + size * gradient
            x = x + momentum * velocity
        if heat:
            x = torch.add(x, draw(x), alpha=(2 * size * heat) ** 0.5)
        if bounds is not None:
            x = x.clamp(*bounds)
        if project is not None:
            x = project(x, step)
        chain.moved(torch.ones_like(value))
    return x, chain.info


def hmc(
    log_density: LogDensity, x: torch.Tensor, *, num_steps: int, step_size: Number, num_leapfrog: int = 10,
    temperature: Number = 1.0, bounds: Bounds | None = None, tolerance: float = 0.0,
    generator: torch.Generator | None = None, callback: Callable | None = None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Hamiltonian Monte Carlo with unit mass (Duane et al. 1987; Neal 2011, section 3), exact in float32 and float64.

    A density that is renewed before a step costs one evaluation more in that step.

    Args:
        num_steps (`int`): Trajectories.
        step_size (`float`): Of one leapfrog step, a number or a schedule.
        num_leapfrog (`int`, defaults to 10): Leapfrog steps, and gradients, a trajectory.
        bounds (`tuple[float, float]`, *optional*): The density is zero outside: trajectories that end there are
            rejected.

    Other arguments and returns as [`langevin`].
    """
    x, chain = x.detach(), Chain(num_steps, callback, tolerance)
    for step in chain:
        size, heat = chain.at(step_size), chain.at(temperature)
        if renew(log_density, step, heat) or step == 0:
            state = evaluate(log_density, x)
        if chain.ends(state.log_density, state.gradient, x):
            break
        end, momentum = state, heat**0.5 * normal_like(x, generator)
        log_ratio = state.log_density - 0.5 * sum_of_squares(momentum)
        for _ in range(num_leapfrog):
            momentum = momentum + 0.5 * size * end.gradient
            end = evaluate(log_density, end.x + size * momentum)
            momentum = momentum + 0.5 * size * end.gradient
        log_ratio = (end.log_density - 0.5 * sum_of_squares(momentum) - log_ratio) / heat
        accepted, acceptance = metropolis(log_ratio.masked_fill(outside(end.x, bounds), -torch.inf), generator)
        state = choose(accepted, end, state)
        x = state.x
        chain.moved(acceptance)
    return x, chain.info


def mala(
    log_density: LogDensity, x: torch.Tensor, *, num_steps: int, step_size: Number, temperature: Number = 1.0,
    bounds: Bounds | None = None, tolerance: float = 0.0, generator: torch.Generator | None = None,
    callback: Callable | None = None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Metropolis-adjusted Langevin (Roberts and Tweedie 1996): [`hmc`] with one leapfrog step of `sqrt(2 * step_size)`
    (Neal 2011, section 5.2).
    """

    def leapfrog_size(progress: float) -> float:
        return (2 * (step_size(progress) if callable(step_size) else step_size)) ** 0.5

    return hmc(
        log_density, x, num_steps=num_steps, step_size=leapfrog_size, num_leapfrog=1, temperature=temperature,
        bounds=bounds, tolerance=tolerance, generator=generator, callback=callback,
    )  # fmt: skip


def mixed_hmc(
    log_joint: LogDensity, x: torch.Tensor, labels: torch.Tensor, num_values: list[int], *, num_steps: int,
    step_size: Number, num_leapfrog: int = 10, num_flips: int = 1, temperature: Number = 1.0,
    bounds: Bounds | None = None, tolerance: float = 0.0, start: torch.Tensor | None = None,
    generator: torch.Generator | None = None, callback: Callable | None = None,
) -> tuple[torch.Tensor, torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Mixed HMC with Laplace momentum (Zhou 2020, arXiv 1909.04852, algorithm 1): images and labels in tandem, exact.

    A trajectory carries a Gaussian momentum for the images and an exponential kinetic energy k for each label. Halfway
    through each leapfrog step, `num_flips` flips of a free label are proposed, each uniformly among all; one that
    raises the energy by less than the k of its label is made, and k pays for it (or gains). Both the leapfrog step and
    the flips conserve volume and are as probable backwards as forwards: the flips are drawn alike and independently at
    fixed times in every chain, so an order and its reverse are equally probable, and a flip that cannot be paid for
    cannot be on the way back either. A Metropolis test of the total energy, kinetic energies included, therefore
    leaves `p(x, y)` stationary; it rejects for the leapfrog's error only.

    Args:
        log_joint: From images (B, ...) and one-hot labels (B, K, V), in the dtype of x, to unnormalised log
            densities (B,), differentiable by the images.
        labels, num_values, start: As of [`gibbs`](label_samplers_jem.py).
        num_flips (`int`, defaults to 1): Proposals a leapfrog step, which cost `1 + num_flips` evaluations without a
            gradient.

    Other arguments as [`hmc`]. Returns images (B, ...), labels (B, K) and the [`ChainInfo`] of all steps.
    """
    width, chain = max(num_values), Chain(num_steps, callback, tolerance)

    @torch.no_grad()
    def flip_labels(x, current, kinetic):
        """Labels after `num_flips` proposals at x, and what is left of their kinetic energies (B, K)."""
        value = log_joint(x, current)
        for _ in range(num_flips):
            possible = possible_flips(labels, current, num_values)
            index = draw_categorical(possible.to(x.dtype).log().flatten(1), generator)[:, None]
            flipped = flip(current, index)
            flipped_value = log_joint(x, flipped)
            left = kinetic.gather(1, index // width) + (flipped_value - value)[:, None].to(kinetic.dtype)
            paid = left > 0
            kinetic = torch.where(paid, kinetic.scatter(1, index // width, left), kinetic)
            current = torch.where(paid[..., None], flipped, current)
            value = torch.where(paid[:, 0], flipped_value, value)
        return current, kinetic

    encoded = one_hot(start_labels(labels, num_values, start, generator), num_values, x.dtype)
    state = evaluate(lambda x: log_joint(x, encoded), x)
    for _ in chain:
        size, heat = chain.at(step_size), chain.at(temperature)
        if chain.ends(state.log_density, state.gradient, state.x, encoded.argmax(-1)):
            break
        kinetic = heat * torch.empty_like(encoded[..., 0]).exponential_(generator=generator)
        end, flipped, momentum = state, encoded, heat**0.5 * normal_like(state.x, generator)
        log_ratio = state.log_density - 0.5 * sum_of_squares(momentum) - kinetic.sum(1)
        for _ in range(num_leapfrog):
            momentum = momentum + 0.5 * size * end.gradient
            x = end.x + 0.5 * size * momentum
            flipped, kinetic = flip_labels(x, flipped, kinetic)
            end = evaluate(lambda x, flipped=flipped: log_joint(x, flipped), x + 0.5 * size * momentum)
            momentum = momentum + 0.5 * size * end.gradient
        log_ratio = (end.log_density - 0.5 * sum_of_squares(momentum) - kinetic.sum(1) - log_ratio) / heat
        accepted, acceptance = metropolis(log_ratio.masked_fill(outside(end.x, bounds), -torch.inf), generator)
        state, encoded = choose(accepted, end, state), torch.where(accepted[:, None, None], flipped, encoded)
        chain.moved(acceptance)
    return state.x, encoded.argmax(-1), chain.info


IMAGE_SAMPLERS: dict[str, Callable]
IMAGE_SAMPLERS = {
    "flow": flow,
    "ancestral": ancestral,
    "langevin": langevin,
    "unadjusted_langevin": langevin,
    "mala": mala,
    "hmc": hmc,
}
