"""
Samplers of labels that depend on each other: chains that see a log probability of one-hot labels.

Each is one function of one shape, `sampler(log_prob, labels, num_values, *, num_steps, ...) -> (labels, ChainInfo)`,
and `LABEL_SAMPLERS` has them by name. Labels (B, K) are -1 where free; those that are given stay as they are.
"""

import torch

from .image_samplers_jem import ChainInfo, ChainState, evaluate, metropolis, run_kernel


def one_hot(labels: torch.Tensor, num_values: list[int], dtype=torch.float32) -> torch.Tensor:
    """Labels (..., K) to floats (..., K, V) with V = max V_k, all zero where a label is -1."""
    return (labels[..., None] == torch.arange(max(num_values), device=labels.device)).to(dtype)


def start_labels(labels: torch.Tensor, num_values: list[int], start=None, generator=None) -> torch.Tensor:
    """Labels (B, K) with every -1 replaced by `start` (B, K), or else by a draw from all V_k values alike."""
    if start is None:
        uniform = torch.empty(labels.shape, device=labels.device).uniform_(generator=generator)
        start = (uniform * torch.tensor(num_values, device=labels.device)).long()
    return torch.where(labels >= 0, labels, start)


def draw_categorical(logits: torch.Tensor, generator=None) -> torch.Tensor:
    """Draws (...) from `softmax(logits)` (..., V) by the Gumbel trick, which unlike multinomial needs no waiting."""
    return (logits - torch.empty_like(logits).exponential_(generator=generator).log()).argmax(-1)


def free_values(labels: torch.Tensor, num_values: list[int]) -> torch.Tensor:
    """True (B, K, V) at the values that a free label can take."""
    exists = torch.arange(max(num_values)) < torch.tensor(num_values)[:, None]
    return exists.to(labels.device) & (labels < 0)[..., None]


def possible_flips(free: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """
    True (B, K, V) at the other values of free labels; `free` as of [`free_values`], `current` the one-hot labels.

    Where a row has none, True at the values that it has: a flip can be drawn there, too, and changes nothing.
    """
    possible = free & (current == 0)
    return possible | ((current > 0) & ~possible.any((1, 2), keepdim=True))


def flip(current: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One-hot labels (B, K, V) with label `index // V` set to value `index % V`; index (B, 1)."""
    width = current.shape[-1]
    site, value = (index // width)[..., None], index % width
    return current.scatter(1, site.expand(-1, 1, width), one_hot(value, [width], current.dtype))


def gibbs(
    log_prob, labels, num_values, *, num_steps, temperature=1.0, start=None, generator=None, callback=None
) -> tuple[torch.Tensor, ChainInfo]:
    """
    Gibbs sampling (Geman and Geman 1984): each free label in turn is drawn from its conditional, in V_k evaluations.

    Args:
        log_prob: From one-hot labels (N, K, V) to unnormalised log probabilities (N,). All values of one label are
            asked for at once: N = V_k * B, and row `v * B + b` is of chain b.
        labels (`torch.LongTensor` of shape (B, K)): What is given, -1 where free.
        num_values (`list[int]`): V_k of each of the K labels.
        num_steps (`int`): Sweeps over all labels.
        temperature: Number or schedule; `p^(1/temperature)` is sampled.
        start (`torch.LongTensor` of shape (B, K)): First values of the free labels; drawn uniformly if not given.
        generator (`torch.Generator`): Source of all randomness, on the device of the labels.
        callback: Called with the labels and [`ChainInfo`](image_samplers_jem.py) before each step; True stops.

    Returns:
        The labels (B, K) and the `ChainInfo` of all steps; `grad_norm` and `saturated` are None.
    """
    free = labels < 0
    sites = free.any(0).nonzero()[:, 0].tolist()
    identity = torch.eye(max(num_values), device=labels.device)

    @torch.no_grad()
    def kernel(state, temperature):
        current, log_density = state.one_hot, state.log_density
        for k in sites:
            options = current.repeat(num_values[k], 1, 1, 1)
            options[:, :, k] = identity[: num_values[k], None]
            values = log_prob(options.flatten(0, 1)).view(num_values[k], -1)
            draw = draw_categorical(values.T / temperature, generator)
            draw = torch.where(free[:, k], draw, current[:, k].argmax(-1))
            current = current.clone()
            current[:, k] = identity[draw]
            log_density = values.gather(0, draw[None])[0]
        return ChainState(one_hot=current, log_density=log_density), torch.ones_like(log_density)

    current = one_hot(start_labels(labels, num_values, start, generator), num_values)
    with torch.no_grad():
        state = ChainState(one_hot=current, log_density=log_prob(current))
    state, info = run_kernel(log_prob, state, kernel, (temperature,), num_steps=num_steps, callback=callback)
    return state.one_hot.argmax(-1), info


def gibbs_with_gradients(
    log_prob, labels, num_values, *, num_steps, temperature=1.0, proposal_temperature=2.0, start=None, generator=None,
    callback=None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Gibbs with gradients (Grathwohl et al. 2021, arXiv 2102.04509, algorithms 1 and 2): one change a step, drawn from
    `softmax(d / proposal_temperature)`, where d (B, K, V) is the first-order change of the log probability by every
    flip of one free label, and accepted by Metropolis-Hastings. One evaluation a step.

    Args:
        log_prob: From one-hot labels (B, K, V) to (B,), differentiable by the one-hot labels.
        num_steps (`int`): Proposals.
        proposal_temperature (`float`): 2 is the locally balanced choice.

    Other arguments and returns as [`gibbs`]; `grad_norm` is of the gradient by the one-hot labels.
    """

    free, width = free_values(labels, num_values), max(num_values)

    def proposal(state, temperature):
        """Log probabilities (B, K * V) of all flips."""
        change = state.gradient - (state.gradient * state.one_hot).sum(-1, keepdim=True)
        change = change / (temperature * proposal_temperature)
        possible = possible_flips(free, state.one_hot)
        return change.masked_fill(~possible, -torch.inf).flatten(1).log_softmax(-1)

    def kernel(state, temperature):
        forward = proposal(state, temperature)
        index = draw_categorical(forward, generator)[:, None]
        new = evaluate(log_prob, one_hot=flip(state.one_hot, index))
        back = state.one_hot.argmax(-1).gather(1, index // width) + index // width * width
        log_ratio = (new.log_density - state.log_density) / temperature
        log_ratio = log_ratio + (proposal(new, temperature).gather(1, back) - forward.gather(1, index))[:, 0]
        return metropolis(state, new, log_ratio, generator)

    state = ChainState(one_hot=one_hot(start_labels(labels, num_values, start, generator), num_values))
    state, info = run_kernel(log_prob, state, kernel, (temperature,), num_steps=num_steps, callback=callback)
    return state.one_hot.argmax(-1), info


LABEL_SAMPLERS = {"gibbs": gibbs, "gibbs_with_gradients": gibbs_with_gradients}
