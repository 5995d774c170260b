"""
Samplers of labels that depend on each other: chains that see a log probability of one-hot labels.

Each is one function of one shape, `sampler(log_prob, labels, num_values, *, num_steps, ...) -> (labels, ChainInfo)`,
and `LABEL_SAMPLERS` has them by name. Labels (B, K) are -1 where free; those that are given stay as they are.
"""

from collections.abc import Callable

import torch

from .chains_jem import Chain, ChainInfo, LogDensity, Number, choose, evaluate, metropolis


def one_hot(labels: torch.Tensor, num_values: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Labels (..., K) to floats (..., K, V) with V = max V_k, all zero where a label is -1."""
    return (labels[..., None] == torch.arange(max(num_values), device=labels.device)).to(dtype)


def existing_values(num_values: list[int], device: torch.device | None = None) -> torch.Tensor:
    """True (K, V) at the values that a label has; one of fewer than V lacks the others."""
    return torch.arange(max(num_values), device=device) < torch.tensor(num_values, device=device)[:, None]


def with_all_values(encoded: torch.Tensor, k: int, num: int) -> torch.Tensor:
    """One-hot labels (B, K, V) as (num, B, K, V): in the v-th of them label k has the value v."""
    options = encoded.repeat(num, 1, 1, 1)
    options[:, :, k] = torch.eye(num, encoded.shape[-1], dtype=encoded.dtype, device=encoded.device)[:, None]
    return options


def start_labels(
    labels: torch.Tensor,
    num_values: list[int],
    start: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Labels (B, K) with every -1 replaced by `start` (B, K), or else by a draw from all V_k values alike."""
    if start is None:
        uniform = torch.empty(labels.shape, device=labels.device).uniform_(generator=generator)
        start = (uniform * torch.tensor(num_values, device=labels.device)).long()
    return torch.where(labels >= 0, labels, start)


def draw_categorical(logits: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draws (...) from `softmax(logits)` (..., V) by the Gumbel trick, which unlike multinomial needs no waiting."""
    return (logits - torch.empty_like(logits).exponential_(generator=generator).log()).argmax(-1)


def possible_flips(labels: torch.Tensor, current: torch.Tensor, num_values: list[int]) -> torch.Tensor:
    """
    True (B, K, V) at the other values of free labels; `labels` are -1 where free, `current` (B, K, V) is one-hot.

    Where a row has none, True at the values that it has: a flip can be drawn there, too, and changes nothing.
    """
    free = existing_values(num_values, labels.device) & (labels < 0)[..., None]
    possible = free & (current == 0)
    return possible | ((current > 0) & ~possible.any((1, 2), keepdim=True))


def flip(current: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One-hot labels (B, K, V) with label `index // V` set to value `index % V`; index (B, 1)."""
    width = current.shape[-1]
    site, value = (index // width)[..., None], index % width
    return current.scatter(1, site.expand(-1, 1, width), one_hot(value, [width], current.dtype))


@torch.no_grad()
def gibbs(
    log_prob: LogDensity, labels: torch.Tensor, num_values: list[int], *, num_steps: int, temperature: Number = 1.0,
    start: torch.Tensor | None = None, generator: torch.Generator | None = None, callback: Callable | None = None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Gibbs sampling (Geman and Geman 1984): each free label in turn is drawn from its conditional, in V_k evaluations.

    Args:
        log_prob: From one-hot labels (N, K, V) to unnormalised log probabilities (N,). All values of one label are
            asked for at once: N = V_k * B, and row `v * B + b` is of chain b.
        labels (`torch.LongTensor` of shape (B, K)): What is given, -1 where free.
        num_values (`list[int]`): V_k of each of the K labels.
        num_steps (`int`): Sweeps over all labels.
        temperature: Number or schedule; `p^(1/temperature)` is sampled.
        start (`torch.LongTensor` of shape (B, K), *optional*): First values of the free labels, by default uniform.
        generator, callback: As of [`langevin`](image_samplers_jem.py), with labels for images.

    Returns:
        The labels (B, K) and the `ChainInfo` of all steps; `grad_norm` and `saturated` are None.
    """
    free = labels < 0
    sites = free.any(0).nonzero()[:, 0].tolist()
    labels = start_labels(labels, num_values, start, generator)
    current, chain = one_hot(labels, num_values), Chain(num_steps, callback)
    value = log_prob(current)
    for _ in chain:
        if chain.ends(value, None, labels=labels):
            break
        labels, current, heat = labels.clone(), current.clone(), chain.at(temperature)
        for k in sites:
            values = log_prob(with_all_values(current, k, num_values[k]).flatten(0, 1)).view(num_values[k], -1)
            draw = draw_categorical(values.T / heat, generator)
            draw = torch.where(free[:, k], draw, labels[:, k])
            labels[:, k], current[:, k] = draw, one_hot(draw, [current.shape[-1]])
            value = values.gather(0, draw[None])[0]
        chain.moved(torch.ones_like(value))
    return labels, chain.info


def gibbs_with_gradients(
    log_prob: LogDensity, labels: torch.Tensor, num_values: list[int], *, num_steps: int, temperature: Number = 1.0,
    proposal_temperature: float = 2.0, start: torch.Tensor | None = None, generator: torch.Generator | None = None,
    callback: Callable | None = None,
) -> tuple[torch.Tensor, ChainInfo]:  # fmt: skip
    """
    Gibbs with gradients (Grathwohl et al. 2021, arXiv 2102.04509, algorithms 1 and 2): one change a step, drawn from
    `softmax(d / proposal_temperature)`, where d (B, K, V) is the first-order change of the log probability by every
    flip of one free label, and accepted by Metropolis-Hastings. One evaluation a step.

    Args:
        log_prob: From one-hot labels (B, K, V) to (B,), differentiable by the one-hot labels.
        num_steps (`int`): Proposals.
        proposal_temperature (`float`, defaults to 2): The locally balanced choice.

    Other arguments and returns as [`gibbs`]; `grad_norm` is of the gradient by the one-hot labels.
    """
    width, chain = max(num_values), Chain(num_steps, callback)

    def proposal(state, temperature):
        """Log probabilities (B, K * V) of all flips."""
        change = state.gradient - (state.gradient * state.x).sum(-1, keepdim=True)
        possible = possible_flips(labels, state.x, num_values)
        change = change / (temperature * proposal_temperature)
        return change.masked_fill(~possible, -torch.inf).flatten(1).log_softmax(-1)

    state = evaluate(log_prob, one_hot(start_labels(labels, num_values, start, generator), num_values))
    for _ in chain:
        current, heat = state.x.argmax(-1), chain.at(temperature)
        if chain.ends(state.log_density, state.gradient, labels=current):
            break
        forward = proposal(state, heat)
        index = draw_categorical(forward, generator)[:, None]
        new = evaluate(log_prob, flip(state.x, index))
        back = current.gather(1, index // width) + index // width * width
        log_ratio = (new.log_density - state.log_density) / heat
        log_ratio = log_ratio + (proposal(new, heat).gather(1, back) - forward.gather(1, index))[:, 0]
        accepted, acceptance = metropolis(log_ratio, generator)
        state = choose(accepted, new, state)
        chain.moved(acceptance)
    return state.x.argmax(-1), chain.info


LABEL_SAMPLERS = {"gibbs": gibbs, "gibbs_with_gradients": gibbs_with_gradients}
