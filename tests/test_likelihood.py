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

from jem_hf.evaluation.annealing import (
    AnnealingSettings,
    LogZ,
    adapt_step_sizes,
    annealed_importance_sampling,
    reverse_annealed_importance_sampling,
)
from jem_hf.evaluation.likelihood import bits_per_dimension

COVARIANCE = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]])
PRECISION = COVARIANCE.inverse()
GAUSSIAN_LOG_Z = 0.5 * torch.logdet(2 * math.pi * COVARIANCE).item()
CENTRES, WEIGHTS, WIDTH = torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.tensor([3.0, 7.0]), 0.5
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
    """A correlated Gaussian in R^3."""
    return -0.5 * torch.einsum("ni,ij,nj->n", x, PRECISION, x)


def gaussian_samples(num, generator):
    return torch.randn(num, 3, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T


def mixture(x):
    """Two round Gaussians in R^2, eight standard deviations apart, with weights 3 and 7."""
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


CASES = {  # log density, its log Z, exact samples, base
    "gaussian": (gaussian, GAUSSIAN_LOG_Z, gaussian_samples, "normal"),
    "mixture": (mixture, MIXTURE_LOG_Z, mixture_samples, "normal"),
    "box": (box, BOX_LOG_Z, box_samples, "uniform"),
    "joint": (joint, JOINT_LOG_Z, joint_samples, "uniform"),
}


@pytest.mark.parametrize("schedule, transition", [("sigmoidal", "hmc"), ("linear", "mala")])
@pytest.mark.parametrize("case", CASES)
def test_both_directions_find_the_true_log_z(case, schedule, transition):
    log_density, truth, draw, base = CASES[case]
    settings = AnnealingSettings(
        base=base, base_std=2.0, num_temperatures=50, schedule=schedule, transition=transition, num_leapfrog=3
    )
    samples = draw(500, seeded(1))
    settings = adapt_step_sizes(log_density, (100, *samples.shape[1:]), settings, generator=seeded(2))
    forward = annealed_importance_sampling(log_density, samples.shape, settings, generator=seeded(3))
    reverse = reverse_annealed_importance_sampling(log_density, samples, settings, generator=seeded(4))
    for log_z in (forward, reverse):
        assert abs(log_z.estimate - truth) < 4 * log_z.standard_error
        assert 0.001 < log_z.standard_error < 0.5


@pytest.mark.parametrize("num_temperatures", [1, 4])
def test_weights_are_unbiased_where_chains_do_not_mix(num_temperatures):
    """Few temperatures and short steps; forward from a wide base and reverse to a narrow one have bounded weights."""
    settings = AnnealingSettings(base="normal", base_std=1.5, num_temperatures=num_temperatures, step_size=0.1)
    forward = annealed_importance_sampling(gaussian, (20_000, 3), settings, generator=seeded(0))
    samples, narrow_base = gaussian_samples(20_000, seeded(1)), replace(settings, base_std=0.3)
    reverse = reverse_annealed_importance_sampling(gaussian, samples, narrow_base, generator=seeded(2))
    for log_z in (forward, reverse):
        assert abs(log_z.estimate - GAUSSIAN_LOG_Z) < 4 * log_z.standard_error < 0.2


def narrow(x):
    """A Gaussian of width 0.05 amid [-1, 1]^32."""
    return -0.5 * (x / 0.05).square().sum(1)


def test_forward_and_reverse_bracket_a_hard_case_and_close_in():
    """With few temperatures the bounds are apart by many nats; each crosses the truth by c with probability e^-c."""
    truth = 32 * math.log(0.05 * math.sqrt(2 * math.pi))
    samples = 0.05 * torch.randn(100, 32, generator=seeded(0))
    gaps = []
    for num_temperatures in (16, 80, 400):
        settings = AnnealingSettings(num_temperatures=num_temperatures)
        settings = adapt_step_sizes(narrow, (100, 32), settings, generator=seeded(1))
        forward = annealed_importance_sampling(narrow, (100, 32), settings, generator=seeded(2))
        reverse = reverse_annealed_importance_sampling(narrow, samples, settings, generator=seeded(3))
        assert forward.log_weights.mean() < truth < reverse.log_weights.mean()
        assert forward.estimate - 4 * forward.standard_error < truth < reverse.estimate + 4 * reverse.standard_error
        gaps.append(reverse.estimate - forward.estimate)
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2], gaps
    assert abs(gaps[2]) < 4 * (forward.standard_error + reverse.standard_error)


