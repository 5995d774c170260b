"""What an audit finds is what was planted."""

import copy
import io
import json
import shutil

import datasets
import pyarrow.parquet
import pytest
import torch
from conftest import striped_images
from PIL import Image, ImageEnhance
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from typer.testing import CliRunner

from jem_hf import AttributeTensors, JemConfig, JemModel
from jem_hf.cli import app
from jem_hf.curation.audit import (
    audit,
    conditional_probabilities,
    cross_fit,
    label_issues,
    missing_labels,
    rare_combinations,
)
from jem_hf.curation.audit_page import page, write_audit
from jem_hf.curation.duplicates import near_duplicates
from jem_hf.data.avatars import render


@pytest.fixture(scope="module")
def striped_model():
    torch.manual_seed(0)
    config = JemConfig(
        attributes=["stripe", "block"],
        attribute_values={"block": ["none", "high", "wide"]},
        backbone_kwargs={"width": 8, "hidden_size": 16},
        image_size=16,
    )
    return JemModel(config).eval()


@pytest.mark.slow
def test_flipped_labels_are_found_by_models_that_did_not_learn_them(striped_model):
    split = striped_images(400, seed=5)
    truth = split.labels.clone()
    flipped = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:20]
    split.labels[flipped, 0] = 1 - split.labels[flipped, 0]
    split.labels[7, 1] = -1
    found = audit(striped_model, {"train": split}, num_folds=2, num_epochs=60)
    labels = [each for each in found.suspects if each["issue"] == "label" and each["attribute"] == "stripe"]
    assert found.is_out_of_sample
    first = {each["row"] for each in labels[:20]}
    assert len(first & set(flipped.tolist())) >= 18
    assert all(each["given_label"] != each["predicted_label"] for each in labels)
    assert [each["score"] for each in labels] == sorted(each["score"] for each in labels)
    (missing,) = [each for each in found.suspects if each["issue"] == "missing"]
    assert missing["row"] == 7 and missing["predicted_label"] == ["none", "high", "wide"][truth[7, 1]]
    assert missing["given_label"] == ""


def test_every_image_is_judged_by_a_model_that_never_saw_it(striped_model, monkeypatch):
    split, seen = striped_images(30, seed=2), []

    def train(model, part, progress, **training):
        seen.append({image.sum().item() for image in part.images.long()})
        return model.eval()

    def judge(model, images, labels):
        assert not seen[-1] & {image.sum().item() for image in images.long()}
        return torch.full((len(images), 2, 3), len(seen) / 10)

    monkeypatch.setattr("jem_hf.curation.audit.train_classifier", train)
    monkeypatch.setattr("jem_hf.curation.audit.conditional_probabilities", judge)
    p = cross_fit(striped_model, split.images, split.labels, num_folds=3)
    assert [(p[:, 0, 0] == fold).sum().item() for fold in torch.tensor([0.1, 0.2, 0.3])] == [10, 10, 10]


def test_a_label_is_judged_given_the_others(config):
    """By a head with interactions: `p(y_k | x, y_others)` is the ratio of joint densities."""
    torch.manual_seed(0)
    model = JemModel(JemConfig.from_dict(config.to_dict() | {"head": "pairwise"})).eval()
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([[1, 2, 0], [0, 0, 1], [1, -1, 1]])
    p = conditional_probabilities(model, images, labels)
    x = images[:1] / 127.5 - 1
    with torch.no_grad():
        log_joint = torch.cat([model.log_joint(x, torch.tensor([[1, v, 0]])) for v in range(3)])
        torch.testing.assert_close(p[0, 1, :3], log_joint.softmax(0), atol=1e-5, rtol=0)
        guess = model.predict_proba(images[2:] / 127.5 - 1, labels[2:]).argmax(-1)[0, 1].item()
        rows = torch.tensor([[v, guess, 1] for v in range(2)])
        log_joint = torch.cat([model.log_joint(images[2:] / 127.5 - 1, row[None]) for row in rows])
        torch.testing.assert_close(p[2, 0, :2], log_joint.softmax(0), atol=1e-5, rtol=0)


