"""A model whose probabilities were fitted after training: what that changes, and what it must not."""

import pytest
import torch

from jem_hf import AttributeTensors, JemConfig, JemModel
from jem_hf.metrics.prediction import prediction_metrics
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.training.calibration import calibrate
from jem_hf.training.recipes import Recipe, train
from jem_hf.training.splits import validation_part


@pytest.fixture
def calibrated(model):
    """Both attributes of two values and the one of three made softer and shifted, each in its own way."""
    model.expect_calibration()
    generator = torch.Generator().manual_seed(0)
    model.calibration.scale.uniform_(0.3, 2.0, generator=generator)
    model.calibration.bias.normal_(generator=generator)
    return model


def images(num, seed=0):
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pictures(num, seed):
    x = ((images(num, seed) + 1) * 127.5).round().to(torch.uint8)
    return AttributeTensors(x, torch.zeros(num, 3, dtype=torch.long), ["Smiling", "Hair", "Hat"])


def labels_of(model, x, seed=0):
    """Labels drawn from what a model predicts."""
    p = model.predict_proba(x)
    draw = torch.multinomial(p.flatten(0, 1), 1, generator=torch.Generator().manual_seed(seed))
    return draw.view(p.shape[:2])


def test_the_density_of_images_stays_and_the_prediction_is_the_scaled_one(calibrated):
    x, labels = images(6), torch.tensor([[0, 2, 1], [1, 0, -1], [-1, -1, 0], [1, 1, 1], [0, -1, -1], [-1, 2, 0]])
    log_p, p, log_joint = calibrated.log_marginal(x), calibrated.predict_proba(x), calibrated.log_joint(x, labels)
    own = calibrated.calibration
    calibrated.calibration = None
    logits = calibrated(x).attribute_logits
    torch.testing.assert_close(calibrated.log_marginal(x), log_p)
    scaled = logits * own.scale + own.bias
    torch.testing.assert_close(p, scaled.softmax(-1))
    observed = torch.where(labels >= 0, p.gather(-1, labels.clamp(min=0)[..., None])[..., 0], torch.ones(()))
    torch.testing.assert_close(log_joint, log_p + observed.log().sum(-1))
    assert not torch.allclose(p, logits.softmax(-1), atol=0.01)


def test_gradients_of_log_p_stay(calibrated):
    def gradient(x):
        x = x.requires_grad_(True)
        return torch.autograd.grad(calibrated.log_marginal(x).sum(), x)[0]

    before = gradient(images(3))
    calibrated.expect_calibration(False)
    torch.testing.assert_close(gradient(images(3)), before)


@torch.no_grad()
def test_probabilities_of_an_overconfident_model_come_true(calibrated):
    calibrated.calibration.reset()
    calibrated.head.linear.weight.mul_(20)  # so that images differ
    validation, fresh = (pictures(3000, seed) for seed in (0, 1))
    for split in (validation, fresh):
        split.labels = labels_of(calibrated, to_pixels(split.images))
    calibrated.head.linear.weight.mul_(4)
    calibrated.head.linear.bias.mul_(4)  # four times too sure
    x, names = to_pixels(fresh.images), calibrated.config.attributes
    log_p, before = calibrated.log_marginal(x), calibrated.predict_proba(x)
    for _ in range(2):  # the second time from the energy as it is, again
        calibrate(calibrated, validation)
        assert (calibrated.calibration.scale < 0.5).all()
    torch.testing.assert_close(calibrated.log_marginal(x), log_p)
    after = calibrated.predict_proba(x)
    before, after = (prediction_metrics(p.numpy(), fresh.labels.numpy(), names) for p in (before, after))
    assert after["ece"] < 0.02 < before["ece"] and after["nll"] < before["nll"]


def test_it_travels_and_is_begun_anew_with_other_attributes(calibrated, tmp_path):
    calibrated.save_pretrained(tmp_path)
    loaded = JemModel.from_pretrained(tmp_path)
    x = images(4)
    torch.testing.assert_close(loaded.predict_proba(x), calibrated.predict_proba(x))
    loaded.resize_attributes(["Smiling", "Hat"])
    assert loaded.config.calibrated and loaded.calibration.scale.tolist() == [[1], [1]]


def test_heads_with_interactions_have_none():
    with pytest.raises(ValueError, match="calibrated needs the head 'product', not 'pairwise'"):
        JemConfig(attributes=["a"], head="pairwise", calibrated=True)
    with pytest.raises(ValueError, match="calibrated needs the head 'product', not 'dot'"):
        JemModel(JemConfig(attributes=["a"], head="dot")).expect_calibration()


def test_a_recipe_keeps_a_tenth_for_it_and_fits_it_at_the_end(tmp_path, monkeypatch):
    seen = {}

    def fit(model, validation):
        seen["scale"], seen["validation"] = model.calibration.scale.clone(), validation
        calibrate(model, validation)

    monkeypatch.setattr("jem_hf.training.recipes.calibrate", fit)
    recipe = Recipe("r")
    recipe.dataset = {"name_or_path": "avatars", "num_train": 40, "num_test": 10, "num_novel": 10}
    recipe.image_processor = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    recipe.model = {"backbone_kwargs": {"width": 4, "hidden_size": 8}, "calibrated": True}
    recipe.training = dict(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=8, disable_tqdm=True, sample_grid=0
    )
    trainer, splits = train(recipe)
    assert len(trainer.train_dataset) == 36 and len(seen["validation"]) == 4
    assert validation_part(splits) == (splits["train"], seen["validation"])
    assert (seen["scale"] == 1).all()
    model = JemModel.from_pretrained(tmp_path / "run")
    assert model.config.calibrated and (model.calibration.scale != 1).any()
    recipe.model["from_pretrained"], recipe.training["output_dir"] = str(tmp_path / "run"), str(tmp_path / "on")
    train(recipe)  # goes on with the energy as it is
    assert (seen["scale"] == 1).all() and JemModel.from_pretrained(tmp_path / "on").config.calibrated
