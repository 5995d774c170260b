import json

import numpy as np
import pytest
import torch

from jem_hf import AttributeTensors
from jem_hf.cards import write_card
from jem_hf.evaluation import (
    evaluate,
    evaluate_energy,
    evaluate_requests,
    novel_combinations,
    predict,
    seen_requests,
)
from jem_hf.report import write_report


class ReadsCorner:
    """An oracle that is always right about images whose first pixels hold their labels."""

    def predict(self, images):
        images = images if images.dtype == torch.uint8 else ((images + 1) * 127.5).round().to(torch.uint8)
        return images[:, 0, 0, :3].long()


def write_labels(labels):
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, :3] = labels.to(torch.uint8)
    return images


def test_request_bounds_by_hand():
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    real = AttributeTensors(write_labels(labels), labels, ["A", "B", "C"])
    requests = torch.tensor([[1, -1, 1], [0, 1, -1]] * 200)
    drawn = write_labels(torch.tensor([[1, 0, 0], [0, 1, 1]] * 200)) / 127.5 - 1
    report = evaluate_requests(drawn, requests, real, ReadsCorner())
    assert report["agreement"] == pytest.approx(3 / 4)
    assert report["all_right"] == pytest.approx(1 / 2)
    assert report["ceiling"] == report["ceiling_all_right"] == 1
    assert report["floor"] == pytest.approx(1 / 2, abs=0.05)
    assert report["floor_all_right"] == pytest.approx((1 / 2 + 1 / 4) / 2, abs=0.06)


def test_novel_combinations_are_those_never_in_training():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, 5, generator=generator) < 0.5).long()
    held_out = labels[:, [0, 1]].all(1) | labels[:, [2, 3, 4]].all(1)
    assert novel_combinations(labels[~held_out], labels[held_out]) == [(0, 1), (2, 3, 4)]
    assert novel_combinations(labels, labels) == []


def test_seen_requests_are_pairs_and_triples_of_real_rows():
    labels = (torch.rand(100, 6, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    labels[:, 5] = -1
    requests = seen_requests(labels, 40)
    assert ((requests >= 0).sum(1).reshape(-1, 2) == torch.tensor([2, 3])).all()
    for request in requests:
        assert ((labels == request) | (request < 0)).all(1).any()
    assert ((requests > 0).sum(1) >= 1).float().mean() > 0.9


def test_energy_auroc_of_a_model_that_likes_dark_images(model):
    images = torch.full((20, 3, 8, 8), 10, dtype=torch.uint8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = evaluate_energy(model, images)
    assert report["upside_down"]["auroc"] == 0.5  # constant energy tells nothing apart
    assert set(report) == {"noise", "noisy", "blurred", "upside_down"}


def test_predict_scales_like_the_image_processor(model, tensors):
    probabilities, log_p = predict(model, tensors.images, batch_size=7)
    expected = model(tensors.images.float() / 127.5 - 1)
    np.testing.assert_allclose(probabilities, expected.attribute_logits.softmax(-1).detach(), atol=1e-6)
    np.testing.assert_allclose(log_p, -expected.energy.detach(), atol=1e-5)


def test_whole_report_card_and_pictures(model, tensors, tmp_path):
    splits = {"train": tensors, "test": tensors.subset(slice(0, 30)), "novel": tensors.subset(slice(30, 48))}
    stages = {}
    report, pictures = evaluate(
        model,
        splits,
        num_images=16,
        classifier_epochs=1,
        oracle_epochs=1,
        cache_dir=tmp_path,
        progress=lambda stage, done, total: stages.update({stage: done / total}),
    )
    keys = {"accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece"}
    assert keys <= report["prediction"].keys() and keys <= report["baselines"]["classifier"].keys()
    bounds = {"agreement", "all_right", "floor", "ceiling", "num_images"}
    assert bounds <= report["generation"]["full"].keys() and bounds <= report["generation"]["seen"].keys()
    assert all(0 <= value["auroc"] <= 1 for value in report["energy"].values())
    assert stages == dict.fromkeys(
        ["baseline classifier", "oracle", "drawing full", "drawing seen", "drawing full_novel"], 1.0
    )
    again, _ = evaluate(model, splits, num_images=16, classifier_epochs=1, oracle_epochs=1, cache_dir=tmp_path)
    assert again == report  # helpers come from the cache, chains from their seeds

    write_report(report, pictures, tmp_path / "out", model.config)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"{report['prediction']['ece']:.4f}" in markdown
    for name in ("reliability.png", "samples-full.png", "samples-seen.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000

    from huggingface_hub import ModelCard

    path = write_card(tmp_path, model.config, report, name="tiny", recipe="tiny.yaml", dataset="avatars")
    card = ModelCard.load(path)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["accuracy"] == round(report["prediction"]["accuracy"], 4)
    assert results["full"] == round(report["generation"]["full"]["agreement"], 4)
    assert card.data.attributes == model.config.attributes
    assert "jem-hf evaluate tiny" in card.text


def test_prediction_only(model, tensors, tmp_path):
    report, _ = evaluate(
        model, {"train": tensors, "test": tensors}, prediction_only=True, classifier_epochs=1, cache_dir=tmp_path
    )
    assert "generation" not in report and "energy" not in report
