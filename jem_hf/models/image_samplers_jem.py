"""
Samplers of images: chains that see a log density, and no model class.

Each is one function of one shape, `sampler(log_density, x, *, num_steps, step_size, ...) -> (x, ChainInfo)`, and
`IMAGE_SAMPLERS` has them by name. They share one loop, `run_kernel`: a sampler is the kernel that it hands over.

`log_density` maps x (B, ...) to unnormalised log densities (B,), one chain a row; `p^(1/temperature)` is sampled. A
step size or a temperature is a number or a schedule, a function of the progress from 0 (first step) to 1 (last; a
single one is at .5).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

LogDensity = Callable[..., torch.Tensor]
Schedule = Callable[[float], float]


def linear(start: float, end: float) -> Schedule:
    """From `start` to `end` by equal differences."""
    return lambda progress: start + (end - start) * progress


def geometric(start: float, end: float) -> Schedule:
    """From `start` to `end`, both positive, by equal ratios."""
    return lambda progress: start * (end / start) ** progress


def cosine(start: float, end: float) -> Schedule:
    """From `start` to `end` along half a cosine, flat at both ends."""
    return lambda progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


SCHEDULES = {"linear": linear, "geometric": geometric, "cosine": cosine}


def progress_of(step: int, num_steps: int) -> float:
    """From 0 in the first step to 1 in the last; half of a single one."""
    return step / (num_steps - 1) if num_steps > 1 else 0.5


def scheduled(value: float | Schedule, progress: float) -> float:
    """What a number or a schedule is at a progress."""
    return value(progress) if callable(value) else value


class ChainInfo(NamedTuple):
    """
    What the chains looked like: (B,) each before a step, (num_steps, B) each as returned for all steps done.

    Args:
        step (`int`): Counted from 0; returned as (num_steps,).
        energy: `-log density`, at temperature 1.
        grad_norm: Euclidean norm of the gradient of the log density; None where a sampler needs no gradient.
        saturated: Share of the pixels at or beyond -1 or 1; None where there are no images.
        acceptance: Probability of accepting the move, 1 for samplers that do not reject. A callback, called before
            the move, sees that of the move before; what is returned belongs to the step's own move.
    """

    step: int | torch.Tensor
    energy: torch.Tensor
    grad_norm: torch.Tensor | None
    saturated: torch.Tensor | None
    acceptance: torch.Tensor


class ChainState(NamedTuple):
    """
    Where the chains are, in images, labels or both, with the log density (B,) there.

    The gradient is by the images, or by the one-hot labels (B, K, V) where there are no images.
    """

    x: torch.Tensor | None = None
    one_hot: torch.Tensor | None = None
    log_density: torch.Tensor | None = None
    gradient: torch.Tensor | None = None


def evaluate(log_density: LogDensity, x=None, one_hot=None) -> ChainState:
    """The state at x, at one_hot or at both, in one evaluation of the log density and its gradient."""
    place = [each for each in (x, one_hot) if each is not None]
    place[0] = place[0].detach().requires_grad_(True)
    with torch.enable_grad():
        value = log_density(*place)
        (gradient,) = torch.autograd.grad(value.sum(), place[0])
    return ChainState(x, one_hot, value.detach(), gradient)


def run_kernel(
    log_density: LogDensity, state: ChainState, kernel, schedules, *, num_steps, tolerance=0.0, callback=None
):
    """
    The loop that all samplers share.

    Args:
        state: Start of the chains, evaluated or not.
        kernel: From a state and the present value of each schedule to the next state, evaluated or not, and the
            probability (B,) that the move was accepted with.
        schedules: Numbers or functions of the progress.
        num_steps (`int`): Steps at most, 1 or more.
        tolerance (`float`): The chains stop once the root mean square of every chain's gradient is below it. 0 never
            stops, and never waits for the device.
        callback: Called with the images, the labels (what there is of them) and [`ChainInfo`] before each step; True
            stops the chains.

    Returns:
        The last [`ChainState`] and the [`ChainInfo`] of the steps done.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is 1 or more, not {num_steps}")
    infos, num_moves, acceptance = [], 0, None
    for step in range(num_steps):
        if state.log_density is None:
            state = evaluate(log_density, state.x, state.one_hot)
        infos.append(_describe(state, step, acceptance))
        if callback is not None and callback(*_place(state), infos[-1]):
            break
        if tolerance and infos[-1].grad_norm.max() < tolerance * state.gradient[0].numel() ** 0.5:
            break
        progress = progress_of(step, num_steps)
        state, acceptance = kernel(state, *(scheduled(value, progress) for value in schedules))
        infos[-1] = infos[-1]._replace(acceptance=acceptance)
        num_moves += 1
    _, *fields = zip(*infos)
    stacked = (None if field[0] is None else torch.stack(field)[:num_moves] for field in fields)
    return state, ChainInfo(torch.arange(num_moves), *stacked)


def _place(state: ChainState) -> list[torch.Tensor]:
    images = [] if state.x is None else [state.x]
    return images if state.one_hot is None else [*images, state.one_hot.argmax(-1)]


