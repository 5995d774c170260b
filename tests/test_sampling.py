"""Chains against exact probabilities on a joint small enough to sum over."""

import pytest
import torch

from jem_hf.models.label_distributions_jem import ProductDistribution
from jem_hf.models.sampling_jem import Condition, ConditionalDensity, flow_steps, initial_noise, run_chain

MEANS = torch.tensor([[-1.0, 1.0, 0.0], [0.5, -0.5, 1.5]])  # of x for each of two labels and their three values


def tractable_logits(x):
    """log p~(x, y) = sum_k -(x - m[k, y_k])^2 / 2, the first label with two values: one pixel, six label vectors."""
    logits = -0.5 * (x.flatten(1)[:, :, None] - MEANS) ** 2
    logits = logits + torch.tensor([0.0, 0.7, 0.2])
    return logits.masked_fill(torch.tensor([[False, False, True], [False] * 3]), -torch.inf)


def tractable(x):
    return ProductDistribution(tractable_logits(x))


LANGEVIN = dict(num_steps=600, step_size=0.01, gibbs_every=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_joint(grid):
    """Probabilities (len(grid), 2, 3) of x on a grid and y."""
    logits = tractable_logits(grid[:, None, None, None])
    scores = logits[:, 0, :2, None] + logits[:, 1, None, :]
    return scores.flatten().softmax(0).view(len(grid), 2, 3)


@pytest.mark.parametrize(
    "sampler, settings",
    [
        ("unadjusted_langevin", LANGEVIN),
        ("mala", dict(num_steps=100, step_size=0.4, gibbs_every=1)),
        ("mala", dict(num_steps=150, step_size=0.4, gibbs_every=3)),
        ("hmc", dict(num_steps=100, step_size=0.6, num_leapfrog=2, gibbs_every=1)),
    ],
)
def test_chains_with_gibbs_on_the_labels_reach_the_exact_joint(sampler, settings):
    """They leave p(x, y) stationary: chi-square over cells of x and both labels, as returned."""
    from scipy.stats import chisquare

    free, start = torch.full((4000, 2), -1), torch.zeros(4000, 1, 1, 1)
    x, y = run_chain(sampler, tractable, start, free, generator=seeded(), **settings)
    grid = torch.linspace(-6, 6, 2001)
    joint = exact_joint(grid).double()
    edges = torch.tensor([-0.7, 0.0, 0.7])
    cell = (torch.bucketize(x.flatten(), edges) * 2 + y[:, 0]) * 3 + y[:, 1]
    expected = torch.stack([joint[torch.bucketize(grid, edges) == i].sum(0) for i in range(4)]).flatten()
    observed = torch.bincount(cell, minlength=24)
    assert chisquare(observed.numpy(), (4000 * expected / expected.sum()).numpy()).pvalue > 0.001


def test_observed_labels_condition_the_chain():
    """x given y_0 = 1 alone has the mean that summing the other label out gives."""
    labels, start = torch.tensor([[1, -1]]).expand(4000, -1), torch.zeros(4000, 1, 1, 1)
    x, y = run_chain("unadjusted_langevin", tractable, start, labels, generator=seeded(1), **LANGEVIN)
    assert (y[:, 0] == 1).all()
    without = LANGEVIN | {"gibbs_every": 0}
    marginalised, y = run_chain("unadjusted_langevin", tractable, start, labels, generator=seeded(2), **without)
    assert torch.equal(y, labels)
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
    settings = dict(num_steps=1, step_size=0.5, noise_scale=0.0, bounds=(-1, 1), guidance_scale=3.0)
    moved, _ = run_chain("langevin", tractable, x, labels, **settings)
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

    start, labels = torch.zeros(3, 1, 1, 1), torch.zeros(3, 1, dtype=torch.long)
    settings = dict(step_size=0.1, noise_scale=0.0, keep_graph=True)
    x, _ = run_chain("langevin", logits, start, labels, num_steps=1, **settings)
    torch.testing.assert_close(x.detach(), torch.full((3, 1, 1, 1), 0.2))
    (gradient,) = torch.autograd.grad(x.sum(), slope)
    torch.testing.assert_close(gradient, torch.tensor(0.3))
    x, _ = run_chain("langevin", logits, start, labels, num_steps=5, **settings)
    (gradient,) = torch.autograd.grad(x.sum(), slope)
    torch.testing.assert_close(gradient, torch.tensor(0.3))  # of the last step alone


def test_steps_of_the_flow_rise_and_add_up():
    def slope(x):
        return ProductDistribution(x.flatten(1).sum(1)[:, None, None].expand(-1, 1, 2))

    frames, steps_seen = [], []

    def project(x, step):
        steps_seen.append(step)
        return x

    start, labels = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, dtype=torch.long)
    x, _ = run_chain(
        "flow", slope, start, labels, num_steps=4, step_size=flow_steps(4), callback=lambda x, info: frames.append(x),
        project=project,
    )  # fmt: skip
    steps = torch.cat([*frames[1:], x]).flatten() - torch.cat(frames).flatten()
    torch.testing.assert_close(steps, 0.4 * torch.tensor([1 / 2, 5 / 6, 7 / 6, 3 / 2]))
    assert steps_seen == [0, 1, 2, 3]
    x, _ = run_chain("flow", slope, start, labels, num_steps=1, step_size=flow_steps(1))
    torch.testing.assert_close(x.item(), 1.6)


