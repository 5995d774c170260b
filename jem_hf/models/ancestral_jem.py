"""
Ancestral sampling of energies that Equilibrium Matching trained, and its replay: how an image is edited with its own
noise.
"""

import math
from collections.abc import Callable
from functools import partial

import torch

from .chains_jem import Bounds, Chain, ChainInfo, LogDensity, Number, evaluate, noise_of_start, normal_like, renew

DECAY_START = 0.8  # of the training; see `ancestral`


def ancestral(
    log_density: LogDensity, x: torch.Tensor, *, num_steps: int, eta: Number = 1.0, reach: Number = 1.0,
    decay_start: float = DECAY_START, bounds: Bounds | None = None, tolerance: float = 0.0,
    generator: torch.Generator | None = None, callback: Callable | None = None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    From noise to data in steps that know how much noise is left and draw a part of it anew, for energies trained by
    Equilibrium Matching as [`flow`](image_samplers_jem.py) is (DDIM, Song, Meng and Ermon 2021, arXiv 2010.02502, on
    straight ways).

    At time t, x is `(1 - t) noise + t data`. The gradient was trained to be `c(t) (data - noise)` with
    `c(t) = min(1, (1 - t) / (1 - decay_start))`, so it tells both. A step goes on to a time past the next one, s, and
    comes back to s by fresh noise: what it did wrong before drowns in it, where [`flow`] keeps all of its errors.

    Args:
        eta (`float`, defaults to 1): How much noise is fresh. 0: none. 1: that of the diffusion with the same
            marginals, so that the chain samples the data if the gradient is exact and the steps are small. More:
            likelier and more alike. `inf`: all of it, every time. A number or a schedule.
        reach (`float`, defaults to 1): Factor of the way from x to the data; above 1 for details that an inexact
            gradient averages away. A number or a schedule.
        decay_start (`float`, defaults to 0.8): That of the training.
        bounds (`tuple[float, float]`, *optional*): What is taken for the data is clamped to them.

    Other arguments and returns as [`flow`].
    """
    x, chain = x.detach(), Chain(num_steps, callback, tolerance)
    draw = partial(normal_like, generator=generator) if generator else noise_of_start(x)
    for step in chain:
        t, s = step / num_steps, (step + 1) / num_steps
        renew(log_density, step)
        x, value, gradient = evaluate(log_density, x)
        if chain.ends(value, gradient, x):
            break
        data = x + chain.at(reach) * max(1 - t, 1 - decay_start) * gradient
        if bounds is not None:
            data = data.clamp(*bounds)
        x, fresh = _step(x, data, t, s, chain.at(eta))
        if fresh:
            x = torch.add(x, draw(x), alpha=fresh)
        chain.moved(torch.ones_like(value))
    return x, chain.info


def replay(
    before: LogDensity, after: LogDensity, known: torch.Tensor, noise: torch.Tensor, *, num_steps: int,
    strength: float, eta: float = 1.0, generator: torch.Generator | None = None, callback: Callable | None = None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    What is known as another density would have it, with everything that the two densities agree on left as it is.

    An ancestral chain of the density `before` that ends at `known` is made up: its places are blends of it with noise,
    its fresh noise is whatever leads from one to the next. The chain of the density `after` starts at the same place
    and uses the same noise (Huberman-Spiegelglas, Kulikov and Michaeli 2024, arXiv 2304.06140). Two equal densities
    give `known` back.

    Args:
        before, after: Log densities, as of all samplers.
        known (`torch.Tensor`): Data (B, ...).
        noise (`torch.Tensor` of the same shape): That of the first place.
        num_steps (`int`): From pure noise.
        strength (`float`): Share of noise in the first place, in (0, 1]; less of it takes fewer of the steps.
        eta, generator, callback: As for [`ancestral`].
    """
    first = first_step(num_steps, strength)
    x = place = torch.lerp(noise, known, first / num_steps)
    chain = Chain(num_steps - first, callback)
    draw = partial(normal_like, generator=generator) if generator else noise_of_start(x)
    for step in chain:
        t, s = (first + step) / num_steps, (first + step + 1) / num_steps
        for density in (before, after):
            renew(density, step)
        x, value, gradient = evaluate(after, x)
        if chain.ends(value, gradient, x):
            break
        as_before = evaluate(before, place).gradient
        next_place = torch.lerp(draw(x), known, s)
        x, place = (
            _step(each, each + max(1 - t, 1 - DECAY_START) * slope, t, s, eta)[0]
            for each, slope in ((x, gradient), (place, as_before))
        )
        x, place = x + next_place - place, next_place
        chain.moved(torch.ones_like(value))
    return x, chain.info


def first_step(num_steps: int, strength: float) -> int:
    """The step of a chain of `num_steps` whose place has this share of noise, or the next one that has less."""
    return min(num_steps - 1, math.ceil(num_steps * (1 - strength) - 1e-6))


def _step(x, data, t, s, eta):
    """From x at time t the mean of x at time s, if this is the data, and the standard deviation of fresh noise."""
    noise = (x - t * data) / (1 - t)
    past = 1 - (1 - s) * max(0.0, 1 - eta * (s - t) / (1 - t))
    fresh = (1 - s) ** 2 - (s / past * (1 - past)) ** 2
    return torch.lerp(noise, data, past) * (s / past), max(0.0, fresh) ** 0.5