def test_reverse_from_other_samples_falls_below_by_at_most_their_divergence():
    """Chains that stay where they are: then E log w = log Z + KL(q || base) - KL(q || p), all Gaussian."""
    settings = AnnealingSettings(base="normal", base_std=3.0, num_temperatures=1, step_size=1e-6)
    others = 3 + torch.randn(20_000, 1, generator=seeded(0))
    log_z = reverse_annealed_importance_sampling(
        lambda x: -0.5 * x.square().sum(1), others, settings, generator=seeded(1)
    )
    truth, kl_target, kl_base = 0.5 * math.log(2 * math.pi), 4.5, math.log(3) + 10 / 18 - 0.5
    error = log_z.log_weights.std() / math.sqrt(20_000)
    assert abs(log_z.log_weights.mean() - (truth + kl_base - kl_target)) < 4 * error
    assert log_z.estimate < truth - 3


def test_standard_error_is_the_spread_of_estimates():
    """200 estimates from 50 chains each: their squared z-scores are chi-squared, two-sided 1e-4."""
    settings = AnnealingSettings(base="normal", num_temperatures=20, step_size=0.5)
    log_z = annealed_importance_sampling(gaussian, (10_000, 3), settings, generator=seeded(5))
    parts = [replace(log_z, log_weights=weights) for weights in log_z.log_weights.split(50)]
    scores = torch.tensor([(part.estimate - GAUSSIAN_LOG_Z) / part.standard_error for part in parts])
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


@pytest.mark.parametrize("transition, step_size", [("hmc", 0.3), ("mala", 0.05)])
def test_reflected_chain_keeps_the_density_of_the_box(transition, step_size):
    """Kolmogorov-Smirnov for each of three pixels, false alarms 1e-4 each, after steps that cross the walls often."""
    settings = AnnealingSettings(transition=transition, num_steps=5)
    x, acceptance = settings.move(box, box_samples(4000, seeded(0)), 1.0, step_size, seeded(1))
    assert x.abs().max() <= 1 and acceptance > 0.3
    assert all(kstest(x[:, d].double(), BOX[d].cdf).pvalue > 1e-4 for d in range(3))


def test_reflected_chain_accepts_in_many_dimensions():
    x = torch.empty(8, 3, 32, 32).uniform_(-1, 1, generator=seeded(0))
    end, acceptance = AnnealingSettings().move(lambda x: 0 * x.flatten(1).sum(1), x, 1.0, 0.2, seeded(1))
    assert acceptance > 0.999
    assert (end - x).square().mean() > 0.1 and end.abs().max() <= 1


@pytest.mark.parametrize("guess", [0.001, 10.0])
def test_adapted_steps_meet_the_target(guess):
    """Acceptance over temperatures: mean within 0.05 of the target, and never far from it."""
    settings = AnnealingSettings(num_temperatures=100, step_size=guess)
    settings = adapt_step_sizes(narrow, (200, 32), settings, generator=seeded(0))
    assert len(settings.step_sizes) == 100
    acceptance = annealed_importance_sampling(narrow, (200, 32), settings, generator=seeded(1)).acceptance
    assert abs(acceptance.mean() - 0.65) < 0.05
    assert acceptance.min() > 0.4


def test_adaptation_recovers_from_steps_that_diverge():
    settings = AnnealingSettings(base="normal", num_temperatures=50, step_size=1e6)
    settings = adapt_step_sizes(gaussian, (100, 3), settings, generator=seeded(0))
    log_z = annealed_importance_sampling(gaussian, (100, 3), settings, generator=seeded(1))
    assert log_z.acceptance.min() > 0.3 and log_z.samples.isfinite().all()


def test_schedules():
    linear = AnnealingSettings(num_temperatures=4, schedule="linear").betas
    sigmoidal = AnnealingSettings(num_temperatures=4).betas
    assert linear == [0, 0.25, 0.5, 0.75, 1]
    sigmoid = [1 / (1 + math.exp(-u)) for u in (-4, -2, 0, 2, 4)]
    assert sigmoidal == pytest.approx([(s - sigmoid[0]) / (sigmoid[4] - sigmoid[0]) for s in sigmoid])


