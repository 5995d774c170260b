"""Drawn images fill what lacks, and only where an independent classifier agrees."""

import json
import shutil

import datasets
import pytest
import torch
from conftest import striped_images
from torchvision.transforms.v2.functional import to_pil_image
from typer.testing import CliRunner

from jem_hf import JemConfig, JemModel, load_attribute_dataset
from jem_hf.cli import app
from jem_hf.curation.balance import (
    BATCH_SIZE,
    MAX_ATTEMPTS,
    check_addable,
    combination_log_odds,
    extended,
    fill_combinations,
    write_extended,
)
from jem_hf.evaluation.judges import load_oracle
from jem_hf.models.image_processing_jem import JemImageProcessor, to_pixels


@pytest.fixture(scope="module")
def painter():
    """A model that draws what it is asked for: striped images in place of a chain."""
    config = JemConfig(
        attributes=["stripe", "block"],
        attribute_values={"block": ["none", "high", "wide"]},
        backbone_kwargs={"width": 4, "hidden_size": 8},
        image_size=16,
    )
    torch.manual_seed(0)
    model = JemModel(config).eval()
    pool = striped_images(3000, seed=11)

    def generate(labels, generator, **_):
        chosen = []
        for row in labels:
            fits = ((pool.labels == row) | (row < 0)).all(1).nonzero()[:, 0]
            chosen.append(fits[torch.randint(len(fits), (), generator=generator)])
        return to_pixels(pool.images[torch.stack(chosen)]), labels

    model.generate = generate
    return model


@pytest.fixture(scope="module")
def thinned():
    """Striped images of which high blocks with a stripe are rare, and wide ones with a stripe are absent."""
    split = striped_images(900, seed=3)
    stripe, block = split.labels.T
    rare = ((stripe == 1) & (block == 1)).nonzero()[4:, 0]
    keep = torch.ones(len(split), dtype=torch.bool)
    keep[rare] = False
    keep &= ~((stripe == 1) & (block == 2))
    return split.subset(keep)


@pytest.mark.slow
def test_combinations_are_filled_and_what_others_do_not_see_is_dropped(painter, thinned, tmp_path):
    oracle = load_oracle(thinned, (2, 3), cache_dir=tmp_path)  # which has seen four of the one and none of the other
    stranger = load_oracle(striped_images(600, seed=0), (2, 3), cache_dir=tmp_path)
    images, report = fill_combinations(painter, thinned, ["stripe", "block"], 10, oracle)
    found = {each["request"]: each for each in report}
    assert found["stripe & block=high"]["before"] == 4 and found["stripe & block=wide"]["before"] == 0
    assert found["~stripe & block=none"]["drawn"] == 0
    for each in report:
        assert each["after"] >= 10 and each["after"] == each["before"] + each["accepted"]
    assert len(images) == 6 + 10
    for each in images:
        pixels = JemImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})(
            each["image"], return_tensors="pt"
        )
        seen = stranger.predict(pixels["pixel_values"])[0].tolist()
        assert {"stripe": bool(seen[0]), "block": ["none", "high", "wide"][seen[1]]} == each["attributes"]
    again, _ = fill_combinations(painter, thinned, ["stripe", "block"], 10, oracle)
    assert [each["image"].tobytes() for each in again] == [each["image"].tobytes() for each in images]


