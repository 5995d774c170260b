"""Chains against exact probabilities on a joint small enough to sum over."""

from dataclasses import replace

import pytest
import torch

from jem_hf.models.label_distributions_jem import ProductDistribution
from jem_hf.models.sampling_jem import (
    ChainSettings,
    Condition,
    flow_settings,
    initial_noise,
    last_langevin_step,
    run_chain,
)

MEANS = torch.tensor([[-1.0, 1.0, 0.0], [0.5, -0.5, 1.5]])  # of x for each of two labels and their three values


def tractable_logits(x):
    """log p~(x, y) = sum_k -(x - m[k, y_k])^2 / 2, the first label with two values: one pixel, six label vectors."""
    logits = -0.5 * (x.flatten(1)[:, :, None] - MEANS) ** 2
    logits = logits + torch.tensor([0.0, 0.7, 0.2])
    return logits.masked_fill(torch.tensor([[False, False, True], [False] * 3]), -torch.inf)


def tractable(x):
    return ProductDistribution(tractable_logits(x))


def exact_joint(grid):
    """Probabilities (len(grid), 2, 3) of x on a grid and y."""
    logits = tractable_logits(grid[:, None, None, None])
    scores = logits[:, 0, :2, None] + logits[:, 1, None, :]
    return scores.flatten().softmax(0).view(len(grid), 2, 3)


def test_chain_reaches_the_exact_joint():
    """Tied Langevin and Gibbs leave p(x, y) stationary: chi-square over cells of x and both labels, as returned."""
    from scipy.stats import chisquare

    settings = ChainSettings(num_steps=600, step_size=0.01, noise_scale=0.02**0.5, gibbs_every=1, clamp=False)
    free = torch.full((4000, 2), -1)
    x, y = run_chain(tractable, torch.zeros(4000, 1, 1, 1), free, settings, torch.Generator().manual_seed(0))
    grid = torch.linspace(-6, 6, 2001)
    joint = exact_joint(grid).double()
    edges = torch.tensor([-0.7, 0.0, 0.7])
    cell = (torch.bucketize(x.flatten(), edges) * 2 + y[:, 0]) * 3 + y[:, 1]
    expected = torch.stack([joint[torch.bucketize(grid, edges) == i].sum(0) for i in range(4)]).flatten()
    observed = torch.bincount(cell, minlength=24)
    assert chisquare(observed.numpy(), (4000 * expected / expected.sum()).numpy()).pvalue > 0.001


def test_observed_labels_condition_the_chain():
    """x given y_0 = 1 alone has the mean that summing the other label out gives."""
    settings = ChainSettings(num_steps=600, step_size=0.01, noise_scale=0.02**0.5, gibbs_every=1, clamp=False)
    labels = torch.tensor([[1, -1]]).expand(4000, -1)
    x, y = run_chain(tractable, torch.zeros(4000, 1, 1, 1), labels, settings, torch.Generator().manual_seed(1))
    assert (y[:, 0] == 1).all()
    marginalised, _ = run_chain(
        tractable, torch.zeros(4000, 1, 1, 1), labels, replace(settings, gibbs_every=0),
        torch.Generator().manual_seed(2),
    )  # fmt: skip
    grid = torch.linspace(-6, 6, 2001)
    conditional = exact_joint(grid)[:, 1].sum(1)
    mean = (grid * conditional).sum() / conditional.sum()
    deviation = ((grid - mean) ** 2 * conditional).sum().div(conditional.sum()).sqrt()
    for samples in (x, marginalised):
        assert abs(samples.mean() - mean) < 4 * deviation / 4000**0.5 + 0.01


def test_gibbs_draws_are_exact():
    logits = torch.tensor([[[0.0, 1.0, 2.0], [1.0, -1.0, -torch.inf]]]).expand(60_000, -1, -1)
    distribution = ProductDistribution(logits)
    labels = distribution.draw(torch.full((60_000, 2), -1), torch.Generator().manual_seed(0))
    for k in range(2):
        frequency = torch.bincount(labels[:, k], minlength=3) / 60_000
        torch.testing.assert_close(frequency, logits[0, k].softmax(0), atol=0.01, rtol=0)
    kept = distribution.draw(torch.tensor([[2, -1]]).expand(60_000, -1))
    assert (kept[:, 0] == 2).all()