def _describe(state: ChainState, step: int, acceptance: torch.Tensor | None) -> ChainInfo:
    return ChainInfo(
        step=step,
        energy=-state.log_density,
        grad_norm=None if state.gradient is None else _sum_of_squares(state.gradient).sqrt(),
        saturated=None if state.x is None else (state.x.abs() >= 1).flatten(1).float().mean(1),
        acceptance=torch.ones_like(state.log_density) if acceptance is None else acceptance,
    )


def _sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    """(B,) of x (B, ...), in float32 or better."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).square().sum(1)


def _normal_like(x: torch.Tensor, generator) -> torch.Tensor:
    return torch.empty_like(x).normal_(generator=generator)


def metropolis(old: ChainState, new: ChainState, log_ratio: torch.Tensor, generator, bounds=None):
    """
    Each chain moves to `new` with probability `min(1, exp(log_ratio))` and stays at `old` else.

    The density is zero where a pixel is out of `bounds`. A ratio that is not a number counts as zero.

    Returns:
        The state and the probability of acceptance (B,).
    """
    acceptance = log_ratio.exp().nan_to_num(nan=0.0).clamp(max=1)
    if bounds is not None:
        acceptance = acceptance * ((new.x >= bounds[0]) & (new.x <= bounds[1])).flatten(1).all(1)
    accepted = torch.empty_like(acceptance).uniform_(generator=generator) < acceptance
    pairs = zip(old, new)
    return ChainState(*(a if a is b else torch.where(_like(accepted, a), b, a) for a, b in pairs)), acceptance


def _like(chains: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One value a chain (B,), in as many dimensions as x."""
    return chains.view(-1, *[1] * (x.ndim - 1))


def trajectory(log_density: LogDensity, state, *, step_size, num_leapfrog, temperature, generator, halfway=None):
    """
    Hamiltonian dynamics of unit mass from a random momentum, by the leapfrog method (Neal 2011, section 2.3).

    `halfway` maps the images amid a step and the one-hot labels to other labels; None leaves them.

    Returns:
        The state after `num_leapfrog` steps, one evaluation each, and the total energy lost on the way (B,): of the
        state and the momentum.
    """
    momentum = temperature**0.5 * _normal_like(state.x, generator)
    energy = 0.5 * _sum_of_squares(momentum) - state.log_density
    for _ in range(num_leapfrog):
        momentum = momentum + 0.5 * step_size * state.gradient
        x, one_hot = state.x + 0.5 * step_size * momentum, state.one_hot
        if halfway is not None:
            one_hot = halfway(x, one_hot)
        state = evaluate(log_density, x + 0.5 * step_size * momentum, one_hot)
        momentum = momentum + 0.5 * step_size * state.gradient
    return state, energy - 0.5 * _sum_of_squares(momentum) + state.log_density


