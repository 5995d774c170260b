import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from jem_hf.metrics.calibration import AttributeScaling, TemperatureScaling
from jem_hf.metrics.prediction import prediction_metrics
from jem_hf.models.heads_jem import cross_entropy

SCALINGS = [TemperatureScaling, AttributeScaling]


def sample(logits, seed=0):
    """Labels (N, K) drawn from logits (N, K, V)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(logits.shape[:2])


def normal(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_temperature_is_recovered():
    true = normal(4000, 5, 2)
    labels = sample(true)
    for temperature in (0.4, 1.0, 2.5):
        assert TemperatureScaling().fit(true * temperature, labels).temperature == pytest.approx(temperature, rel=0.05)


def test_temperature_is_the_minimum():
    logits = normal(300, 3, 4)
    labels = torch.randint(-1, 4, (300, 3), generator=torch.Generator().manual_seed(1))
    num = (labels >= 0).sum()

    def loss(log_t):
        return float(num * cross_entropy(logits.double() / np.exp(log_t), labels)) + log_t**2 / 2

    expected = minimize_scalar(loss, bracket=(-1, 3)).x
    assert np.log(TemperatureScaling().fit(logits, labels).temperature) == pytest.approx(expected, abs=1e-5)


def test_attribute_scaling_is_logistic_regression_on_the_log_odds():
    logits = normal(3000, 3, 2)
    log_odds = (logits[..., 1] - logits[..., 0]).double()
    true = log_odds * torch.tensor([0.5, 1.0, 1.7]) + torch.tensor([1.0, -2.0, 0.0])
    labels = sample(torch.stack([torch.zeros_like(true), true], -1))
    scaling = AttributeScaling().fit(logits, labels)
    for k in range(3):
        platt = LogisticRegression(C=np.inf, tol=1e-8).fit(log_odds[:, k, None], labels[:, k])
        assert scaling.scale[k].item() == pytest.approx(platt.coef_[0, 0], abs=0.01)
        assert (scaling.bias[k, 1] - scaling.bias[k, 0]).item() == pytest.approx(platt.intercept_[0], abs=0.02)


def test_attribute_scaling_recovers_value_biases_beside_a_binary_attribute():
    true = normal(20_000, 2, 3)
    true[:, 0, 2] = -torch.inf
    shift = torch.tensor([[0.5, -0.5, 0.0], [1.0, -1.5, 0.5]])
    scaling = AttributeScaling().fit((true - shift) / torch.tensor([2.0, 0.5])[:, None], sample(true))
    assert scaling.scale.tolist() == pytest.approx([2, 0.5], rel=0.05)
    assert scaling.bias == pytest.approx(shift.numpy(), abs=0.08)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_lacking_values_stay_lacking_and_the_rest_finite(scaling):
    logits = normal(100, 2, 3)
    logits[:, 0, 2] = -torch.inf
    calibrated = scaling().fit(logits, sample(logits))(logits)
    assert (calibrated[:, 0, 2] == -torch.inf).all() and calibrated[:, 0, :2].isfinite().all()
    assert calibrated[:, 1].isfinite().all() and calibrated.dtype == logits.dtype


@pytest.mark.parametrize("scaling", SCALINGS)
def test_overconfident_model_is_calibrated_on_other_images(scaling):
    true = normal(6000, 4, 2)
    labels, logits = sample(true), 3 * true
    fitted = scaling().fit(logits[:2000], labels[:2000])
    raw, calibrated = (
        prediction_metrics(x[2000:].softmax(-1), labels[2000:], list("abcd")) for x in (logits, fitted(logits))
    )
    assert raw["ece"] > 0.08 and calibrated["ece"] < 0.015 and calibrated["nll"] < raw["nll"]
    assert calibrated["auroc"] == pytest.approx(raw["auroc"], abs=1e-4)


def test_temperature_changes_no_predicted_value():
    logits = normal(500, 3, 4)
    fitted = TemperatureScaling().fit(3 * logits, sample(logits))
    assert fitted.temperature > 2 and (fitted(logits).argmax(-1) == logits.argmax(-1)).all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_missing_labels_change_nothing(scaling):
    logits = normal(300, 2, 2)
    labels = sample(logits)
    more, padded = torch.cat([logits, normal(50, 2, 2, seed=1) * 9]), torch.cat([labels, torch.full((50, 2), -1)])
    assert torch.allclose(scaling().fit(logits, labels)(logits), scaling().fit(more, padded)(logits), atol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_without_a_label_logits_stay_as_they_are(scaling):
    logits = normal(5, 2, 2)
    assert torch.equal(scaling().fit(logits, torch.full((5, 2), -1))(logits), logits)


def test_single_class_and_no_label_are_harmless():
    logits = normal(1000, 3, 2)
    labels = sample(logits)
    labels[:, 1], labels[:, 2] = 1, -1
    scaling = AttributeScaling().fit(logits, labels)
    p = scaling(logits).softmax(-1)[:, 1, 1]
    # The prior lets a probability come no nearer to one than about one image in all of them would.
    assert 0.98 < p.mean() < 0.9999 and 0.01 < scaling.scale[1] < 10
    assert scaling.scale[2] == 1 and (scaling.bias[2] == 0).all()
    alone = AttributeScaling().fit(logits[:, :1], labels[:, :1])
    assert torch.allclose(alone.scale[0], scaling.scale[0], rtol=1e-3)


def test_temperature_stays_above_zero_where_all_is_right():
    logits = torch.tensor([0.0, 1.0]).expand(1000, 2, 2)
    fitted = TemperatureScaling().fit(logits, torch.ones(1000, 2, dtype=torch.long))
    # Without the prior the sum of -log p, 2000 log(1 + exp(-1 / T)), falls to zero with T.
    assert 0.05 < fitted.temperature < 0.2 and fitted(logits).softmax(-1)[0, 0, 1] < 0.99999


@pytest.mark.parametrize("scaling", SCALINGS)
def test_fit_within_no_grad_leaves_no_graph(scaling):
    logits = normal(50, 2, 2).requires_grad_()
    labels = sample(logits.detach())
    with torch.no_grad():
        fitted = scaling().fit(logits, labels)
        assert not torch.equal(fitted(logits), logits)
    assert logits.grad is None and not fitted(logits.detach()).requires_grad


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2), r"must be \(N, K, V\)"),
        (torch.full((2, 1, 2), torch.nan), torch.zeros(2, 1), "NaN"),
        (torch.zeros(2, 1, 2), torch.full((2, 1), 2), "a label is 2"),
        (torch.tensor([[[0, -torch.inf]]]), torch.ones(1, 1), "lacks"),
    ],
)
def test_bad_inputs_are_refused(scaling, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        scaling().fit(logits, labels.long())


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_scaling_must_be_fitted(scaling):
    with pytest.raises(ValueError, match="call fit"):
        scaling()(torch.zeros(1, 1, 2))