def test_one_step_is_the_formula():
    x = torch.tensor([0.3]).view(1, 1, 1, 1)
    labels = torch.tensor([[1, 2]])
    settings = ChainSettings(num_steps=1, step_size=0.5, noise_scale=0.0, gibbs_every=0, guidance_scale=3.0)
    moved, _ = run_chain(tractable, x, labels, settings)
    joint = (1.0 - 0.3) + (1.5 - 0.3)
    p = tractable_logits(x).softmax(-1)[0]
    marginal = (p * (MEANS - 0.3)).nan_to_num().sum()
    assert moved.item() == pytest.approx(min(1.0, 0.3 + 0.5 * (3 * joint - 2 * marginal.item())), abs=1e-6)
    x = torch.zeros(1, 1, 1, 1)
    logits = tractable_logits(x)
    torch.testing.assert_close(
        Condition(labels).guided(tractable(x), 3.0),
        3 * Condition(labels).guided(tractable(x), 1.0) - 2 * logits.logsumexp(-1).sum(-1),
    )


def test_last_step_keeps_the_graph_of_the_parameters():
    slope = torch.tensor(2.0, requires_grad=True)

    def logits(x):
        return ProductDistribution((slope * x.flatten(1).sum(1))[:, None, None].expand(-1, 1, 2))

    x = last_langevin_step(logits, torch.zeros(3, 1, 1, 1), torch.zeros(3, 1, dtype=torch.long), ChainSettings(
        num_steps=1, step_size=0.1, noise_scale=0.0
    ))  # fmt: skip
    torch.testing.assert_close(x.detach(), torch.full((3, 1, 1, 1), 0.2))
    (gradient,) = torch.autograd.grad(x.sum(), slope)
    torch.testing.assert_close(gradient, torch.tensor(0.3))


def test_steps_of_the_flow_rise_and_add_up():
    def slope(x):
        return ProductDistribution(x.flatten(1).sum(1)[:, None, None].expand(-1, 1, 2))

    frames, shares = [], []

    def project(x, share):
        shares.append(share)
        return x

    start, labels = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, dtype=torch.long)
    x, _ = run_chain(slope, start, labels, flow_settings(4), None, lambda x, info: frames.append(x), project)
    steps = torch.cat([*frames[1:], x]).flatten() - torch.cat(frames).flatten()
    torch.testing.assert_close(steps, 0.4 * torch.tensor([1 / 2, 5 / 6, 7 / 6, 3 / 2]))
    assert shares == pytest.approx([1 / 8, 1 / 3, 5 / 8, 1])
    torch.testing.assert_close(run_chain(slope, start, labels, flow_settings(1))[0].item(), 1.6)


def test_callback_sees_every_step_and_can_stop():
    seen = []

    frames = []

    def callback(x, info):
        seen.append(info)
        frames.append(x)
        return info.step == 4

    settings = flow_settings(num_steps=16)
    labels = torch.full((5, 2), -1)
    run_chain(tractable, torch.zeros(5, 1, 1, 1), labels, settings, callback=callback)
    assert [info.step for info in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(frames[0], torch.zeros(5, 1, 1, 1)) and not torch.equal(frames[0], frames[4])
    assert all(field.shape == (5,) for field in (seen[0].energy, seen[0].grad_norm, seen[0].saturated))
    assert torch.equal(seen[0].saturated, torch.zeros(5)) and (seen[0].grad_norm > 0).all()


def test_same_generator_seed_same_chain_and_no_global_randomness():
    labels = torch.full((8, 2), -1)
    state = torch.get_rng_state()
    ends = [
        run_chain(tractable, torch.zeros(8, 1, 1, 1), labels, ChainSettings(), torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(ends[0][0], ends[2][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_noise():
    generator = torch.Generator().manual_seed(0)
    normal = initial_noise("flow", (1000, 3, 4, 4), generator=generator)
    uniform = initial_noise("langevin", (1000, 3, 4, 4), generator=generator)
    assert abs(normal.std() - 1) < 0.02
    assert uniform.abs().max() <= 1 and abs(uniform.var() - 1 / 3) < 0.01
