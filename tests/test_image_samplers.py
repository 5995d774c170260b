"""Samplers of images against closed forms. Each statistical test fails a right sampler with probability .001."""

import math

import pytest
import torch
from scipy.stats import chi2, kstest, norm, truncnorm
from targets import FALSE_ALARM

from jem_hf.models.ancestral_jem import ancestral, first_step, replay
from jem_hf.models.chains_jem import linear
from jem_hf.models.image_samplers_jem import flow, hmc, langevin, mala


def log_gaussian(x):
    return -0.5 * x.flatten(1).square().sum(1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "sampler, settings, variance",
    [
        (langevin, dict(step_size=0.5), 1 / (1 - 0.25)),
        (langevin, dict(step_size=0.5, temperature=2.0), 2 / (1 - 0.25)),
        (langevin, dict(step_size=0.5, noise_scale=0.7), 0.49 / (1 - 0.25)),
        (langevin, dict(step_size=0.5, noise_scale=0.7, temperature=2.0), 0.98 / (1 - 0.25)),
        (flow, dict(step_size=0.5, temperature=2.0), 2 / (1 - 0.25)),
        (mala, dict(step_size=1.0), 1.0),
        (mala, dict(step_size=1.0, temperature=0.5), 0.5),
        (hmc, dict(step_size=1.5, num_leapfrog=4), 1.0),
        (hmc, dict(step_size=1.5, num_leapfrog=4, temperature=2.0), 2.0),
    ],
)
def test_standard_normal(sampler, settings, variance):
    """The variance at which x <- (1 - h) x + noise is stationary where nothing is rejected, the temperature else."""
    x, _ = sampler(log_gaussian, torch.zeros(20_000, 1), num_steps=40, generator=seeded(), **settings)
    assert kstest(x[:, 0].numpy(), norm(scale=variance**0.5).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    "sampler, settings", [(mala, dict(step_size=0.4)), (hmc, dict(step_size=0.7, num_leapfrog=3))]
)
def test_two_modes(sampler, settings):
    weights, means, scales = torch.tensor([0.3, 0.7]), torch.tensor([-1.5, 1.0]), torch.tensor([0.5, 0.8])

    def log_density(x):
        return (weights.log() - scales.log() - 0.5 * ((x - means) / scales) ** 2).logsumexp(1)

    x, _ = sampler(log_density, torch.zeros(20_000, 1), num_steps=150, generator=seeded(), **settings)
    quantiles = (weights * torch.special.ndtr((x - means) / scales)).sum(1)
    assert kstest(quantiles.numpy(), "uniform").pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    "sampler, settings", [(mala, dict(step_size=0.4)), (hmc, dict(step_size=0.7, num_leapfrog=3))]
)
def test_correlated_pixels(sampler, settings):
    """Mean and covariance at once: whitened, every direction is a standard normal and the length is chi-square."""
    mean = torch.tensor([1.0, -0.5, 0.0])
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.5, 0.3, 0.6]])
    precision = (factor @ factor.T).inverse()

    def log_density(x):
        away = x.flatten(1) - mean
        return -0.5 * ((away @ precision) * away).sum(1)

    x, _ = sampler(log_density, torch.zeros(20_000, 3, 1, 1), num_steps=100, generator=seeded(), **settings)
    white = (x.flatten(1) - mean) @ factor.inverse().T
    lengths = kstest(white.square().sum(1).numpy(), chi2(3).cdf).pvalue
    assert min(lengths, *(kstest(each.numpy(), "norm").pvalue for each in white.T)) > FALSE_ALARM / 4


@pytest.mark.parametrize(
    "sampler, settings", [(mala, dict(step_size=0.3)), (hmc, dict(step_size=0.3, num_leapfrog=4))]
)
def test_bounds_truncate_exactly(sampler, settings):
    x, _ = sampler(
        log_gaussian, torch.zeros(20_000, 1), num_steps=60, bounds=(-0.5, 1.0), generator=seeded(), **settings
    )
    assert x.min() >= -0.5 and x.max() <= 1
    assert kstest(x[:, 0].numpy(), truncnorm(-0.5, 1.0).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    "sampler, settings",
    [(langevin, dict(noise_scale=1.0)), (langevin, {}), (flow, {})],
)
def test_bounds_clamp_where_nothing_is_rejected(sampler, settings):
    x, info = sampler(
        lambda x: x.flatten(1).sum(1), torch.zeros(50, 4), num_steps=20, step_size=0.3, bounds=(-1, 1),
        generator=seeded(), **settings,
    )  # fmt: skip
    assert x.min() >= -1 and (x == 1).any() and info.saturated[0].max() == 0 and info.saturated[-1].mean() > 0.2