def test_a_combination_is_judged_without_what_goes_together_in_the_data():
    """Bayes with `p(x | a, b)` known: freed from the prior of the data it is that of independent attributes."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([[399, 199, 99], [999, 0, 49]])
    prior = (counts + 1.0) / (counts + 1.0).sum()
    independent = prior.sum(1, keepdim=True) * prior.sum(0, keepdim=True)
    p = torch.rand(50, 2, 3, generator=generator)
    p[:, 0, 2] = 0
    p = p / p.sum(-1, keepdim=True)
    posterior = p[:, 0, :2, None] * p[:, 1, None, :]  # of a classifier whose attributes are independent given x
    likelihood = posterior / prior
    expected = (likelihood * independent).flatten(1)
    torch.testing.assert_close(combination_log_odds(p, counts).softmax(1), expected / expected.sum(1, keepdim=True))
    even = combination_log_odds(p, torch.full((2, 3), 100)).argmax(1)
    assert torch.equal(even, 3 * p[:, 0].argmax(1) + p[:, 1].argmax(1))  # nothing goes together: what each one says
    one = combination_log_odds(p[:, 1:], torch.tensor([5, 300, 20]))
    torch.testing.assert_close(one.softmax(1), p[:, 1])  # a single attribute is judged as it is


def test_what_no_other_sees_is_given_up(painter, thinned):
    class Blind:
        def predict_proba(self, images):
            return torch.tensor([[1.0, 0, 0], [1, 0, 0]]).expand(len(images), -1, -1)

    images, report = fill_combinations(
        painter, thinned, ["stripe"], int((thinned.labels[:, 0] == 1).sum()) + 3, Blind()
    )
    assert not images
    assert report[1]["accepted"] == 0 and 3 * MAX_ATTEMPTS <= report[1]["drawn"] < 3 * MAX_ATTEMPTS + BATCH_SIZE


@pytest.mark.parametrize("attributes, number", [([], 3), (["stripe", "stripe"], 3), (["stripe"], 0)])
def test_bad_wishes_are_refused(painter, thinned, attributes, number):
    with pytest.raises(ValueError, match="name one or more different attributes, and a number"):
        fill_combinations(painter, thinned, attributes, number, None)
    with pytest.raises(ValueError, match="did you mean 'stripe'"):
        fill_combinations(painter, thinned, ["strip"], 3, None)


def data_set(split):
    features = datasets.Features(
        image=datasets.Image(),
        stripe=datasets.Value("bool"),
        block=datasets.ClassLabel(names=["none", "high", "wide"]),
    )
    images = [to_pil_image(image) for image in split.images]
    stripe, block = split.labels.T.tolist()
    rows = datasets.Dataset.from_dict(
        {"image": images, "stripe": list(map(bool, stripe)), "block": block}, features=features
    )
    return datasets.DatasetDict(train=rows, test=rows.select(range(5)))


def test_an_extended_data_set_is_loaded_and_says_what_is_drawn(tmp_path):
    split = striped_images(20, seed=1)
    drawn = [
        {
            "image": to_pil_image(split.images[0]),
            "attributes": {"stripe": True},
            "request": "stripe",
            "seed": 7,
            "energy": -1.5,
        }
    ]
    report = [{"request": "stripe", "before": 1, "drawn": 64, "accepted": 1, "after": 2}]
    write_extended(extended(data_set(split), drawn), report, tmp_path / "out", "tiny")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 21, "test": 5}
    assert loaded["train"]["synthetic"] == [False] * 20 + [True]
    last = loaded["train"][20]
    assert (last["stripe"], last["block"], last["request"], last["seed"], last["energy"]) == (
        True,
        None,
        "stripe",
        7,
        -1.5,
    )
    assert last["image"].tobytes() == to_pil_image(split.images[0]).tobytes()
    assert loaded["train"][3]["block"] == split.labels[3, 1] and loaded["train"][3]["request"] is None
    assert not any(loaded["test"]["synthetic"])
    assert "| stripe | 1 | 64 | 1 | 2 |" in (tmp_path / "out" / "README.md").read_text()
    empty = extended(data_set(split), [])
    assert not any(empty["train"]["synthetic"])


def test_values_are_added_as_the_data_spell_them(tmp_path):
    split = striped_images(20, seed=1)
    config = JemConfig(attributes=["block", "hat"], attribute_values={"block": ["High", "NONE"]})
    own, image = data_set(split), to_pil_image(split.images[0])
    check_addable(own, ["block"], config)
    drawn = {"image": image, "attributes": {"block": "High"}, "request": "", "seed": 0, "energy": 0.0}
    assert extended(own, [drawn])["train"][20]["block"] == 1
    with pytest.raises(ValueError, match="the data have no attribute 'hat' that drawn images could have"):
        check_addable(own, ["hat"], config)
    config = JemConfig(attributes=["block"], attribute_values={"block": ["high", "low"]})
    with pytest.raises(ValueError, match="'block' has no value 'low' in the data: rename"):
        check_addable(own, ["block"], config)
    config = JemConfig(attributes=["block"])  # True would be added as the value of label 1
    with pytest.raises(ValueError, match="'block' has the values none, high, wide in the data and is binary in the"):
        check_addable(own, ["block"], config)


def test_the_command(config, tmp_path, monkeypatch):
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    values = dict(attributes=["stripe", "block"], attribute_values={"block": ["none", "high", "wide"]}, image_size=16)
    model = JemModel(JemConfig(**values, backbone_kwargs={"width": 4, "hidden_size": 8}, num_inference_steps=2))
    model.save_pretrained("tiny")
    model.image_processor().save_pretrained("tiny")
    (tmp_path / "data").mkdir()
    split = striped_images(60, seed=1)
    lines = ["file_name,stripe,block,shape"]
    for i, (image, (stripe, block)) in enumerate(zip(split.images, split.labels.tolist())):
        to_pil_image(image).save(f"data/{i}.png")
        lines.append(f"{i}.png,{('no', 'yes')[stripe]},{['none', 'high', 'wide'][block]},{('round', 'square')[i % 2]}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    wish = ["--attributes", "stripe, block", "--per-combination", "12"]
    result = CliRunner().invoke(app, ["balance", "tiny", "--dataset", "data", *wish, "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)["combinations"]
    assert [each["request"] for each in report][:2] == ["~stripe & block=none", "~stripe & block=high"]
    assert report == json.loads((tmp_path / "extended" / "balance.json").read_text())
    loaded = datasets.load_dataset("extended", cache_dir=str(tmp_path / "cache"))
    assert sum(loaded["train"]["synthetic"]) == sum(each["accepted"] for each in report)
    assert set(loaded["train"].features["shape"].names) == {"round", "square"}  # of which the model knows nothing
    shutil.rmtree("data")
    assert loaded["train"][0]["image"].size == (16, 16)  # the files are not needed any more
    attributes = load_attribute_dataset("extended", cache_dir=str(tmp_path / "cache"))["train"].column_names
    assert attributes == ["image", "stripe", "block", "shape"]
    for name, output, message in (
        ("extended", "other", "drawn images already"),
        ("data", "extended", "has data already"),
    ):
        result = CliRunner().invoke(app, ["balance", "tiny", "--dataset", name, *wish, "-o", output])
        assert result.exit_code == 2 and message in result.stderr


def test_a_column_that_cannot_take_drawn_images_is_said_before_any_is_drawn(tmp_path, monkeypatch):
    """Of more values than an attribute may have, of which the model knows three."""
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    values = dict(attributes=["stripe", "block"], attribute_values={"block": ["none", "high", "wide"]}, image_size=16)
    model = JemModel(JemConfig(**values, backbone_kwargs={"width": 4, "hidden_size": 8}))
    model.save_pretrained("tiny")
    model.image_processor().save_pretrained("tiny")
    (tmp_path / "data").mkdir()
    split = striped_images(80, seed=1)
    lines = ["file_name,stripe,block"]
    for i, (image, (stripe, block)) in enumerate(zip(split.images, split.labels.tolist())):
        to_pil_image(image).save(f"data/{i}.png")
        lines.append(f"{i}.png,{stripe},{f'rare{i}' if i < 60 else ['none', 'high', 'wide'][block]}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    arguments = ["balance", "tiny", "--dataset", "data", "--attributes", "block", "--per-combination", "99"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "the data have no attribute 'block' that drawn images could have" in result.stderr
    assert not list((tmp_path / "cache").rglob("*.safetensors"))  # nor was the classifier trained
