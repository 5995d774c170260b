"""The benchmark of curation at tiny size: that it finds what it plants."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import striped_images
from torchvision.transforms.v2.functional import to_pil_image

from jem_hf import JemConfig, JemModel

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("curation")
    sys.path.remove(str(FOLDER))
    del sys.modules["curation"]


@pytest.fixture
def args(tmp_path, monkeypatch):
    """A model and a folder of images of two binary attributes, one combination of which the model holds out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    network = {"width": 4, "hidden_size": 8}
    config = JemConfig(
        attributes=["stripe", "block"], backbone_kwargs=network, image_size=16, num_inference_steps=2,
        novel_combinations=[{"stripe": True, "block": True}],
    )  # fmt: skip
    model = JemModel(config)
    model.save_pretrained("tiny")
    model.image_processor().save_pretrained("tiny")
    split = striped_images(600, seed=1)
    (tmp_path / "data").mkdir()
    lines = ["file_name,split,stripe,block"]
    for i, (image, (stripe, block)) in enumerate(zip(split.images, split.labels.tolist())):
        to_pil_image(image).save(tmp_path / "data" / f"{i}.png")
        lines.append(f"{i}.png,{'train' if i < 450 else 'test'},{stripe},{int(block > 0)}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    return SimpleNamespace(
        model="tiny", dataset="data", num_images=250, epochs=1, steps=8, seeds=1, seed=0, pairwise=False, show=0,
        combinations=["block & stripe"], per_combination=12, remedies=["thinned", "balanced, reweighted"],
    )  # fmt: skip


def test_copies_are_found(script, args):
    found = script.duplicates(args)
    assert found["other_new_pairs"] == 0 and found["pairs_before"] == 0
    assert found["found_of_50"]["5% brighter"] >= 48


@pytest.mark.slow
def test_flips_are_looked_for_by_every_method(script, args):
    pytest.importorskip("cleanlab")
    found = script.audit(args)
    assert list(found) == [0.02, 0.05, 0.1]
    for rows in found.values():
        assert {
            "cross-fitted",
            "cleanlab, self confidence",
            "the model itself, trained on the right labels",
        } <= rows.keys()
        assert all(0 <= number <= 1 for row in rows.values() for number in row.values())


@pytest.mark.slow
def test_remedies_are_compared_on_the_same_images(script, args):
    found = script.balance(args)
    drawn = {each["request"]: each for each in found["drawn"][0]}
    assert drawn["stripe & block"]["before"] == 10
    assert list(found["results"]) == args.remedies
    for ((row,),) in zip(found["results"].values()):
        assert 0 <= row["block & stripe"]["worst_group"] <= row["block & stripe"]["overall"] <= 1
