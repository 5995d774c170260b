"""The evidence at tiny size: six trials from end to end, and what they are made of."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import striped_images
from torchvision.transforms.v2.functional import to_pil_image

from jem_hf import JemConfig, JemModel

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "evidence"
MODULES = ("contenders", "trials", "figures", "evidence")


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    config = JemConfig(
        attributes=["stripe", "block"], backbone_kwargs={"width": 4, "hidden_size": 8}, image_size=16,
        num_inference_steps=2, novel_combinations=[{"stripe": True, "block": True}, {"stripe": False, "block": False}],
    )  # fmt: skip
    return JemModel(config)


@pytest.mark.slow
def test_six_trials(scripts, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "cache"))
    tiny.save_pretrained("tiny")
    tiny.image_processor().save_pretrained("tiny")
    split = striped_images(400, seed=1)
    (tmp_path / "data").mkdir()
    lines = ["file_name,split,stripe,block"]
    for i, (image, (stripe, block)) in enumerate(zip(split.images, split.labels.tolist())):
        to_pil_image(image).save(tmp_path / "data" / f"{i}.png")
        lines.append(f"{i}.png,{'train' if i < 300 else 'test'},{stripe},{int(block > 0)}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    shifts = scripts["trials"].SHIFTS
    monkeypatch.setattr(scripts["trials"], "SHIFTS", {kind: shifts[kind] for kind in ("noisy", "JPEG")})
    monkeypatch.setattr(scripts["trials"], "NUM_PGD_STEPS", 2)
    monkeypatch.setattr(scripts["contenders"], "LENGTHS", (0.5, 1.0))
    command = "evidence.py data --model tiny --quick --steps 2 --num-images 16 --output out"
    monkeypatch.setattr(sys, "argv", command.split())
    scripts["evidence"].main()
    out = tmp_path / "out"
    found = {name: json.loads((out / f"{name}-0.json").read_text()) for name in scripts["evidence"].TRIALS}
    assert set(found["few_labels"]) == {"labels", "images"}
    assert {"joint", "classifier", "classifier, temperature"} <= found["few_labels"]["labels"].keys()
    shifted = found["shift"]["strengths"]
    assert {
        "ensemble of four",
        "MC dropout",
        "label smoothing",
        "warm-up, then JEM",
        "joint, then CD",
    } <= shifted.keys()
    assert all(len(rows) == 6 for kinds in shifted.values() for rows in kinds.values())
    assert {"noise", "avatars"} <= found["outliers"]["joint"]["Mahalanobis of all"].keys()
    assert {"joint", "joint, pairwise", "boosted trees"} == found["known_labels"].keys()
    assert set(found["attacks"]["classifier"]) == {"0", "2", "4"}
    assert len(found["combinations"]["drawn"]) == 2
    for name in found:
        assert (out / f"{name}.png").stat().st_size > 5000


def test_a_stronger_shift_takes_images_further(scripts):
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for change, strengths in scripts["trials"].SHIFTS.values():
        distance = [(change(x, strength) - x).abs().mean().item() for strength in strengths]
        assert len(distance) == 5 and distance[0] > 0 and distance == sorted(distance)


def test_risk_and_coverage(scripts):
    """By hand: errors 0, 1 and 1 from the surest on cost 0, 1/2 and 2/3; from the least sure on 1, 1 and 2/3."""
    aurc = scripts["trials"]._aurc
    risk, signal = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([3.0, 2.0, 1.0])
    assert aurc(risk, signal) == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)
    assert aurc(risk, -signal) == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_an_attack_stays_inside_its_box_and_does_harm(scripts, tiny):
    contender = scripts["contenders"].Contender([tiny.eval()])
    x = torch.rand(6, 3, 16, 16) * 2 - 1
    labels = contender.logits(x).argmax(-1)
    moved = scripts["trials"]._attack(contender, x, labels, 0.3)
    assert (moved - x).abs().max() <= 0.3 + 1e-6 and moved.abs().max() <= 1
    before, after = (contender.logits(each).log_softmax(-1).gather(-1, labels[..., None]).sum() for each in (x, moved))
    assert after < before - 0.01


def test_smoothed_labels_are_those_of_torch(scripts):
    """Of binary attributes, where torch has the loss itself."""
    logits, labels = torch.randn(5, 2, 2), torch.tensor([[0, 1], [1, 1], [0, -1], [1, 0], [-1, -1]])

    class Trainer:
        encode = staticmethod(lambda x: x)

    loss, _ = scripts["contenders"].label_smoothing(
        Trainer, lambda codes, potentials_only: type("Output", (), {"potentials": logits}), None, labels
    )
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-1, label_smoothing=scripts["contenders"].SMOOTHING
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_ensemble_has_the_mean_of_its_probabilities(scripts, tiny):
    torch.manual_seed(1)
    other = JemModel(tiny.config).eval()
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    both = scripts["contenders"].Contender([tiny.eval(), other]).logits(x).softmax(-1)
    mean = (tiny.predict_proba(x) + other.predict_proba(x)) / 2
    assert np.allclose(both.detach(), mean.detach(), atol=1e-6)
