import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jem_hf import JemImageProcessor, JemModel
from jem_hf.cli import app
from jem_hf.evaluation.evaluate import evaluate
from jem_hf.evaluation.generation import (
    classification_accuracy_score,
    judge_requests,
    request_diversity,
    set_distances,
)
from jem_hf.evaluation.judges import load_feature_network
from jem_hf.evaluation.outliers import outlier_detection, outlier_sets
from jem_hf.evaluation.prediction import compare_prediction, predict, zero_shot_recognition
from jem_hf.evaluation.report import write_report
from jem_hf.evaluation.requests import (
    held_out_combinations,
    matching_rows,
    novel_combinations,
    one_row_each,
    requests_by_kind,
    seen_requests,
)
from jem_hf.hub.cards import write_card
from jem_hf.metrics.prediction import prediction_metrics, reliability_curve
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.training.splits import validation_part


def test_request_bounds_by_hand():
    real = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    requests = torch.tensor([[1, -1, 1], [0, 1, -1]] * 200)
    seen = torch.tensor([[1, 0, 0], [0, 1, 1]] * 200)
    report = judge_requests(seen, requests, real, real, ["A", "B", "C"])
    assert report["agreement"] == pytest.approx(3 / 4)
    assert report["all_right"] == report["all_right_of_ceiling"] == pytest.approx(1 / 2)
    assert report["ceiling"] == report["ceiling_all_right"] == 1
    assert report["floor"] == pytest.approx(1 / 2, abs=0.05)
    assert report["floor_all_right"] == pytest.approx((1 / 2 + 1 / 4) / 2, abs=0.06)
    assert report["share"] == pytest.approx((3 / 4 - report["floor"]) / (1 - report["floor"]))
    assert "per_attribute" not in report


def test_agreement_per_attribute_beside_an_oracle_that_errs():
    labels = torch.tensor([[1, 0], [0, 1]] * 100)
    oracle_sees = labels.clone()
    oracle_sees[:, 1] = 1  # right in half the images
    drawn = torch.tensor([[1, 0], [1, 1]] * 100)
    report = judge_requests(drawn, labels, oracle_sees, labels, ["A", "B"])
    first, second = report["per_attribute"]["A"], report["per_attribute"]["B"]
    assert first["agreement"] == 0.5 and first["ceiling"] == 1 and first["floor"] == pytest.approx(0.5, abs=0.1)
    assert second == {"agreement": 1.0, "ceiling": 0.5, "floor": 0.5}
    assert report["ceiling"] == 0.75


def test_bounds_are_none_where_no_real_image_matches():
    labels = torch.tensor([[0, 0], [0, 1]])
    report = judge_requests(torch.ones(4, 2).long(), torch.ones(4, 2).long(), labels, labels, ["A", "B"])
    assert report["agreement"] == 1 and report["ceiling"] is report["share"] is report["all_right_of_ceiling"] is None
    assert "ceiling" not in report["per_attribute"]["A"]


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


