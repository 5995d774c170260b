"""A checkpoint works where `jem_hf` is not installed, and is the same model there."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from hub_client import environment, python
from transformers import AutoModel, AutoModelForImageClassification, pipeline

import jem_hf
from jem_hf.models.hub_jem import TASK, code_files

pytestmark = pytest.mark.slow

EVERYTHING = """
from transformers import AutoImageProcessor, AutoModel, pipeline
from PIL import Image
trust = {"trust_remote_code": True}
model = AutoModel.from_pretrained(NAME, **trust)
model.save_pretrained("again")  # before anything has loaded the code of the pipeline
x = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
result["energy"] = model.eval()(x).energy.item()
result["module"] = type(model).__module__
generate = pipeline("attribute-conditional-generation", model=NAME, **trust)
result["images"] = digest(generate("Smiling & Hair=red", num_images=3, seed=7))
processor = AutoImageProcessor.from_pretrained(NAME, **trust)
result["size"] = processor(Image.new("RGB", (20, 30)), return_tensors="pt")["pixel_values"].shape[-1]
tag = pipeline("image-classification", model=NAME, **trust)
result["tags"] = sorted(each["label"] for each in tag(Image.new("RGB", (20, 30)), top_k=9))
"""


def digest(images):
    return hashlib.sha256(b"".join(item["image"].tobytes() for item in images)).hexdigest()


@pytest.fixture
def checkpoint(model, tmp_path):
    folder = tmp_path / "my-checkpoint"
    model.save_pretrained(folder)
    jem_hf.JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def test_a_saved_checkpoint_works_without_jem_hf(checkpoint, model, tmp_path):
    env = environment(tmp_path / "home", "http://127.0.0.1:9", offline=True)
    result = python(f"NAME = {str(checkpoint)!r}\n{EVERYTHING}", tmp_path, env, without_jem_hf=True)
    assert result["module"].startswith("transformers_modules.")
    x = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    assert result["energy"] == pytest.approx(model(x).energy.item(), abs=1e-5)
    generate = pipeline(TASK, model=model)
    assert result["images"] == digest(generate("Smiling & Hair=red", num_images=3, seed=7))
    assert result["size"] == 8 and len(result["tags"]) == 5
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {path.name for path in code_files()}
    again = jem_hf.JemModel.from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


def test_what_is_installed_asks_for_no_trust(checkpoint, model, capsys):
    drawn = pipeline(TASK, model=str(checkpoint))("Hat", num_images=2, seed=1)
    assert digest(drawn) == digest(pipeline(TASK, model=model)("Hat", num_images=2, seed=1))
    assert type(AutoModel.from_pretrained(checkpoint)) is jem_hf.JemModel
    assert type(AutoModel.from_pretrained(checkpoint, trust_remote_code=True)) is jem_hf.JemModel
    assert type(AutoModelForImageClassification.from_pretrained(checkpoint)) is jem_hf.JemModel
    assert pipeline("image-classification", model=str(checkpoint)).image_processor.crop_size.height == 8
    assert jem_hf.JemConfig.from_pretrained(checkpoint).to_dict() == model.config.to_dict()
    assert "Do you wish to run the custom code" not in capsys.readouterr().out


WRITTEN_BEFORE = {
    "config.json": {
        "attributes": ["Smiling", "Hair", "Hat"],
        "attribute_values": {"Hair": ["black", "blond", "red"]},
        "auto_map": {name: "modeling_jem.JemModel" for name in ("AutoModel", "AutoModelForImageClassification")}
        | {"AutoConfig": "configuration_jem.JemConfig"},
        "backbone_kwargs": {"hidden_size": 8, "width": 4},
        "custom_pipelines": {
            TASK: {"impl": "pipeline_jem.AttributeConditionalGenerationPipeline", "pt": ["AutoModel"]}
        },
        "id2label": {"0": "Smiling", "1": "Hair=black", "2": "Hair=blond", "3": "Hair=red", "4": "Hat"},
        "image_size": 8,
        "model_type": "jem",
        "novel_combinations": [{"Hair": "red", "Hat": True}],
        "num_inference_steps": 4,
        "problem_type": "multi_label_classification",
    },
    "preprocessor_config.json": {
        "auto_map": {"AutoImageProcessor": {"torchvision": "image_processing_jem.JemImageProcessor"}},
        "crop_size": {"height": 8, "width": 8},
        "image_processor_type": "JemImageProcessor",
        "size": {"shortest_edge": 8},
    },
}


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
def test_a_checkpoint_written_before_loads_with_this_code(model, tmp_path, trust):
    """Without `label_sampler`, its fields as they stood when their files were first published."""
    model.save_pretrained(tmp_path)
    for name, content in WRITTEN_BEFORE.items():
        (tmp_path / name).write_text(json.dumps(content))
    loaded = AutoModel.from_pretrained(tmp_path, **trust)
    assert type(loaded) is jem_hf.JemModel and loaded.config.novel_combinations == [{"Hair": "red", "Hat": True}]
    drawn = pipeline(TASK, model=str(tmp_path), **trust)("Hat", num_images=2, seed=1)
    assert digest(drawn) == digest(pipeline(TASK, model=model)("Hat", num_images=2, seed=1))
    assert loaded.image_processor().crop_size.height == 8


def test_files_of_a_checkpoint(checkpoint):
    names = {path.stem for path in checkpoint.glob("*.py")}
    assert names == {path.stem for path in code_files()}
    assert {"hub_jem", "modeling_jem", "pipeline_jem", "requests_jem", "sampling_jem"} <= names
    assert all(name.endswith("_jem") for name in names)
    for path in checkpoint.glob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(import jem_hf|from jem_hf|from \. import)", text, re.MULTILINE)
    config = json.loads((checkpoint / "config.json").read_text())
    assert list(config["custom_pipelines"]) == [TASK] and "default" not in config["custom_pipelines"][TASK]
    for entry in config["auto_map"].values():
        module, name = entry.split(".")
        assert f"class {name}(" in (checkpoint / f"{module}.py").read_text()
    for path in checkpoint.glob("*.json"):
        assert str(Path.home()) not in path.read_text() and str(checkpoint.parent) not in path.read_text()


def test_saving_a_pipeline_leaks_no_path(model, tmp_path):
    pipeline(TASK, model=model).save_pretrained(tmp_path)
    assert str(jem_hf.CARDS) not in (tmp_path / "config.json").read_text()
    assert "pipeline_jem.AttributeConditionalGenerationPipeline" in (tmp_path / "config.json").read_text()


def test_code_can_be_left_out(model, tmp_path):
    model.save_pretrained(tmp_path, code=False)
    assert not list(tmp_path.glob("*.py")) and "auto_map" not in json.loads((tmp_path / "config.json").read_text())