def test_uniform_density_has_eight_bits():
    settings = AnnealingSettings(num_temperatures=3)
    flat = lambda x: 5 + 0 * x.flatten(1).sum(1)  # noqa: E731
    log_z = annealed_importance_sampling(flat, (4, 3, 8, 8), settings, generator=seeded(0))
    assert log_z.estimate == pytest.approx(192 * math.log(2) + 5) and log_z.standard_error < 1e-6
    images = torch.randint(256, (10, 3, 8, 8), generator=seeded(1), dtype=torch.uint8)
    bits = bits_per_dimension(flat, images, log_z, batch_size=4, generator=seeded(2))
    torch.testing.assert_close(bits.per_image, torch.full((10,), 8.0, dtype=torch.float64))
    assert bits.estimate == bits.low == bits.high == pytest.approx(8)


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
    assert bits_per_dimension(density, images, log_z, generator=seeded(1)).estimate == pytest.approx(exact, abs=1e-3)
    bits = bits_per_dimension(density, images, log_z, higher, generator=seeded(1))
    margin = 1.96 * log_z.standard_error
    assert bits.estimate == pytest.approx(exact + 0.05 / math.log(2), abs=1e-3)
    assert bits.low == pytest.approx(exact - margin / math.log(2), abs=1e-3)
    assert bits.high == pytest.approx(exact + (0.1 + margin) / math.log(2), abs=1e-3)


def test_model_over_the_box(model, tensors):
    """A network with labels: both directions agree, without global randomness or gradients of parameters."""
    shape = (8, 3, 8, 8)
    settings = AnnealingSettings(num_temperatures=30, num_leapfrog=2)
    state = torch.get_rng_state()
    settings = adapt_step_sizes(model.log_marginal, shape, settings, generator=seeded(0))
    seen = []
    forward, again = (
        annealed_importance_sampling(
            model.log_marginal, shape, settings, generator=seeded(1), callback=lambda *args: seen.append(args)
        )
        for _ in range(2)
    )
    reverse = reverse_annealed_importance_sampling(model.log_marginal, forward.samples, settings, generator=seeded(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(forward.log_weights, again.log_weights)
    assert [beta for beta, _ in seen[:30]] == settings.betas[1:]
    assert torch.equal(seen[29][1], forward.log_weights) and not torch.equal(seen[0][1], seen[29][1])
    assert forward.samples.shape == shape and forward.samples.abs().max() <= 1
    assert abs(forward.estimate - reverse.estimate) < 4 * math.hypot(forward.standard_error, reverse.standard_error)
    bits = bits_per_dimension(model.log_marginal, tensors.images, forward, reverse, generator=seeded(3))
    assert bits.per_image.shape == (48,)
    assert bits.low < bits.estimate < bits.high
    assert bits.estimate == pytest.approx(8, abs=0.1)  # weights at their start: nearly uniform


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"base": "laplace"}, "unknown base 'laplace'"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"transition": "gibbs"}, "unknown transition 'gibbs'"),
        ({"num_temperatures": 0}, "num_temperatures is 1 or more"),
        ({"num_leapfrog": 0}, "num_leapfrog is 1 or more"),
        ({"base_std": 0.0}, "above 0"),
        ({"step_size": -0.1}, "above 0"),
        ({"num_temperatures": 3, "step_size": (0.1, 0.1)}, "2 step sizes for 3 temperatures"),
    ],
)
def test_wrong_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AnnealingSettings(**kwargs)


def test_wrong_arguments_are_named():
    settings = AnnealingSettings(num_temperatures=2)
    with pytest.raises(ValueError, match="two chains or more"):
        annealed_importance_sampling(box, (1, 3), settings)
    with pytest.raises(ValueError, match=r"shape \(4, 3\) for 4 images"):
        annealed_importance_sampling(lambda x: x, (4, 3), settings)
    with pytest.raises(ValueError, match="not finite"):
        annealed_importance_sampling(lambda x: x.sum(1) * torch.nan, (4, 3), settings)
    with pytest.raises(ValueError, match="beyond"):
        reverse_annealed_importance_sampling(box, torch.full((4, 3), 1.5), settings)
    with pytest.raises(ValueError, match="target_acceptance"):
        adapt_step_sizes(box, (4, 3), settings, target_acceptance=65)
    log_z = annealed_importance_sampling(box, (4, 3), settings)
    with pytest.raises(ValueError, match="uint8"):
        bits_per_dimension(box, torch.zeros(2, 3), log_z)
    with pytest.raises(ValueError, match="LogZ"):
        bits_per_dimension(box, torch.zeros(2, 3, dtype=torch.uint8))
