"""
Log Z against densities whose integral is known.

Seeds are fixed. Where an estimate is compared with the truth it may be 4 standard errors off, which a right sampler is
by chance once in 16,000 comparisons; margins are named where they are others.
"""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2, kstest, norm, truncnorm

from jem_hf.evaluation.likelihood import (
    LogZ,
    adapt_step_sizes,
    annealed_importance_sampling,
    bits_per_dimension,
    inverse_temperatures,
    reflected_hmc,
    uniform_images,
)

COVARIANCE = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]]) / 16  # walls at four deviations
PRECISION = COVARIANCE.inverse()
GAUSSIAN_LOG_Z = 0.5 * torch.logdet(2 * math.pi * COVARIANCE).item()
CENTRES, WEIGHTS, WIDTH = torch.tensor([[-0.4, 0.0], [0.4, 0.2]]), torch.tensor([3.0, 7.0]), 0.1
MIXTURE_LOG_Z = math.log(10) + math.log(2 * math.pi * WIDTH**2)
BOX_MEANS, BOX_WIDTHS = (0.9, -0.2, -1.1), (0.3, 0.5, 0.4)
BOX = [truncnorm((-1 - m) / s, (1 - m) / s, m, s) for m, s in zip(BOX_MEANS, BOX_WIDTHS)]
BOX_LOG_Z = sum(
    math.log(norm.cdf(1, m, s) - norm.cdf(-1, m, s)) + math.log(s * math.sqrt(2 * math.pi))
    for m, s in zip(BOX_MEANS, BOX_WIDTHS)
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(x):
    """A correlated Gaussian, all but 2e-4 of it in [-1, 1]^3."""
    return -0.5 * torch.einsum("ni,ij,nj->n", x, PRECISION, x)


def gaussian_samples(num, generator):
    return (torch.randn(num, 3, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T).clamp(-1, 1)


def mixture(x):
    """Two round Gaussians in [-1, 1]^2, eight standard deviations apart, with weights 3 and 7."""
    exponents = -0.5 * ((x[:, None] - CENTRES) / WIDTH).square().sum(-1)
    return (WEIGHTS.log() + exponents).logsumexp(1)


def mixture_samples(num, generator):
    which = torch.multinomial(WEIGHTS, num, replacement=True, generator=generator)
    return CENTRES[which] + WIDTH * torch.randn(num, 2, generator=generator)


def box(x):
    """Independent Gaussians in [-1, 1]^3, two of them cut off near their mode."""
    return -0.5 * ((x - torch.tensor(BOX_MEANS)) / torch.tensor(BOX_WIDTHS)).square().sum(1)


def box_samples(num, generator):
    quantiles = torch.rand(num, 3, generator=generator, dtype=torch.float64).numpy()
    return torch.stack([torch.tensor(d.ppf(q)) for d, q in zip(BOX, quantiles.T)], dim=1).float().clamp(-1, 1)


def joint(x):
    """log p~(x) of two pixels and two labels of three values: a product of two mixtures of three Gaussians."""
    centres = torch.tensor([[[-0.8, 0.3], [0.2, 0.9], [0.5, -0.5]], [[0.0, 0.0], [1.2, -0.4], [-0.6, -0.6]]])
    offsets = torch.tensor([[0.0, 1.0, -0.5], [0.3, 0.0, 0.6]])
    logits = offsets - 6 * (x.flatten(1)[:, None, None] - centres).square().sum(-1)
    return logits.logsumexp(-1).sum(-1)


def joint_grid():
    """Midpoints (512^2, 1, 1, 2) of a grid over the box, and the log of a cell's area."""
    line = (torch.arange(512, dtype=torch.float64) + 0.5) / 256 - 1
    return torch.cartesian_prod(line, line).view(-1, 1, 1, 2).float(), -2 * math.log(256)


GRID, LOG_CELL = joint_grid()
JOINT_LOG_Z = joint(GRID).double().logsumexp(0).item() + LOG_CELL


def joint_samples(num, generator):
    cells = torch.multinomial(joint(GRID).double().exp(), num, replacement=True, generator=generator)
    return GRID[cells] + (torch.rand(num, 1, 1, 2, generator=generator) - 0.5) / 256


CASES = {  # log density, its log Z, exact samples
    "gaussian": (gaussian, GAUSSIAN_LOG_Z, gaussian_samples),
    "mixture": (mixture, MIXTURE_LOG_Z, mixture_samples),
    "box": (box, BOX_LOG_Z, box_samples),
    "joint": (joint, JOINT_LOG_Z, joint_samples),
}


def from_noise(log_density, shape, steps, generator, **kwargs):
    return annealed_importance_sampling(log_density, uniform_images(shape, generator), steps, generator, **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_both_directions_find_the_true_log_z(case):
    log_density, truth, draw = CASES[case]
    samples = draw(500, seeded(1))
    steps = adapt_step_sizes(log_density, (100, *samples.shape[1:]), 50, seeded(2))
    forward = from_noise(log_density, samples.shape, steps, seeded(3))
    reverse = annealed_importance_sampling(log_density, samples, steps, seeded(4), reverse=True)
    for log_z in (forward, reverse):
        assert abs(log_z.estimate - truth) < 4 * log_z.standard_error
        assert 0.001 < log_z.standard_error < 0.5


@pytest.mark.parametrize("num_temperatures", [1, 4])
def test_weights_are_unbiased_where_chains_do_not_mix(num_temperatures):
    """Few temperatures and short steps; a Gaussian of width 0.5, of which the box has the middle: bounded weights."""
    middle, steps = truncnorm(-2, 2, 0, 0.5), [0.01] * num_temperatures
    truth = 3 * math.log(0.5 * math.sqrt(2 * math.pi) * (norm.cdf(2) - norm.cdf(-2)))
    log_density = lambda x: -2 * x.square().sum(1)  # noqa: E731
    forward = from_noise(log_density, (20_000, 3), steps, seeded(0))
    quantiles = torch.rand(20_000, 3, generator=seeded(1), dtype=torch.float64)
    samples = torch.tensor(middle.ppf(quantiles)).float().clamp(-1, 1)
    reverse = annealed_importance_sampling(log_density, samples, steps, seeded(2), reverse=True)
    for log_z in (forward, reverse):
        assert abs(log_z.estimate - truth) < 4 * log_z.standard_error < 0.2


def narrow(x):
    """A Gaussian of width 0.05 amid [-1, 1]^32."""
    return -0.5 * (x / 0.05).square().sum(1)


@pytest.mark.slow
def test_forward_and_reverse_bracket_a_hard_case_and_close_in():
    """With few temperatures the bounds are apart by many nats; each crosses the truth by c with probability e^-c."""
    truth = 32 * math.log(0.05 * math.sqrt(2 * math.pi))
    samples = 0.05 * torch.randn(100, 32, generator=seeded(0))
    gaps = []
    for num_temperatures in (16, 80, 400):
        steps = adapt_step_sizes(narrow, (100, 32), num_temperatures, seeded(1))
        forward = from_noise(narrow, (100, 32), steps, seeded(2))
        reverse = annealed_importance_sampling(narrow, samples, steps, seeded(3), reverse=True)
        assert forward.log_weights.mean() < truth < reverse.log_weights.mean()
        assert forward.estimate - 4 * forward.standard_error < truth < reverse.estimate + 4 * reverse.standard_error
        gaps.append(reverse.estimate - forward.estimate)
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2], gaps
    assert abs(gaps[2]) < 4 * (forward.standard_error + reverse.standard_error)


def test_reverse_from_other_samples_falls_below_by_at_most_their_divergence():
    """Chains that stay where they are: then E log w = log Z + KL(q || uniform) - KL(q || p), q uniform in [0, 1]."""
    width, others = 1 / 6, torch.rand(20_000, 1, generator=seeded(0))
    log_density = lambda x: -0.5 * (x / width).square().sum(1)  # noqa: E731
    log_z = annealed_importance_sampling(log_density, others, [1e-6], seeded(1), reverse=True)
    truth = math.log(width * math.sqrt(2 * math.pi))
    kl_uniform, kl_target = math.log(2), truth + (1 / 3) / (2 * width**2)
    error = log_z.log_weights.std() / math.sqrt(20_000)
    assert abs(log_z.log_weights.mean() - (truth + kl_uniform - kl_target)) < 4 * error
    assert log_z.estimate < truth - 3


def test_standard_error_is_the_spread_of_estimates():
    """200 estimates from 50 chains each: their squared z-scores are chi-squared, two-sided 1e-4."""
    steps = adapt_step_sizes(box, (100, 3), 20, seeded(4))
    log_z = from_noise(box, (10_000, 3), steps, seeded(5))
    parts = [replace(log_z, log_weights=weights) for weights in log_z.log_weights.split(50)]
    scores = torch.tensor([(part.estimate - BOX_LOG_Z) / part.standard_error for part in parts])
    assert chi2.ppf(5e-5, 200) < scores.square().sum() < chi2.ppf(1 - 5e-5, 200)


def test_summary_of_weights_by_hand():
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    forward = LogZ(weights.log(), weights, weights, reverse=False)
    reverse = replace(forward, reverse=True)
    assert forward.estimate == pytest.approx(math.log(2))
    assert reverse.estimate == pytest.approx(math.log(1.5))
    assert forward.effective_sample_size == pytest.approx(16 / 10)
    assert reverse.effective_sample_size == pytest.approx((4 / 3) ** 2 / (10 / 9))
    assert forward.standard_error == pytest.approx(math.sqrt(2) / math.sqrt(2) / 2)  # std / sqrt(N) / mean


def test_reflected_chain_keeps_the_density_of_the_box():
    """Kolmogorov-Smirnov for each of three pixels, false alarms 1e-4 each, after steps that cross the walls often."""
    x, generator = box_samples(4000, seeded(0)), seeded(1)
    for _ in range(5):
        x, acceptance = reflected_hmc(box, x, 1.0, 0.3, generator)
    assert x.abs().max() <= 1 and acceptance > 0.3
    assert all(kstest(x[:, d].double(), BOX[d].cdf).pvalue > 1e-4 for d in range(3))


def test_reflected_chain_accepts_in_many_dimensions():
    x = uniform_images((8, 3, 32, 32), seeded(0))
    end, acceptance = reflected_hmc(lambda x: 0 * x.flatten(1).sum(1), x, 1.0, 0.2, seeded(1))
    assert acceptance > 0.999
    assert (end - x).square().mean() > 0.1 and end.abs().max() <= 1


def test_adapted_steps_meet_the_target():
    """Acceptance over temperatures: mean within 0.05 of the target, and never far from it."""
    steps = adapt_step_sizes(narrow, (200, 32), 100, seeded(0))
    assert len(steps) == 100
    acceptance = from_noise(narrow, (200, 32), steps, seeded(1)).acceptance
    assert abs(acceptance.mean() - 0.65) < 0.05
    assert acceptance.min() > 0.4


def test_adaptation_recovers_from_a_first_step_that_diverges():
    """A Gaussian of width 0.001: trajectories of steps of 0.1, the first tried, are rejected."""
    log_density = lambda x: -0.5 * (x / 0.001).square().sum(1)  # noqa: E731
    assert reflected_hmc(log_density, torch.zeros(100, 3), 1.0, 0.1, seeded(0))[1] < 0.01
    log_z = from_noise(log_density, (100, 3), adapt_step_sizes(log_density, (100, 3), 50, seeded(0)), seeded(1))
    assert log_z.acceptance.min() > 0.3 and log_z.samples.isfinite().all()


def test_inverse_temperatures():
    sigmoid = [1 / (1 + math.exp(-u)) for u in (-4, -2, 0, 2, 4)]
    assert inverse_temperatures(4) == pytest.approx([(s - sigmoid[0]) / (sigmoid[4] - sigmoid[0]) for s in sigmoid])


def test_uniform_density_has_eight_bits():
    flat = lambda x: 5 + 0 * x.flatten(1).sum(1)  # noqa: E731
    log_z = from_noise(flat, (4, 3, 8, 8), [0.1] * 3, seeded(0))
    assert log_z.estimate == pytest.approx(192 * math.log(2) + 5) and log_z.standard_error < 1e-6
    images = torch.randint(256, (10, 3, 8, 8), generator=seeded(1), dtype=torch.uint8)
    for each in (images, images[:1], images[1:2]):
        bits = bits_per_dimension(flat, each, log_z, batch_size=4, generator=seeded(2))
        assert bits["bits_per_dimension"] == bits["low"] == bits["high"] == pytest.approx(8)


def test_bits_of_a_gaussian_are_those_of_its_cells():
    """One pixel whose 256 probabilities are known; two estimates of log Z, of which the bounds are by hand."""
    mean, width = 0.3, 0.4
    edges = norm.cdf([i / 128 - 1 for i in range(257)], mean, width)
    mass = torch.tensor(edges[1:] - edges[:-1])
    values = torch.multinomial(mass, 5000, replacement=True, generator=seeded(0))
    log_z = LogZ(torch.tensor([0.0, 0.02]).double(), values, mass, reverse=False)
    log_z = replace(log_z, log_weights=log_z.log_weights - log_z.estimate + math.log(width * math.sqrt(2 * math.pi)))
    higher = replace(log_z, log_weights=log_z.log_weights + 0.1)
    images = values.to(torch.uint8).view(-1, 1, 1, 1)
    density = lambda x: -0.5 * ((x.flatten(1)[:, 0] - mean) / width) ** 2  # noqa: E731
    exact = -mass[values].log2().mean().item()
    bits = bits_per_dimension(density, images, log_z, generator=seeded(1))
    assert bits["bits_per_dimension"] == pytest.approx(exact, abs=1e-3)
    bits = bits_per_dimension(density, images, log_z, higher, generator=seeded(1))
    margin = 1.96 * log_z.standard_error
    assert bits["bits_per_dimension"] == pytest.approx(exact + 0.05 / math.log(2), abs=1e-3)
    assert bits["low"] == pytest.approx(exact - margin / math.log(2), abs=1e-3)
    assert bits["high"] == pytest.approx(exact + (0.1 + margin) / math.log(2), abs=1e-3)


@pytest.mark.slow
def test_model_over_the_box(model, tensors):
    """A network with labels: both directions agree, without global randomness or gradients of parameters."""
    shape = (8, 3, 8, 8)
    state = torch.get_rng_state()
    steps = adapt_step_sizes(model.log_marginal, shape, 30, seeded(0))
    seen = []
    forward, again = (
        from_noise(model.log_marginal, shape, steps, seeded(1), callback=lambda *args: seen.append(args))
        for _ in range(2)
    )
    reverse = annealed_importance_sampling(model.log_marginal, forward.samples, steps, seeded(2), reverse=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(forward.log_weights, again.log_weights)
    assert [beta for beta, _ in seen[:30]] == inverse_temperatures(30)[1:]
    assert torch.equal(seen[29][1], forward.log_weights) and not torch.equal(seen[0][1], seen[29][1])
    assert forward.samples.shape == shape and forward.samples.abs().max() <= 1
    assert abs(forward.estimate - reverse.estimate) < 4 * math.hypot(forward.standard_error, reverse.standard_error)
    bits = bits_per_dimension(model.log_marginal, tensors.images, forward, reverse, generator=seeded(3))
    assert bits["low"] < bits["bits_per_dimension"] < bits["high"]
    assert bits["bits_per_dimension"] == pytest.approx(8, abs=0.1)  # weights at their start: nearly uniform


def test_wrong_arguments_are_named():
    steps, generator = [0.1, 0.1], seeded(0)
    with pytest.raises(ValueError, match="two chains or more"):
        from_noise(box, (1, 3), steps, generator)
    with pytest.raises(ValueError, match=r"shape \(4, 3\) for 4 images"):
        from_noise(lambda x: x, (4, 3), steps, generator)
    with pytest.raises(ValueError, match="not finite"):
        from_noise(lambda x: x.sum(1) * torch.nan, (4, 3), steps, generator)
    with pytest.raises(ValueError, match="beyond"):
        annealed_importance_sampling(box, torch.full((4, 3), 1.5), steps, generator, reverse=True)
    with pytest.raises(ValueError, match="num_temperatures is 1 or more"):
        adapt_step_sizes(box, (4, 3), 0, generator)
    log_z = from_noise(box, (4, 3), steps, generator)
    with pytest.raises(ValueError, match="uint8"):
        bits_per_dimension(box, torch.zeros(2, 3), log_z)
    with pytest.raises(ValueError, match="LogZ"):
        bits_per_dimension(box, torch.zeros(2, 3, dtype=torch.uint8))
