"""Numbers that are not defined: None in the report, "-" in tables, and nothing stops because of them."""

import json
import os

import fresh_process
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jem_hf import AttributeTensors, JemImageProcessor
from jem_hf.cli import app
from jem_hf.evaluation.evaluate import evaluate
from jem_hf.evaluation.report import write_report
from jem_hf.hub.cards import write_card
from jem_hf.metrics.tables import tables

FAST = dict(num_images=8, num_resamples=5, classifier_epochs=1, oracle_epochs=1, feature_epochs=1)
TESTS = {  # labels of the test images: Smiling, Hair (three values), Hat
    "one image": [[1, 2, 0]],
    "two images": [[1, 2, 0], [0, 1, -1]],
    "six images, constant attributes": [[1, 0, 0]] * 6,
    "an attribute without labels": [[1, 0, -1], [0, 2, -1], [1, 1, -1]],
    "values that never occur": [[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]],
    "no labels": [[-1, -1, -1]] * 3,
}


def random_images(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (len(labels), 3, 8, 8), generator=generator, dtype=torch.uint8)
    return AttributeTensors(images, torch.tensor(labels), ["Smiling", "Hair", "Hat"])


@pytest.mark.parametrize("labels", TESTS.values(), ids=TESTS)
@pytest.mark.parametrize("num_train", [1, 30])
def test_everything_is_written_of_the_smallest_test_splits(model, tensors, cache, tmp_path, labels, num_train):
    train, test = tensors.subset(slice(0, num_train)), random_images(labels)
    report, pictures = evaluate(model, {"train": train, "test": test}, cache_dir=cache, **FAST)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    write_report(report, pictures, tmp_path, model.config)
    write_card(tmp_path, model.config, report, name="tiny", recipe=None, dataset="photos")
    for text in (tables(report), (tmp_path / "report.md").read_text(), (tmp_path / "README.md").read_text()):
        assert "None" not in text and "nan" not in text.split()
    if len(labels) == 1:
        assert report["prediction"]["ap"] is None and report["comparison"]["ap"] is None
        assert set(report["prediction"]["intervals"].values()) == {None}
        assert report["generation"]["full"]["frechet_distance"]["real"] is None
    assert (report["prediction"]["accuracy"] is None) == (report["oracle"]["accuracy"] is None) == (labels[0][0] < 0)
    assert (tmp_path / "reliability.png").exists() == (labels[0][0] >= 0)


def test_images_with_held_out_combinations_may_be_few(model, tensors, cache):
    model.config.novel_combinations = [{"Smiling": True, "Hat": True}]
    splits = {"train": tensors, "test": tensors.subset(slice(0, 4)), "novel": random_images([[1, 0, 1]])}
    report, _ = evaluate(model, splits, cache_dir=cache, **FAST)
    assert report["generation"]["novel"]["num_images"] == 8 and "zero_shot" not in report
    assert tables(report)


def save(model, folder):
    size = {"height": 8, "width": 8}
    model.save_pretrained(folder, code=False)
    JemImageProcessor(size={"shortest_edge": 8}, crop_size=size).save_pretrained(folder)
    return folder


def write_photos(folder, splits):
    rng = np.random.default_rng(0)
    for split in splits:
        (folder / split).mkdir(parents=True)
        lines = ["file_name,Smiling,Hair,Hat"]
        for i in range(12):
            Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / split / f"{i}.png")
            lines.append(f"{i}.png,{('no', 'yes')[i % 2]},{('black', 'blond', 'red')[i % 3]},{('no', 'yes')[i // 6]}")
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_test_split_alone_is_evaluated_without_baselines(model, tmp_path, monkeypatch):
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    folder, photos = save(model, tmp_path / "model"), write_photos(tmp_path / "photos", ["test"])
    arguments = ("evaluate", folder, "--dataset", photos, "--prediction-only")
    report = json.loads(run(*arguments, "--json", "--output", tmp_path / "report").stdout)
    assert report["num_images"] == 12 and "baselines" not in report and "comparison" not in report
    assert report["prediction"]["intervals"]["accuracy"] and "training split" in report["left_out"]["baselines"]
    assert "Left out: baselines" in run(*arguments).stdout
    assert "Left out: baselines" in (tmp_path / "report" / "report.md").read_text()
    refused = run(*arguments[:-1])
    assert refused.exit_code == 2 and "training split" in refused.stderr and "--prediction-only" in refused.stderr


def test_a_split_that_is_not_there_is_named_with_those_that_are(model, tmp_path, monkeypatch):
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    folder, photos = save(model, tmp_path / "model"), write_photos(tmp_path / "photos", ["train", "test"])
    result = run("evaluate", folder, "--dataset", photos, "--split", "holdout", "--prediction-only")
    assert result.exit_code == 2 and "no split 'holdout'; there are train, test" in result.stderr
    trained_on = run("evaluate", folder, "--dataset", photos, "--split", "train", "--prediction-only", "--json")
    assert "baselines" in json.loads(trained_on.stdout)["left_out"]


def test_one_split_is_divided_as_in_training(model, tmp_path, monkeypatch):
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    folder, photos = save(model, tmp_path / "model"), write_photos(tmp_path / "photos", ["train"])
    result = run("evaluate", folder, "--dataset", photos, "--prediction-only", "--json")
    report = json.loads(result.stdout)
    assert report["num_images"] == 1 and "baselines" in report


@pytest.mark.slow
def test_a_home_that_cannot_be_written_costs_a_warning(model, tmp_path):
    folder, photos = save(model, tmp_path / "model"), write_photos(tmp_path / "photos", ["train", "test"])
    env = {name: value for name, value in os.environ.items() if name not in ("JEM_HF_CACHE", "HF_HOME")}
    env |= {"HOME": "/dev/null", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    arguments = ["evaluate", folder, "--dataset", photos, "--prediction-only", "--json"]
    result = fresh_process.run(fresh_process.COMMAND, *map(str, arguments), cwd=tmp_path, env=env)
    assert json.loads(result.stdout)["baselines"], result.stderr
    assert "/dev/null/.cache/jem_hf" in result.stderr and "JEM_HF_CACHE" in result.stderr


def test_bits_per_dimension(model, tmp_path, monkeypatch):
    """Weights at their start are nearly uniform: 8 bits."""
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    folder, photos = save(model, tmp_path / "model"), write_photos(tmp_path / "photos", ["test"])
    arguments = ("evaluate", folder, "--dataset", photos, "--prediction-only", "--bits-per-dimension")
    arguments += ("--num-chains", "4", "--num-temperatures", "20")
    found = json.loads(run(*arguments, "--json", "--output", tmp_path / "report").stdout)["likelihood"]
    assert found["low"] <= found["bits_per_dimension"] <= found["high"]
    assert found["bits_per_dimension"] == pytest.approx(8, abs=0.1)
    assert (found["num_images"], found["num_chains"], found["num_temperatures"]) == (12, 4, 20)
    assert found["log_z_forward"] == pytest.approx(found["log_z_reverse"], abs=0.5)
    assert "Bits per dimension of 12 test images:" in (tmp_path / "report" / "report.md").read_text()
