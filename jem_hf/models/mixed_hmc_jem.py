"""Mixed Hamiltonian Monte Carlo: images and labels sampled in tandem."""

import torch

from .image_samplers_jem import ChainInfo, ChainState, metropolis, run_kernel, trajectory
from .label_samplers_jem import draw_categorical, flip, free_values, one_hot, possible_flips, start_labels


def mixed_hmc(
    log_joint, x, labels, num_values, *, num_steps, step_size, num_leapfrog=10, num_flips=1, temperature=1.0,
    bounds=None, tolerance=0.0, start=None, generator=None, callback=None,
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
        x: Start of the images (B, ...).
        labels (`torch.LongTensor` of shape (B, K)): What is given, -1 where free; labels given stay as they are.
        num_values (`list[int]`): V_k of each of the K labels.
        num_steps (`int`): Trajectories.
        step_size, temperature: Numbers or schedules, as of [`hmc`](image_samplers_jem.py).
        num_leapfrog (`int`): Leapfrog steps, and gradients, a trajectory.
        num_flips (`int`): Proposals a leapfrog step, which cost `1 + num_flips` evaluations without a gradient.
        bounds, tolerance: As of [`hmc`](image_samplers_jem.py).
        start (`torch.LongTensor` of shape (B, K)): First values of the free labels; drawn uniformly if not given.
        generator (`torch.Generator`): Source of all randomness, on the device of x.
        callback: Called with images, labels and [`ChainInfo`](image_samplers_jem.py) before each step; True stops.

    Returns:
        Images (B, ...), labels (B, K) and the `ChainInfo` of all steps.
    """
    free, width = free_values(labels, num_values), max(num_values)

    def kernel(state, step_size, temperature):
        first = temperature * torch.empty_like(state.one_hot[..., 0]).exponential_(generator=generator)
        kinetic = first

        @torch.no_grad()
        def flip_labels(x, current):
            nonlocal kinetic
            log_density = log_joint(x, current)
            for _ in range(num_flips):
                possible = possible_flips(free, current)
                index = draw_categorical(possible.to(x.dtype).log().flatten(1), generator)[:, None]
                flipped = flip(current, index)
                flipped_log_density = log_joint(x, flipped)
                left = kinetic.gather(1, index // width) + (flipped_log_density - log_density)[:, None]
                paid = left > 0
                kinetic = torch.where(paid, kinetic.scatter(1, index // width, left.to(kinetic.dtype)), kinetic)
                current = torch.where(paid[..., None], flipped, current)
                log_density = torch.where(paid[:, 0], flipped_log_density, log_density)
            return current

        proposal, lost = trajectory(
            log_joint, state, step_size=step_size, num_leapfrog=num_leapfrog, temperature=temperature,
            generator=generator, halfway=flip_labels,
        )  # fmt: skip
        lost = lost + (first - kinetic).sum(1)
        return metropolis(state, proposal, lost / temperature, generator, bounds)

    state = ChainState(x.detach(), one_hot(start_labels(labels, num_values, start, generator), num_values, x.dtype))
    state, info = run_kernel(
        log_joint, state, kernel, (step_size, temperature), num_steps=num_steps, tolerance=tolerance, callback=callback
    )
    return state.x, state.one_hot.argmax(-1), info
