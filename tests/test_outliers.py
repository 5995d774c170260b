import types

import pytest
import torch
from test_autoencoder import config_of_codes, images, model_of_codes
from torch.nn import functional as F
from typer.testing import CliRunner

from jem_hf import JemModel
from jem_hf.cli import app
from jem_hf.demo import html
from jem_hf.evaluation.outliers import outlier_detection, outlier_sets
from jem_hf.models.label_distributions_jem import ProductDistribution
from jem_hf.models.outliers_jem import TIMES, OutlierScore, image_scores
from jem_hf.models.pipeline_jem import AttributeConditionalGenerationPipeline


def scores(num, seed=0):
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.3, 4.0]])
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(seed)) @ mixing.T + torch.tensor(
        [5.0, -3.0, 1.0]
    )


def test_distances_are_those_of_mahalanobis():
    fitted = OutlierScore(3)
    assert not fitted.is_fitted
    fitted.fit(scores(20_000))
    assert fitted.is_fitted
    squares = fitted.distance(scores(20_000, seed=1)).square()  # chi-square of three degrees of freedom
    assert squares.mean().item() == pytest.approx(3, abs=0.1) and squares.var().item() == pytest.approx(6, abs=0.5)
    from scipy.stats import chi2

    far = torch.tensor([[5.0, -3.0, 1.0]]) + 2 * torch.tensor([[2.0, 1.0, -1.0]])  # two deviations of the first factor
    assert fitted.distance(far).item() == pytest.approx(2, abs=0.05)
    assert fitted.percentile(fitted.distance(far)).item() == pytest.approx(chi2(3).cdf(4), abs=0.02)
    assert fitted.percentile(torch.tensor([0.0, 100.0])).tolist() == [0.0, 1.0]


def test_scores_of_a_known_density():
    """For `log p(x) = -|x|^2 / 2` all that is asked for is known."""

    def label_distribution(x):
        return ProductDistribution((-x.square().flatten(1).sum(1) / 2)[:, None, None])

    model = types.SimpleNamespace(encode=lambda x: x, autoencoder=None, label_distribution=label_distribution)
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(5))
    found = image_scores(model, x)
    flat = x.flatten(1)
    torch.testing.assert_close(found[:, 0], -flat.square().sum(1) / 2)
    torch.testing.assert_close(found[:, 1], flat.norm(dim=1).log())
    noises = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    gray = x.mean(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    torch.testing.assert_close(found[:, -1], F.conv2d(gray, kernel).square().flatten(1).mean(1).log())
    for k, t in enumerate(TIMES):
        decay = min(1.0, (1 - t) / 0.2)
        errors = [(-((1 - t) * n + t * x) - decay * (x - n)).square().flatten(1).mean(1) for n in noises]
        torch.testing.assert_close(found[:, 2 + k], torch.stack(errors).mean(0).log(), atol=1e-4, rtol=1e-4)


def test_quick_scores_are_those_without_a_gradient_and_their_distance_is_that_of_a_part():
    model, x = model_of_codes(outlier_score=True), images(5)
    with torch.no_grad():
        log_p = model.log_marginal(x)
    scores, quick = image_scores(model, x), image_scores(model, x, quick=True)
    torch.testing.assert_close(quick, scores[:, [0, *range(2 + len(TIMES), scores.shape[1])]])
    torch.testing.assert_close(quick[:, 0], log_p)
    num = scores.shape[1]
    mixed = torch.randn(20_000, num, generator=torch.Generator().manual_seed(2)) @ torch.randn(num, num)
    fitted = OutlierScore(num)
    fitted.fit(mixed)
    part = mixed[1::2, [0, *range(2 + len(TIMES), num)]]
    squares = fitted.distance(part, quick=True).square()  # chi-square of as many degrees of freedom
    assert squares.mean().item() == pytest.approx(part.shape[1], rel=0.05)
    assert squares.var().item() == pytest.approx(2 * part.shape[1], rel=0.1)


@pytest.fixture
def fitted():
    model = model_of_codes(outlier_score=True)
    with pytest.raises(ValueError, match="no outlier score"):
        model.outlier_score(images())
    model.fit_outlier_score(images(200))
    return model


def test_a_model_knows_its_percentiles_after_a_round_trip(fitted, tmp_path):
    x = images(40)
    shares = fitted.outlier_score(x)
    assert 0.2 < shares.mean() < 0.8 and shares.min() >= 0 and shares.max() <= 1
    assert (fitted.outlier_score(torch.ones(2, 3, 16, 16)) == 1).all()  # stranger than them all
    fitted.save_pretrained(tmp_path)
    torch.testing.assert_close(JemModel.from_pretrained(tmp_path).outlier_score(x), shares)


def test_other_attributes_ask_for_other_statistics(fitted):
    fitted.resize_attributes(["Smiling"])
    with pytest.raises(ValueError, match="no outlier score"):
        fitted.outlier_score(images())


def test_models_without_one_say_so():
    with pytest.raises(ValueError, match="outlier_score in its config"):
        model_of_codes().outlier_score(images())
    assert JemModel(config_of_codes()).outliers is None


def test_predict_says_how_strange_an_image_is(fitted, tmp_path):
    from PIL import Image

    fitted.save_pretrained(tmp_path / "model")
    fitted.image_processor().save_pretrained(tmp_path / "model")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "model"), str(tmp_path / "red.png")])
    assert result.exit_code == 0 and "stranger than 100.0% of the training images" in result.stdout
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "model"), str(tmp_path / "red.png"), "--json"])
    assert '"outlier_score": 1.0' in result.stdout


def test_the_page_says_it_in_words():
    assert "Nothing unusual: stranger than 31.4%" in html.strangeness(0.314)
    assert "Unusual: stranger than 99.9%" in html.strangeness(0.999)


def test_detection_by_the_score_and_by_log_p(fitted):
    real = ((images(60) + 1) * 127.5).to(torch.uint8)
    report = outlier_detection(fitted, real)
    assert set(report) == {*outlier_sets(images()), "avatars"}
    for row in report.values():
        assert set(row) == {"auroc", "fpr95", "log_p_auroc"} and all(0 <= value <= 1 for value in row.values())
    assert report["one_colour"]["auroc"] > 0.9 and report["one_colour"]["fpr95"] < 0.5
    without = outlier_detection(model_of_codes(), real)
    assert all(row["auroc"] == row["log_p_auroc"] for row in without.values())


def test_outlier_sets_are_what_they_are_called():
    x = images(4)
    made = {name: change(x) for name, change in outlier_sets(x).items()}
    assert torch.equal(made["upside_down"], x.flip(2)) and torch.equal(made["inverted"], -x)
    assert torch.equal(made["shuffled"].flatten(2).sort().values, x.flatten(2).sort().values)
    assert not torch.equal(made["shuffled"], x) and made["very_blurred"].std() < made["blurred"].std() < x.std()


def test_the_pipeline_gives_it_with_each_image(fitted):
    draw = AttributeConditionalGenerationPipeline(fitted)
    drawn = draw("", num_images=3, seed=0, return_tensors=True, outlier_score=True)
    expected = fitted.outlier_score(torch.stack([each["pixel_values"] for each in drawn]))
    assert [each["outlier_score"] for each in drawn] == pytest.approx(expected.tolist(), abs=1e-6)
    assert "outlier_score" not in draw("", seed=0)[0]
    with pytest.raises(ValueError, match="this model has no outlier score"):
        AttributeConditionalGenerationPipeline(model_of_codes())("", outlier_score=True)
