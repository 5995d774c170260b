"""Mixed HMC against an exact joint. Each statistical test fails a right sampler with probability .001."""

import pytest
import torch
from targets import FALSE_ALARM, MixedTarget, goodness_of_fit

from jem_hf.models.image_samplers_jem import hmc, mixed_hmc
from jem_hf.models.label_samplers_jem import one_hot


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "settings, temperature, given",
    [
        (dict(step_size=0.8, num_leapfrog=3, num_flips=1), 1.0, [-1, -1]),
        (dict(step_size=0.5, num_leapfrog=4, num_flips=3), 1.0, [-1, -1]),
        (dict(step_size=0.8, num_leapfrog=3, num_flips=2), 2.0, [-1, -1]),
        (dict(step_size=0.8, num_leapfrog=3, num_flips=1), 1.0, [-1, 2]),
    ],
)
def test_samples_follow_the_joint(settings, temperature, given):
    """Cells of both labels and of the quantiles of x given them, from a start far away."""
    target, given = MixedTarget([2, 3]), torch.tensor(given)
    x, labels, info = mixed_hmc(
        target.log_joint, torch.full((8000, 1), 2.0), given.expand(8000, -1), target.num_values, num_steps=40,
        temperature=temperature, generator=seeded(), **settings,
    )  # fmt: skip
    probabilities = target.joint_probabilities(temperature, given)
    assert goodness_of_fit(target.joint_cells(x, labels, temperature), probabilities) > FALSE_ALARM
    assert info.acceptance[-1].mean() < 0.98


def test_one_trajectory_leaves_the_joint_stationary():
    """From exact draws, with a step so large that a third is rejected."""
    target = MixedTarget([2, 3, 2], seed=3)
    probabilities = target.joint_probabilities(num_bins=1)
    labels = target.vectors[torch.multinomial(probabilities, 50_000, replacement=True, generator=seeded(1))]
    mean, scale = target.moments(one_hot(labels, target.num_values))
    x = (mean + scale * torch.randn(50_000, generator=seeded(2)))[:, None]
    x, last, info = mixed_hmc(
        target.log_joint, x, torch.full_like(labels, -1), target.num_values, num_steps=1, step_size=1.2,
        num_leapfrog=5, num_flips=2, start=labels, generator=seeded(),
    )  # fmt: skip
    assert 0.4 < info.acceptance.mean() < 0.9 and (last != labels).any(1).float().mean() > 0.2
    assert goodness_of_fit(target.joint_cells(x, last, 1.0), target.joint_probabilities()) > FALSE_ALARM


def test_labels_alone_are_never_rejected():
    """Flips conserve the total energy: where the leapfrog steps are exact, on a density flat in x, all is accepted."""
    target = MixedTarget([2, 3])

    def log_joint(x, one_hot):
        return target.log_prob(one_hot) + 0 * x.sum(1)

    _, labels, info = mixed_hmc(
        log_joint, torch.zeros(8000, 1), torch.full((8000, 2), -1), target.num_values, num_steps=20, step_size=1.0,
        num_leapfrog=3, generator=seeded(),
    )  # fmt: skip
    assert (info.acceptance > 0.999).all()
    assert goodness_of_fit(target.cells(labels), target.probabilities()) > FALSE_ALARM


def test_without_free_labels_it_is_hmc():
    target = MixedTarget([2, 3])
    labels, x = torch.tensor([[1, 2]]).repeat(500, 1), torch.zeros(500, 1)
    settings = dict(num_steps=30, step_size=0.5, num_leapfrog=3)
    _, last, info = mixed_hmc(target.log_joint, x, labels, target.num_values, generator=seeded(), **settings)
    fixed = one_hot(labels, target.num_values)
    _, plain = hmc(lambda x: target.log_joint(x, fixed), x, generator=seeded(1), **settings)
    assert torch.equal(last, labels)
    assert abs(info.acceptance.mean() - plain.acceptance.mean()) < 0.01
    assert abs(info.energy[-1].mean() - plain.energy[-1].mean()) < 0.2


def test_bounds_truncate_the_images():
    target = MixedTarget([2, 3])
    x, _, info = mixed_hmc(
        target.log_joint, torch.zeros(500, 1), torch.full((500, 2), -1), target.num_values, num_steps=30,
        step_size=0.3, num_leapfrog=4, bounds=(-0.5, 0.5), generator=seeded(),
    )  # fmt: skip
    assert x.abs().max() <= 0.5 and (info.acceptance == 0).any() and info.acceptance.mean() > 0.2