def test_held_out_combinations_come_from_the_config_first(config):
    labels = (torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    both = labels[:, [0, 2]].all(1)
    assert held_out_combinations(config, labels[~both], labels[both]).tolist() == [[1, -1, 1]]
    config.novel_combinations = [{"Smiling": False, "Hair": "red"}, {"Hat": True}]
    assert held_out_combinations(config, labels, labels).tolist() == [[0, 2, -1], [-1, -1, 1]]


def test_requests_by_kind():
    test = torch.tensor([[0, 1, 1], [1, -1, 0], [1, 1, 0]])
    novel = torch.tensor([[1, 0, 1]])
    held_out = torch.tensor([[1, 0, -1], [-1, 0, 1], [0, 0, 0]])
    requests = requests_by_kind(test, novel, held_out, num=16)
    assert sorted(requests["full"][0].tolist()) == [[0, 1, 1], [1, 1, 0]]
    assert requests["full_novel"][0].tolist() == [[1, 0, 1]]
    assert requests["novel"][0].tolist() == [[1, 0, -1]] * 8 + [[-1, 0, 1]] * 8
    assert requests["seen"][0].shape == (16, 3)
    assert {kind: split for kind, (_, split) in requests.items()} == {
        "full": "test", "seen": "test", "full_novel": "novel", "novel": "novel",
    }  # fmt: skip
    assert set(requests_by_kind(test[:2], None, held_out[:0], num=16)) == {"full", "seen"}
    assert not requests_by_kind(torch.tensor([[-1, 1, -1]]), None, held_out[:0], num=16)


def test_requests_of_sorted_data_are_of_all_kinds():
    labels = (torch.arange(1000)[:, None] >= torch.tensor([200, 500, 900])).long()
    requests, _ = requests_by_kind(labels, None, labels[:0], num=400)["full"]
    assert requests.double().mean(0).tolist() == pytest.approx([0.8, 0.5, 0.1], abs=0.05)
    rows = one_row_each(labels, requests)
    assert (labels[rows] == requests).all() and len(set(rows.tolist())) == len(rows) == 400
    assert len(one_row_each(labels, torch.tensor([[1, 1, 1]] * 150 + [[-1, -1, -1]] * 3))) == 103  # there are but 100
    rows, which = matching_rows(labels, torch.tensor([[1, -1, -1]]))
    assert len(rows) == 10 and labels[rows, 0].all() and labels[rows, 1].any() and not which.any()


def test_validation_part(tensors):
    part, validation = validation_part({"train": tensors})
    assert (len(part), len(validation)) == (43, 5)
    rows = torch.cat([part.images, validation.images]).flatten(1).sum(1)
    assert sorted(rows.tolist()) == sorted(tensors.images.flatten(1).sum(1).tolist())
    other = tensors.subset(slice(0, 4))
    assert validation_part({"train": tensors, "valid": other}) == (tensors, other)


def test_zero_shot_recognition_by_hand():
    p = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]]])
    labels = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, -1, 0]])
    combinations = torch.tensor([[0, 1, -1], [0, -1, 1]])
    # .9 * .8 against .9 * .6; then .5 * .5 against .5 * .9; then both match, none, unknown
    report = zero_shot_recognition(p[[0, 1, 0, 0, 0]].log(), labels, combinations)
    assert report == {"accuracy": 1.0, "chance": 0.5, "most_frequent": 0.5, "num_images": 2}
    assert zero_shot_recognition(p[[1, 0]].log(), labels[:2], combinations)["accuracy"] == 0
    assert zero_shot_recognition(p[:1].log(), labels[3:4], combinations) is None
    assert zero_shot_recognition(p.log(), labels[:2], combinations[:1]) is None


def test_baselines_are_left_out_where_nobody_asks_for_them(model, tensors, monkeypatch):
    monkeypatch.setattr("jem_hf.evaluation.evaluate.load_classifier", None)  # none is trained
    report, pictures = evaluate(model, {"train": tensors, "test": tensors}, prediction_only=True, baselines=False)
    assert "baselines" not in report and report["left_out"] == {"baselines": "not asked for"}
    assert set(pictures["reliability"]) == {"joint"}


def test_comparison_of_a_model_with_itself_and_its_calibration(model, tensors):
    test = tensors.subset(slice(0, 30))
    report, curves = compare_prediction(model, {"classifier": model}, tensors, test, num_resamples=20)
    probabilities, labels = predict(model, test.images)[0].softmax(-1).numpy(), test.labels.numpy()
    metrics, curve = (
        prediction_metrics(probabilities, labels, test.attributes, values=model.config.attribute_values),
        reliability_curve(probabilities, labels),
    )
    raw = report["baselines"]["classifier"]
    assert raw == report["prediction"] and metrics == {key: raw[key] for key in metrics}
    np.testing.assert_equal(curves["classifier"][0], curve)
    scaled = report["baselines"]["classifier_temperature"]
    assert scaled["accuracy"] == raw["accuracy"] and scaled["nll"] != raw["nll"]
    low, high = raw["intervals"]["nll"]
    assert low < raw["nll"] < high
    assert report["comparison"]["nll"]["difference"] == pytest.approx(raw["nll"] - scaled["nll"])
    assert report["comparison"]["accuracy"]["difference"] == 0
    assert set(report["comparison"]) == {"accuracy", "ap", "nll", "ece"}


