"""Mixed Hamiltonian Monte Carlo: images and labels sampled in tandem."""

from collections.abc import Callable

import torch

from .chains_jem import (
    Bounds,
    Chain,
    ChainInfo,
    LogDensity,
    Number,
    choose,
    evaluate,
    metropolis,
    normal_like,
    outside,
    sum_of_squares,
)  # fmt: skip
from .label_samplers_jem import draw_categorical, flip, one_hot, possible_flips, start_labels


def mixed_hmc(
    log_joint: LogDensity, x: torch.Tensor, labels: torch.Tensor, num_values: list[int], *, num_steps: int,
    step_size: Number, num_leapfrog: int = 10, num_flips: int = 1, temperature: Number = 1.0,
    bounds: Bounds | None = None, tolerance: float = 0.0, start: torch.Tensor | None = None,
    generator: torch.Generator | None = None, callback: Callable | None = None,
) -> tuple[torch.Tensor, torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Mixed HMC with Laplace momentum (Zhou 2020, arXiv 1909.04852, algorithm 1) over images and labels, exact.

    A trajectory carries a Gaussian momentum for the images and, for each label, a kinetic energy k drawn from an
    exponential distribution. Halfway through each leapfrog step, `num_flips` flips of a free label are proposed, each
    uniformly among all; one that raises the energy by less than the k of its label is made, and k pays for it (or
    gains). Both the leapfrog step and the flips conserve volume and are as probable backwards as forwards: the flips
    are drawn alike and independently at fixed times in every chain, so an order and its reverse are equally
    probable, and a flip that cannot be paid for cannot be on the way back either. A Metropolis test of the total
    energy, kinetic energies included, therefore leaves `p(x, y)` stationary; flips alone conserve that energy, so
    that only the error of the leapfrog steps is ever rejected.

    Args:
        log_joint: From images (B, ...) and one-hot labels (B, K, V), in the dtype of x, to unnormalised log
            densities (B,), differentiable by the images.
        x (`torch.Tensor` of shape (B, ...)): Start of the images.
        labels (`torch.LongTensor` of shape (B, K)): What is given, -1 where free; labels given stay as they are.
        num_values (`list[int]`): V_k of each of the K labels.
        num_steps (`int`): Trajectories.
        step_size, temperature: Numbers or schedules, as of [`hmc`](image_samplers_jem.py).
        num_leapfrog (`int`, defaults to 10): Leapfrog steps, and gradients, a trajectory.
        num_flips (`int`, defaults to 1): Proposals a leapfrog step, which cost `1 + num_flips` evaluations without a
            gradient.
        bounds, tolerance: As of [`hmc`](image_samplers_jem.py).
        start (`torch.LongTensor` of shape (B, K), *optional*): First values of the free labels, by default uniform.
        generator (`torch.Generator`, *optional*): Source of all randomness, on the device of x.
        callback (*optional*): Called with images, labels and [`ChainInfo`] before each step; True stops.

    Returns:
        Images (B, ...), labels (B, K) and the `ChainInfo` of all steps.
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
