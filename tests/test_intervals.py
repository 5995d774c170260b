import numpy as np
import pytest
from scipy.stats import binom

from jem_hf.metrics.intervals import bootstrap_intervals, paired_bootstrap, weighted_metrics
from jem_hf.metrics.prediction import prediction_metrics


def binary(positive):
    return np.stack([1 - positive, positive], axis=-1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def data():
    """120 images; two binary attributes, one of three values and a rare one; a fifth of the labels is missing."""
    rng = np.random.default_rng(0)
    probabilities = np.zeros((120, 4, 3))
    probabilities[:, [0, 1, 3], :2] = binary(rng.random((120, 3)).round(2) * [1, 1, 0.03])
    probabilities[:, 2] = rng.dirichlet([0.5, 0.7, 0.9], 120)
    labels = np.array([[rng.choice(3, p=p) for p in row] for row in probabilities])
    labels[rng.random(labels.shape) < 0.2] = -1
    return probabilities, labels, ["hat", "glasses", "hair", "scar"]


def test_weights_are_repetitions(data):
    probabilities, labels, names = data
    weights = np.random.default_rng(2).multinomial(120, np.full(120, 1 / 120), size=30)
    weighted = weighted_metrics(probabilities, labels, weights.astype(float))
    for r, count in enumerate(weights):
        rows = np.repeat(np.arange(120), count)
        expected = prediction_metrics(probabilities[rows], labels[rows], names)
        for name in weighted:
            assert weighted[name][r] == pytest.approx(expected[name]), name


def test_equal_weights_are_the_plain_numbers(data):
    probabilities, labels, names = data
    expected = prediction_metrics(probabilities, labels, names)
    weighted = weighted_metrics(probabilities, labels, np.ones((1, 120)))
    assert {name: value[0] for name, value in weighted.items()} == pytest.approx(
        {name: expected[name] for name in ("accuracy", "ap", "nll", "ece")}
    )


def test_rare_class_has_an_interval_from_the_resamples_that_hold_it():
    """Each resample holds the positive with probability .64; without it its average precision is not defined."""
    p, labels = binary(np.linspace(0.1, 0.9, 30)[:, None]), np.zeros((30, 1), dtype=int)
    labels[20] = 1
    weighted = weighted_metrics(p, labels, np.array([[1.0] * 20 + [0] + [1] * 9, [1.0] * 30]))
    assert np.isnan(weighted["ap"][0]) and weighted["ap"][1] == pytest.approx(1 / 10)
    low, high = bootstrap_intervals(p, labels, ["a"])["ap"]
    assert 0 < low < 1 / 10 < high < 1


def test_intervals_hold_the_number_and_follow_the_seed(data):
    probabilities, labels, names = data
    numbers = prediction_metrics(probabilities, labels, names)
    intervals = bootstrap_intervals(probabilities, labels, names)
    assert intervals.keys() == {"accuracy", "ap", "nll", "ece"}
    for name, (low, high) in intervals.items():
        assert 0 <= low < high and (low < numbers[name] < high or name == "ece"), name
    assert bootstrap_intervals(probabilities, labels, names) == intervals
    assert bootstrap_intervals(probabilities, labels, names, seed=1) != intervals
    narrow = bootstrap_intervals(probabilities, labels, names, confidence=0.5)
    assert all(narrow[name][1] - narrow[name][0] < high - low for name, (low, high) in intervals.items())


def test_undefined_numbers_have_no_interval():
    p, labels = binary(np.array([[0.2], [0.3], [0.9]])), np.ones((3, 1), dtype=int)
    intervals = bootstrap_intervals(p, labels, ["a"])
    assert intervals["ap"] is None and intervals["accuracy"] is not None
    assert paired_bootstrap(p, p, labels, ["a"])["ap"] is None
    missing = np.full((3, 1), -1)
    assert set(bootstrap_intervals(p, missing, ["a"]).values()) == {None}
    assert set(paired_bootstrap(p, p, missing, ["a"]).values()) == {None}


def test_blocks_of_weights_change_nothing(data, monkeypatch):
    whole = bootstrap_intervals(*data)
    monkeypatch.setattr("jem_hf.metrics.intervals.BLOCK", 120 * 7)
    assert bootstrap_intervals(*data) == {name: pytest.approx(interval) for name, interval in whole.items()}


def test_intervals_cover_at_their_confidence():
    """
    Of 200 samples the 90% intervals hold the true number in about 180.

    The three attributes of an image are copies: intervals over (image, attribute) pairs would hold it in 130. Were
    the coverage .9, a count below 164 or above 194 would be a false alarm of chance .004; the seed is fixed.
    """
    assert binom.cdf(163, 200, 0.9) + binom.sf(194, 200, 0.9) < 0.004
    rng = np.random.default_rng(4)
    large = rng.normal(size=400_000)
    # p(label) = sigmoid(z), predicted sigmoid(2 z)
    q, p = sigmoid(large), sigmoid(2 * large)
    truth = {
        "accuracy": np.maximum(q, 1 - q).mean(),
        "nll": -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean(),
    }
    covered = dict.fromkeys(truth, 0)
    for _ in range(200):
        z = rng.normal(size=(200, 1))
        labels = (rng.random(z.shape) < sigmoid(z)).astype(int).repeat(3, 1)
        intervals = bootstrap_intervals(binary(sigmoid(2 * z).repeat(3, 1)), labels, list("abc"), confidence=0.9)
        for name, value in truth.items():
            covered[name] += intervals[name][0] <= value <= intervals[name][1]
    assert all(164 <= count <= 194 for count in covered.values()), covered


@pytest.mark.slow
def test_interval_of_a_calibration_error_is_without_its_upward_bias():
    """The error of a calibrated model is 0: of 100 intervals around a number above it most reach down to it."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(100):
        z = rng.normal(size=(200, 3))
        labels = (rng.random(z.shape) < sigmoid(z)).astype(int)
        held += bootstrap_intervals(binary(sigmoid(z)), labels, list("abc"), num_resamples=100)["ece"][0] == 0
        assert prediction_metrics(binary(sigmoid(z)), labels, list("abc"))["ece"] > 0.01
    assert held > 50


def test_a_model_does_not_differ_from_itself(data):
    probabilities, labels, names = data
    for difference in paired_bootstrap(probabilities, probabilities, labels, names).values():
        assert difference == {"difference": 0, "low": 0, "high": 0}


def test_paired_difference_is_that_of_the_numbers_and_finds_the_overconfident_model():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(400, 4)) * 2
    labels = (rng.random(z.shape) < sigmoid(z)).astype(int)
    first, second, names = binary(sigmoid(z)), binary(sigmoid(2 * z)), list("abcd")
    numbers, others = (prediction_metrics(p, labels, names) for p in (first, second))
    result = paired_bootstrap(first, second, labels, names)
    for name, row in result.items():
        assert row["difference"] == pytest.approx(numbers[name] - others[name], abs=1e-12)
        assert row["low"] <= row["difference"] <= row["high"]
    for name in ("nll", "ece"):
        assert result[name]["high"] < 0, name
    for name in ("accuracy", "ap"):  # the second model is a monotone function of the first
        assert result[name] == pytest.approx({"difference": 0, "low": 0, "high": 0}, abs=1e-12), name


def test_equally_calibrated_models_are_rarely_told_apart():
    """
    Two calibrated models that know different halves of the evidence: of 100 samples the 95% interval of the difference
    in ECE leaves out zero in about 5 (in fewer, since it is too wide), and more than 11 has a chance below .005.
    """
    assert binom.sf(11, 100, 0.05) < 0.005
    rng, alarms = np.random.default_rng(6), 0
    for _ in range(100):
        labels = rng.integers(0, 2, (200, 3))
        first, second = (binary(sigmoid(2 * (2 * labels - 1 + rng.normal(size=labels.shape)))) for _ in range(2))
        row = paired_bootstrap(first, second, labels, list("abc"), num_resamples=100)["ece"]
        alarms += not row["low"] <= 0 <= row["high"]
    assert alarms <= 11


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_resamples": 1}, "num_resamples is 1"),
        ({"confidence": 95}, "confidence is 95"),
        ({"attributes": ["a"]}, "1 attribute names for 4"),
    ],
)
def test_bad_settings_are_refused(data, settings, message):
    probabilities, labels, names = data
    settings = {"attributes": names} | settings
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(probabilities, labels, **settings)
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(probabilities, probabilities, labels, **settings)