def test_callback_sees_every_step_and_can_stop():
    seen = []

    frames = []

    def callback(x, info):
        seen.append(info)
        frames.append(x)
        return info.step == 4

    labels, start = torch.full((5, 2), -1), torch.zeros(5, 1, 1, 1)
    run_chain("flow", tractable, start, labels, num_steps=16, step_size=flow_steps(16), callback=callback)
    assert [info.step for info in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(frames[0], torch.zeros(5, 1, 1, 1)) and not torch.equal(frames[0], frames[4])
    assert all(field.shape == (5,) for field in (seen[0].energy, seen[0].grad_norm, seen[0].saturated))
    assert torch.equal(seen[0].saturated, torch.zeros(5)) and (seen[0].grad_norm > 0).all()


def test_same_generator_seed_same_chain_and_no_global_randomness():
    labels = torch.full((8, 2), -1)
    state = torch.get_rng_state()
    settings = dict(num_steps=40, step_size=0.1, noise_scale=0.1, gibbs_every=1)
    start = torch.zeros(8, 1, 1, 1)
    ends = [run_chain("langevin", tractable, start, labels, generator=seeded(s), **settings) for s in (1, 1, 2)]
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(ends[0][0], ends[2][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_noise():
    generator = torch.Generator().manual_seed(0)
    normals = [initial_noise(name, (1000, 3, 4, 4), generator=generator) for name in ("flow", "ancestral")]
    uniform = initial_noise("langevin", (1000, 3, 4, 4), generator=generator)
    assert all(abs(normal.std() - 1) < 0.02 for normal in normals)
    assert uniform.abs().max() <= 1 and abs(uniform.var() - 1 / 3) < 0.01


@pytest.mark.parametrize(
    "sampler, settings, gibbs_every, expected",
    [
        ("langevin", dict(noise_scale=0.1), 1, 20),
        ("flow", dict(momentum=0.5), 1, 20),
        ("mala", {}, 0, 21),
        ("mala", {}, 1, 40),
        ("hmc", dict(num_leapfrog=3), 0, 61),
        ("hmc", dict(num_leapfrog=3), 5, 64),
    ],
)
def test_one_evaluation_draws_labels_and_gives_the_gradient(sampler, settings, gibbs_every, expected):
    """20 steps; where a move is carried over, labels that are drawn anew cost one evaluation."""
    calls = []

    def counted(x):
        calls.append(len(x))
        return tractable(x)

    free, start = torch.full((5, 2), -1), torch.zeros(5, 1, 1, 1)
    settings = dict(num_steps=20, step_size=0.1, gibbs_every=gibbs_every, **settings)
    run_chain(sampler, counted, start, free, generator=seeded(), **settings)
    assert len(calls) == expected


def test_gibbs_leaves_schedule_momentum_and_acceptance_as_they_are():
    asked, infos = [], []

    def schedule(progress):
        asked.append(progress)
        return 0.4

    free, start = torch.full((50, 2), -1), torch.zeros(50, 1, 1, 1)
    run_chain(
        "mala", tractable, start, free, num_steps=5, step_size=schedule, gibbs_every=1, generator=seeded(),
        callback=lambda x, info: infos.append(info),
    )  # fmt: skip
    assert asked == [0, 0.25, 0.5, 0.75, 1] and [info.step for info in infos] == [0, 1, 2, 3, 4]
    assert (infos[0].acceptance == 1).all() and all(info.acceptance.mean() < 1 for info in infos[1:])

    def slope(x):  # without labels that matter: momentum alone moves the chain
        return ProductDistribution(x.flatten(1).sum(1)[:, None, None].expand(-1, 1, 2))

    one = torch.full((1, 1), -1)
    ends = [
        run_chain(
            "flow", slope, torch.zeros(1, 1, 1, 1), one, num_steps=9, step_size=0.1, momentum=0.5, gibbs_every=g
        )[0]
        for g in (0, 1, 4)
    ]
    assert ends[0].item() > 1.3 and torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_labels_are_drawn_at_the_temperature_of_the_chain():
    logits = torch.tensor([[[0.0, 2.0]]])

    def still(x):
        return ProductDistribution(logits.expand(len(x), -1, -1) + 0 * x.flatten(1).sum(1)[:, None, None])

    free, start = torch.full((20_000, 1), -1), torch.zeros(20_000, 1, 1, 1)
    _, y = run_chain(
        "mala", still, start, free, num_steps=1, step_size=0.1, temperature=4.0, gibbs_every=1, generator=seeded()
    )
    assert y.float().mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.5)).item(), abs=0.01)


def test_a_density_draws_once_a_step_however_often_it_is_asked():
    density = ConditionalDensity(tractable, Condition(torch.full((200, 2), -1)), gibbs_every=2, generator=seeded())
    x, drawn = torch.zeros(200, 1, 1, 1), []
    for step in range(4):
        assert density.renew(step) == (step % 2 == 0)
        for _ in range(2):
            density(x)
            drawn.append(density.condition.labels)
    assert all(each is drawn[0] for each in drawn[:4]) and all(each is drawn[4] for each in drawn[4:])
    assert not torch.equal(drawn[0], drawn[4])