def test_scalings_may_be_of_a_classifier_of_their_own(model, config, tensors):
    test = tensors.subset(slice(0, 30))
    classifiers = {"classifier": model, "scaled_classifier": JemModel(config).eval()}
    report, curves = compare_prediction(model, classifiers, tensors, test, num_resamples=20)
    alone, _ = compare_prediction(model, {"classifier": classifiers["scaled_classifier"]}, tensors, test, 20)
    names = {"classifier", "classifier_temperature", "classifier_attribute_scaling"}
    assert set(report["baselines"]) == names and set(curves) == names | {"joint"}
    assert report["baselines"]["classifier"]["nll"] == report["prediction"]["nll"]
    scaled = [each["baselines"]["classifier_temperature"]["nll"] for each in (report, alone)]
    assert scaled[0] == scaled[1] and report["rival"] == "classifier_temperature"


def test_energy_auroc_of_a_constant_energy(model):
    images = torch.full((6, 3, 8, 8), 10, dtype=torch.uint8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = outlier_detection(model, images)
    assert set(report) == {*outlier_sets(images), "avatars"}
    assert all(value["auroc"] == 0.5 for value in report.values())
    others = {"others": to_pixels(images)}
    assert outlier_detection(model, images, outliers=others).keys() == others.keys()
    model.config.attributes = ["Smiling", "Hat", "Bald"]
    assert "avatars" not in outlier_detection(model, images)  # it knows them


def test_energy_auroc_of_a_model_that_likes_dark_images(model, monkeypatch):
    def dark(pixel_values):
        return -20 * pixel_values.mean((1, 2, 3))[:, None, None].expand(-1, 3, 3)

    monkeypatch.setattr(model, "potentials", dark)
    images = torch.randint(10, (20, 3, 8, 8), dtype=torch.uint8)
    report = outlier_detection(model, images)
    assert report["noise"]["auroc"] == report["one_colour"]["auroc"] == 1
    assert report["upside_down"]["auroc"] == pytest.approx(0.5, abs=0.01)


def test_predict_scales_like_the_image_processor(model, tensors):
    logits, log_p = predict(model, tensors.images, batch_size=7)
    expected = model(tensors.images.float() / 127.5 - 1)
    torch.testing.assert_close(logits, expected.attribute_logits.detach())
    np.testing.assert_allclose(log_p, -expected.energy.detach(), atol=1e-5)
    brighter = predict(model, tensors.images, change=lambda x: x + 0.1)[0]
    torch.testing.assert_close(brighter, model(tensors.images / 127.5 - 0.9).attribute_logits.detach())


def test_real_images_as_samples_are_as_far_and_as_varied_as_real_ones(config, tensors, tmp_path):
    network = load_feature_network(tensors, config.num_values, num_epochs=1, cache_dir=tmp_path)
    images, groups = tensors.images[:20], torch.arange(20) // 4
    pixels = images / 127.5 - 1
    report = set_distances(pixels, images, network, network.extract(tensors.images))
    for distance in report.values():
        assert distance["samples"] == pytest.approx(distance["real"], rel=1e-3) and distance["blurred"] is not None
    report = request_diversity(pixels, groups, images[:8], groups[:8], network)
    for kind in ("features", "pixels"):
        assert report[kind]["samples"] == pytest.approx(report[kind]["real"], rel=1e-4)
    first = pixels[:4].flatten(1) / 2
    expected = np.mean([(first[i] - first[j]).square().mean().sqrt() for i in range(4) for j in range(i)])
    report = request_diversity(pixels, groups, images[:4], groups[:4], network)
    assert report["pixels"]["real"] == pytest.approx(expected)
    assert request_diversity(pixels, groups, images, groups + 5, network) is None


def test_classification_accuracy_score_of_a_model_that_draws_the_real_images(model, tensors, tmp_path, monkeypatch):
    """Drawn for the labels of the training images, in their order, real images score as they do."""
    real = tensors.images[torch.randperm(48, generator=torch.Generator().manual_seed(5678))[:32]]
    monkeypatch.setattr(model, "generate", lambda rows, generator: (real[: len(rows)] / 127.5 - 1, rows))
    score = classification_accuracy_score(model, tensors, tensors, 32, num_epochs=1, cache_dir=tmp_path)
    assert score["num_images"] == 32 and score["samples"] == score["real"]
    assert 0 < score["real"]["accuracy"] < 1


@pytest.mark.slow
def test_whole_report_card_and_pictures(model, tensors, tmp_path):
    model.config.novel_combinations = [{"Smiling": False, "Hair": "red"}, {"Smiling": True, "Hat": True}]
    splits = {"train": tensors, "test": tensors.subset(slice(0, 30)), "novel": tensors.subset(slice(20, 48))}
    stages = {}
    settings = dict(num_images=16, num_resamples=5, classifier_epochs=1, oracle_epochs=1, feature_epochs=1)
    settings["cache_dir"] = tmp_path
    report, pictures = evaluate(
        model, splits, progress=lambda stage, done, total: stages.update({stage: done / total}), **settings
    )
    keys = {"accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece"}
    assert keys <= report["prediction"].keys() and keys <= report["baselines"]["classifier"].keys()
    bounds = {"agreement", "all_right", "floor", "ceiling", "num_images"}
    assert bounds <= report["generation"]["full"].keys() and bounds <= report["generation"]["seen"].keys()
    assert all(0 <= value["auroc"] <= 1 for value in report["energy"].values())
    assert {"share", "per_attribute", "frechet_distance", "kernel_distance"} <= report["generation"]["full"].keys()
    assert report["generation"]["seen"]["diversity"].keys() == {"features", "pixels"}
    assert set(report["baselines"]) == {"classifier", "classifier_temperature", "classifier_attribute_scaling"}
    assert report["generation"]["classification_accuracy_score"]["num_images"] == 48
    assert report["zero_shot"]["combinations"] == ["~Smiling & Hair=red", "Smiling & Hat"]
    assert pictures["samples"]["novel"][1].unique(dim=0).tolist() == [[0, 2, -1], [1, -1, 1]]
    names = (
        "baseline classifier; baseline scaled classifier; oracle; feature network; drawing full; drawing seen; "
        "drawing full_novel; drawing novel; drawing a training set; classifier of samples; classifier of real"
    )
    assert stages == dict.fromkeys(names.split("; "), 1.0)
    again, _ = evaluate(model, splits, **settings)
    assert again == report  # helpers come from the cache, chains from their seeds

    write_report(report, pictures, tmp_path / "out", model.config)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"{report['prediction']['ece']:.4f}" in markdown
    for name in ("reliability.png", "samples-full.png", "samples-seen.png", "samples-novel.png", "nearest.png"):
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
    report, pictures = evaluate(
        model,
        {"train": tensors, "validation": tensors.subset(slice(0, 9)), "test": tensors},
        prediction_only=True,
        num_resamples=5,
        classifier_epochs=1,
        cache_dir=tmp_path,
    )
    assert set(report) == {"num_images", "num_parameters", "prediction", "baselines", "rival", "comparison"}
    assert [path.name for path in tmp_path.iterdir()] == ["classifiers"]
    write_report(report, pictures, tmp_path / "out", model.config)


def test_the_command_keeps_out_what_was_kept_out_of_training(model, tmp_path, monkeypatch):
    """Told by the config alone: the data has no split "novel"."""
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    combinations = [{"Smiling": False, "Hair": "red"}, {"Smiling": True, "Hat": True}]
    model.config.novel_combinations = combinations
    model.save_pretrained(tmp_path / "model")
    JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(
        tmp_path / "model"
    )
    rng = np.random.default_rng(0)
    for split, num in (("train", 60), ("test", 40)):
        columns = {
            "image": [Image.fromarray(pixels) for pixels in rng.integers(256, size=(num, 8, 8, 3), dtype=np.uint8)],
            "Smiling": rng.random(num) < 0.5,
            "Hair": rng.integers(3, size=num),
            "Hat": rng.random(num) < 0.5,
        }
        features = {name: datasets.Value("bool") for name in ("Smiling", "Hat")}
        features |= {"image": datasets.Image(), "Hair": datasets.ClassLabel(names=["black", "blond", "red"])}
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features({key: features[key] for key in columns}))
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    arguments = ["evaluate", tmp_path / "model", "--dataset", tmp_path / "data", "--prediction-only", "--json"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["zero_shot"]["combinations"] == ["~Smiling & Hair=red", "Smiling & Hat"]
    assert report["num_images"] < 40
    assert report["zero_shot"]["num_images"] > 40 - report["num_images"]  # those of train are among them