def test_mala_accepts_by_the_langevin_transition_densities():
    """One leapfrog step is one Langevin step: move and probability of Roberts and Tweedie 1996, at temperature 2."""

    def log_density(x):
        return -(x**4).sum(1) + x[:, 0]

    def gradient(x):
        return -4 * x**3 + torch.tensor([1.0, 0.0])

    def log_transition(x, y):
        return -(y - x - h * gradient(x)).square().sum(1) / (4 * h * temperature)

    h, temperature = 0.1, 2.0
    x = torch.randn(200, 2, generator=seeded(1))
    moved, info = mala(log_density, x, num_steps=1, step_size=h, temperature=temperature, generator=seeded())
    noise = torch.empty_like(x).normal_(generator=seeded())
    proposal = x + h * gradient(x) + (2 * h * temperature) ** 0.5 * noise
    ratio = (log_density(proposal) - log_density(x)) / temperature
    ratio = ratio + log_transition(proposal, x) - log_transition(x, proposal)
    torch.testing.assert_close(info.acceptance[0], ratio.exp().clamp(max=1), rtol=1e-4, atol=1e-5)
    stayed = (moved == x).all(1)
    torch.testing.assert_close(moved[~stayed], proposal[~stayed])
    assert 0 < stayed.sum() < 100


def test_a_density_that_is_not_a_number_is_never_entered():
    x, info = hmc(
        lambda x: x.log().sum(1) - x.sum(1), torch.ones(500, 1), num_steps=30, step_size=0.5, generator=seeded()
    )
    assert (x > 0).all() and info.energy.isfinite().all() and (info.acceptance == 0).any()


class GaussianField:
    """What Equilibrium Matching teaches of data from N(mean, scale^2), told the time: c(t) E[data - noise | x]."""

    def __init__(self, num_steps, mean=1.5, scale=0.6, decay_start=0.8, first=0):
        self.num_steps, self.mean, self.scale, self.decay_start = num_steps, mean, scale, decay_start
        self.first = first

    def renew(self, step, temperature=1.0):
        self.t = (self.first + step) / self.num_steps

    def __call__(self, x):
        t, s = self.t, self.scale
        slope = (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2)
        pace = min(1, (1 - t) / (1 - self.decay_start))
        return pace * (self.mean * x + slope * (x**2 / 2 - t * self.mean * x)).sum(1)


@pytest.mark.parametrize("eta, decay_start", [(0.0, 0.8), (0.5, 0.8), (1.0, 0.8), (1.0, 0.5), (linear(1, 0), 0.8)])
def test_ancestral_steps_sample_the_data_however_much_noise_is_fresh(eta, decay_start):
    field, start = GaussianField(500, decay_start=decay_start), torch.randn(5000, 1, generator=seeded(1))
    settings = dict(num_steps=500, eta=eta, decay_start=decay_start, generator=seeded())
    x, _ = ancestral(field, start, **settings)
    assert kstest(x[:, 0].numpy(), norm(1.5, 0.6).cdf).pvalue > FALSE_ALARM
    correlation = torch.corrcoef(torch.stack([x[:, 0], start[:, 0]]))[0, 1]
    assert correlation > 0.999 if eta == 0 else correlation < 0.9


def test_with_all_noise_fresh_ancestral_steps_narrow_the_data():
    """x <- s E[data | x] + (1 - s) noise, whose variance follows from that of the step before."""
    num_steps, variance = 20, 1.0
    for step in range(num_steps):
        t, s = step / num_steps, (step + 1) / num_steps
        share = t * 0.36 / (t**2 * 0.36 + (1 - t) ** 2)  # of x - t mean that is the data's
        variance = s**2 * share**2 * variance + (1 - s) ** 2
    start = torch.randn(5000, 1, generator=seeded(1))
    x, _ = ancestral(GaussianField(num_steps), start, num_steps=num_steps, eta=math.inf, generator=seeded())
    assert kstest(x[:, 0].numpy(), norm(1.5, variance**0.5).cdf).pvalue > FALSE_ALARM and variance < 0.2
    x, _ = ancestral(log_gaussian, start, num_steps=1, reach=1.3)
    torch.testing.assert_close(x, -0.3 * start)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_replay_moves_what_is_known_as_the_data_moved(eta):
    """By all of the difference of two means from pure noise, by less of it from less; by nothing where both agree."""
    known, noise = torch.randn(2, 50, 1, generator=seeded(1))

    def moved(mean, strength):
        first = first_step(20, strength)
        before, after = (GaussianField(20, each, first=first) for each in (1.5, mean))
        settings = dict(num_steps=20, strength=strength, eta=eta, generator=seeded())
        return replay(before, after, known, noise, **settings)[0] - known

    torch.testing.assert_close(moved(1.5, 0.7), torch.zeros_like(known))
    torch.testing.assert_close(moved(-0.5, 1.0), torch.full_like(known, -2.0))
    half, more = moved(-0.5, 0.5), moved(-0.5, 0.8)
    assert (more > -2).all() and (more < half).all() and (half < 0).all()