def test_label_issues_by_hand():
    """Usual confidence: value 0 has (.9 + .8 + .3) / 3, value 1 has .7; only image 2 reaches that of the other."""
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.3, 0.7], [0.24, 0.76], [0.3, 0.7]])[:, None]
    labels = torch.tensor([[0], [0], [0], [1], [-1], [-1]])
    assert label_issues(p, labels) == [("label", 2, 0, 1, pytest.approx(0.3))]
    assert missing_labels(p, labels, [2]) == [("missing", 4, 0, 1, pytest.approx(0.76))]
    three = torch.tensor([[[0.3, 0.7, 0.0]], [[0.4, 0.6, 0.0]]])  # halfway from 1/3, though nothing is of the third
    assert missing_labels(three, -torch.ones(2, 1), [3]) == [("missing", 0, 0, 1, pytest.approx(0.7))]


def test_rare_combinations_by_hand(config):
    labels = torch.tensor([[1, 2, 1]] * 30 + [[0, 0, 0]] * 30 + [[1, 0, -1]] * 40 + [[0, 2, 0]] * 3)
    found = rare_combinations(labels, config)
    first = {
        "combination": {"Smiling": "True", "Hat": "False"},
        "count": 0,
        "expected": pytest.approx(30 * 33 / 63, abs=0.1),
    }
    assert first in found
    assert {"Smiling": "False", "Hair": "red"} in [each["combination"] for each in found]
    assert all(each["count"] < 10 <= each["expected"] for each in found)
    assert [each["expected"] for each in found] == sorted((each["expected"] for each in found), reverse=True)


def faces(first, num):
    return [render(i, seed=3)[0] for i in range(first, first + num)]


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_planted_copies_are_found_and_only_these():
    """Faces of few parts, of which some differ by a mouth alone."""
    originals = faces(0, 60)
    changes = [
        lambda image: jpeg(image, 75),
        lambda image: jpeg(image, 90),
        lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.05),
        lambda image: image,
    ]
    copies = [change(image) for change, image in zip(changes * 2, originals)]
    images = torch.stack([pil_to_tensor(image.convert("RGB")) for image in [*originals, *copies]])
    found = near_duplicates(images)
    expected = {(i, 60 + i) for i in range(10)}
    pairs = {(i, j) for i, j, _ in found}
    assert expected <= pairs
    same = {(i, j) for i, j in pairs - expected if (images[i].float() - images[j].float()).abs().mean() > 2}
    assert not same  # those beyond are faces that the generator drew twice
    assert [error for *_, error in found] == sorted(error for *_, error in found)
    assert near_duplicates(images[:1]) == near_duplicates(images[:0]) == []
    white = torch.full((3, 3, 4, 4), 255, dtype=torch.uint8)
    assert [(i, j) for i, j, _ in near_duplicates(white)] == [(0, 1), (0, 2), (1, 2)]


def test_an_audit_as_files(striped_model, tmp_path):
    splits = {"train": striped_images(40, seed=1), "test": striped_images(20, seed=2)}
    splits["test"].images[3] = splits["train"].images[5]
    found = audit(striped_model, splits)
    write_audit(found, splits, tmp_path / "out", "<mine>")
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "suspects.parquet").to_pylist()
    assert rows == found.suspects
    (copy,) = [each for each in rows if each["issue"] == "near_duplicate"]
    assert (copy["split"], copy["row"], copy["other"]) == ("train", 5, "test/3")
    summary = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert summary["num_issues"]["near_duplicate_across_splits"] == 1 and not summary["is_out_of_sample"]
    assert summary["num_images"] == {"train": 40, "test": 20}
    html = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;mine&gt;" in html and "<mine>" not in html and "train/5 and test/3" in html
    assert "http" not in html  # it needs nothing from elsewhere
    write_audit(found, splits, tmp_path / "out", "again")
    assert "again" in page(found, splits, "again")