def langevin(
    log_density, x, *, num_steps, step_size, noise_scale, temperature=1.0, bounds=None, tolerance=0.0, generator=None,
    callback=None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Langevin steps as energy-based models use them: `x <- x + step_size * gradient + noise_scale * noise`.

    The two sizes need not belong together (Nijkamp et al. 2019, arXiv 1904.09770); with less noise than
    `sqrt(2 * step_size)` the chains sample a sharper density. The noise is multiplied by `sqrt(temperature)`.

    Args:
        log_density, x, num_steps, step_size, temperature: See the top of this file.
        noise_scale: Standard deviation of the noise at temperature 1, a number or a schedule.
        bounds (`tuple[float, float]`): Pixels are clamped to them after each step.
        tolerance, callback: See [`run_kernel`].
        generator (`torch.Generator`): Source of all randomness, on the device of x.

    Returns:
        The chains after the last step, detached, in the dtype of x, and the [`ChainInfo`] of all steps.
    """

    def kernel(state, step_size, noise_scale, temperature):
        noise = noise_scale * temperature**0.5 * _normal_like(state.x, generator)
        return _without_rejection(state, state.x + step_size * state.gradient + noise, bounds)

    schedules = (step_size, noise_scale, temperature)
    return _sample_images(log_density, x, kernel, schedules, num_steps, tolerance, callback)


def unadjusted_langevin(
    log_density, x, *, num_steps, step_size, temperature=1.0, bounds=None, tolerance=0.0, generator=None, callback=None
) -> tuple[torch.Tensor, ChainInfo]:
    """
    Langevin steps with the noise that belongs to them, `sqrt(2 * step_size * temperature)` (Roberts and Tweedie 1996).

    Biased by the step size: for N(0, 1) it samples N(0, 1 / (1 - step_size / 2)). Arguments and returns as of
    [`langevin`].
    """

    def kernel(state, step_size, temperature):
        noise = (2 * step_size * temperature) ** 0.5 * _normal_like(state.x, generator)
        return _without_rejection(state, state.x + step_size * state.gradient + noise, bounds)

    return _sample_images(log_density, x, kernel, (step_size, temperature), num_steps, tolerance, callback)


def gradient_flow(
    log_density, x, *, num_steps, step_size, momentum=0.0, bounds=None, tolerance=0.0, generator=None, callback=None
) -> tuple[torch.Tensor, ChainInfo]:
    """
    Gradient ascent without noise, for energies trained by Equilibrium Matching (Wang and Du 2025, arXiv 2510.02300).

    With `momentum` in [0, 1) it is Nesterov's accelerated gradient: `y = x + step_size * grad(x)`, then
    `x <- y + momentum * (y - y before)`; the chain is that of x, where the gradients are taken. `tolerance` makes it
    stop when it has arrived. Langevin dynamics at temperature 0, it takes no temperature, and it draws nothing from
    `generator`. Other arguments and returns as [`langevin`].
    """
    velocity = 0.0

    def kernel(state, step_size):
        nonlocal velocity
        velocity = momentum * velocity + step_size * state.gradient
        return _without_rejection(state, state.x + step_size * state.gradient + momentum * velocity, bounds)

    return _sample_images(log_density, x, kernel, (step_size,), num_steps, tolerance, callback)


def hmc(
    log_density, x, *, num_steps, step_size, num_leapfrog=10, temperature=1.0, bounds=None, tolerance=0.0,
    generator=None, callback=None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Hamiltonian Monte Carlo with unit mass (Duane et al. 1987; Neal 2011), exact in float32 and float64.

    Args:
        num_steps (`int`): Trajectories.
        step_size: Of one leapfrog step.
        num_leapfrog (`int`): Leapfrog steps, and gradients, a trajectory.
        bounds (`tuple[float, float]`): The density is zero outside: trajectories that end there are rejected.

    Other arguments and returns as [`langevin`].
    """

    def kernel(state, step_size, temperature):
        proposal, lost = trajectory(
            log_density, state, step_size=step_size, num_leapfrog=num_leapfrog, temperature=temperature,
            generator=generator,
        )  # fmt: skip
        return metropolis(state, proposal, lost / temperature, generator, bounds)

    return _sample_images(log_density, x, kernel, (step_size, temperature), num_steps, tolerance, callback)


def mala(log_density, x, *, num_steps, step_size, **kwargs) -> tuple[torch.Tensor, ChainInfo]:
    """
    Metropolis-adjusted Langevin (Roberts and Tweedie 1996): [`unadjusted_langevin`] made exact by rejections.

    It is [`hmc`] with one leapfrog step of size `sqrt(2 * step_size)` (Neal 2011, section 5.2) and takes its other
    arguments. One gradient a step.
    """

    def leapfrog_size(progress):
        return (2 * scheduled(step_size, progress)) ** 0.5

    return hmc(log_density, x, num_steps=num_steps, step_size=leapfrog_size, num_leapfrog=1, **kwargs)


IMAGE_SAMPLERS = {
    "langevin": langevin,
    "unadjusted_langevin": unadjusted_langevin,
    "mala": mala,
    "hmc": hmc,
    "gradient_flow": gradient_flow,
}


def _sample_images(log_density, x, kernel, schedules, num_steps, tolerance, callback):
    state = ChainState(x.detach())
    state, info = run_kernel(
        log_density, state, kernel, schedules, num_steps=num_steps, tolerance=tolerance, callback=callback
    )
    return state.x, info


def _without_rejection(state: ChainState, x: torch.Tensor, bounds):
    return ChainState(x if bounds is None else x.clamp(*bounds)), torch.ones_like(state.log_density)


def adapt_step_size(sampler, *args, step_size: float, target_acceptance: float, num_steps: int, **kwargs) -> tuple:
    """
    Find the step size with which a sampler accepts as often as wanted, by dual averaging (Hoffman and Gelman 2014,
    algorithm 5 and section 3.2.1).

    Args:
        sampler: [`mala`], [`hmc`] or [`mixed_hmc`](mixed_hmc_jem.py).
        args, kwargs: Its other arguments, without a callback.
        step_size (`float`): First guess.
        target_acceptance (`float`): Mean over all chains; .574 is best for MALA in many dimensions, .651 for HMC, .8
            is safe.
        num_steps (`int`): Steps to adapt in, 2 or more. The chains are exact only afterwards, with the size fixed.

    Returns:
        What the sampler returns, with the step size, a float, in place of the info.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps is 2 or more, not {num_steps}")
    shrinkage, delay, decay = 0.05, 10, 0.75
    log_size, log_average, error = math.log(step_size), 0.0, 0.0

    def update(*place_and_info):
        nonlocal log_size, log_average, error
        info = place_and_info[-1]
        if info.step > 0:
            error = error + (target_acceptance - info.acceptance.mean() - error) / (info.step + delay)
            log_size = math.log(10 * step_size) - info.step**0.5 / shrinkage * error
            log_average = log_average + info.step**-decay * (log_size - log_average)

    *place, _ = sampler(
        *args,
        num_steps=num_steps,
        step_size=lambda _: torch.as_tensor(log_size).exp(),
        callback=update,
        **kwargs,
    )
    return *place, math.exp(log_average)