def test_replay_takes_the_steps_that_are_left():
    shape, seen = (2, 1), []
    for strength in (1.0, 0.5, 0.49, 0.01):
        settings = dict(num_steps=10, strength=strength, callback=lambda x, info: seen.append(info.step))
        _, info = replay(log_gaussian, log_gaussian, torch.zeros(shape), torch.ones(shape), **settings)
        assert len(info.step) == 10 - first_step(10, strength)
    assert [step for step in seen if step == 0] == [0] * 4 and len(seen) == 10 + 5 + 4 + 1


def test_ancestral_steps_hold_what_they_take_for_the_data_within_bounds():
    x, _ = ancestral(GaussianField(20), torch.randn(500, 1), num_steps=20, bounds=(-1, 1), generator=seeded())
    assert x.max() == 1 and (x == 1).float().mean() > 0.2  # without them most are beyond


def test_nesterov_is_its_textbook_recursion():
    """y = x + h g(x), x <- y + m (y - y before), on a quadratic; without momentum (1 - h c)^n x."""
    curvature, h, m = torch.tensor([1.0, 0.1]), 0.5, 0.8

    def log_density(x):
        return -0.5 * (curvature * x**2).sum(1)

    start = torch.tensor([[1.0, 2.0]])
    plain, _ = flow(log_density, start, num_steps=30, step_size=h)
    torch.testing.assert_close(plain, (1 - h * curvature) ** 30 * start)
    x, before = start, start
    for _ in range(30):
        y = x - h * curvature * x
        x, before = y + m * (y - before), y
    fast, _ = flow(log_density, start, num_steps=30, step_size=h, momentum=m)
    torch.testing.assert_close(fast, x)
    assert log_density(fast) > log_density(plain)


def test_tolerance_stops_when_all_chains_have_arrived():
    start = torch.tensor([[1.0, 1.0], [0.1, 0.1]])  # the gradient of a pixel is the pixel: .5^n at step n
    x, info = flow(log_gaussian, start, num_steps=50, step_size=0.5, tolerance=0.01)
    assert len(info.step) == math.ceil(math.log(0.01, 0.5))
    torch.testing.assert_close(x, start * 0.5 ** len(info.step))


@pytest.mark.parametrize(
    "sampler, settings, expected",
    [(langevin, dict(noise_scale=0.1), 12), (langevin, {}, 12), (flow, dict(momentum=0.9), 12),
     (mala, {}, 13), (hmc, dict(num_leapfrog=3), 37)],
)  # fmt: skip
def test_gradients_are_carried_over_and_only_those_of_the_images_are_taken(sampler, settings, expected):
    calls, scale = [], torch.ones((), requires_grad=True)

    def log_density(x):
        calls.append(len(x))
        return scale * log_gaussian(x)

    with torch.no_grad():
        x, info = sampler(log_density, torch.ones(5, 2), num_steps=12, step_size=0.1, generator=seeded(), **settings)
    assert len(calls) == expected and scale.grad is None
    assert not any(each.requires_grad for each in (x, info.energy, info.grad_norm))


def test_info_is_of_the_state_before_the_step():
    x = torch.tensor([[[0.5, -1.0]], [[2.0, 3.0]]])
    _, info = langevin(log_gaussian, x, num_steps=2, step_size=0.1, noise_scale=0.0, temperature=4.0)
    torch.testing.assert_close(info.energy, torch.tensor([[0.625, 6.5], [0.625 * 0.81, 6.5 * 0.81]]))
    torch.testing.assert_close(info.grad_norm, (2 * info.energy).sqrt())
    assert info.saturated.tolist() == [[0.5, 1.0], [0.0, 1.0]] and (info.acceptance == 1).all()


@pytest.mark.parametrize(("num_steps", "end"), [(1, 1), (2, 2), (3, 3)])
def test_a_schedule_goes_as_far_as_its_mean(num_steps, end):
    x, _ = flow(lambda x: x.sum(1), torch.zeros(1, 1), num_steps=num_steps, step_size=linear(0, 2))
    assert x.item() == end