def test_names_cannot_write_html(config, tensors):
    names = ["<b>Smiling</b>", "Hair", "Hat"]
    bad = JemConfig.from_dict(config.to_dict() | {"attributes": names})
    torch.manual_seed(0)
    split = AttributeTensors(tensors.images, tensors.labels, names)
    html = page(audit(JemModel(bad).eval(), {"train": split}), {"train": split}, "t")
    assert "<b>" not in html and "&lt;b&gt;Smiling" in html


def test_folds_that_cannot_be(striped_model):
    with pytest.raises(ValueError, match="do not stream the split 'train'"):
        audit(striped_model, {"train": iter(())})
    for num_folds in (-2, 1, 99):
        with pytest.raises(ValueError, match=f"{num_folds} folds of 40 images"):
            audit(striped_model, {"train": striped_images(40, seed=1)}, num_folds=num_folds)


def test_the_command(striped_model, tmp_path):
    striped_model.save_pretrained(tmp_path / "tiny")
    striped_model.image_processor().save_pretrained(tmp_path / "tiny")
    split = striped_images(30, seed=4)
    (tmp_path / "data").mkdir()
    lines = ["file_name,stripe,block"]
    for i, (image, (stripe, block)) in enumerate(zip(split.images, split.labels.tolist())):
        to_pil_image(image).save(tmp_path / "data" / f"{i}.png")
        lines.append(f"{i}.png,{stripe},{['none', 'high', 'wide'][block]}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    arguments = [
        "audit",
        str(tmp_path / "tiny"),
        "--dataset",
        str(tmp_path / "data"),
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert sum(json.loads(result.stdout)["num_images"].values()) == 30
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "suspects.parquet").to_pylist()
    assert rows and all(each["image"].startswith(str(tmp_path / "data")) for each in rows)
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize("kind", ["folder", "parquet", "no names"])
def test_a_value_that_the_model_does_not_know_is_not_missing(striped_model, tmp_path, monkeypatch, kind):
    """Of "block" row 3 has no label and rows 4 to 9 have another one, which a model that is sure knows nothing of."""
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    with torch.no_grad():
        striped_model = copy.deepcopy(striped_model)
        for parameter in striped_model.parameters():
            parameter *= 20
    split = striped_images(30, seed=4)
    cells = [["none", "high", "wide"][block] for _, block in split.labels.tolist()]
    cells[3:10] = ["", *[" Rare"] * 6]
    data = tmp_path / "data"
    data.mkdir()
    for i, image in enumerate(split.images):
        to_pil_image(image).save(data / f"{i}.png")
    lines = [f"{i}.png,{stripe},{cell}" for i, (stripe, cell) in enumerate(zip(split.labels[:, 0].tolist(), cells))]
    (data / "metadata.csv").write_text("\n".join(["file_name,stripe,block", *lines]))
    if kind != "folder":
        names = [f"{i}.png" if kind == "parquet" else None for i in range(30)]
        images = [{"bytes": (data / f"{i}.png").read_bytes(), "path": name} for i, name in enumerate(names)]
        columns = {"image": images, "stripe": split.labels[:, 0].bool().tolist(), "block": [c or None for c in cells]}
        shutil.rmtree(data)
        rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        rows.to_parquet(data / "all.parquet")
    striped_model.save_pretrained(tmp_path / "sure")
    striped_model.image_processor().save_pretrained(tmp_path / "sure")
    result = CliRunner().invoke(app, ["audit", f"{tmp_path}/sure", "--dataset", str(data), "-o", f"{tmp_path}/out"])
    assert result.exit_code == 0, result.stderr
    suspects = pyarrow.parquet.read_table(tmp_path / "out" / "suspects.parquet").to_pylist()
    missing = [each["image"].rpartition("/")[2] for each in suspects if each["issue"] == "missing"]
    assert missing == ([] if kind == "no names" else ["3.png"])
