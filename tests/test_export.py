"""A tagger in one file gives what the model gives."""

import json

import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from jem_hf import JemConfig, JemModel
from jem_hf.cli import app
from jem_hf.hub.export import export


@pytest.fixture(params=["pixels", "codes"])
def network(request, config):
    torch.manual_seed(0)
    if request.param == "pixels":
        return JemModel(config).eval()
    values = config.to_dict() | dict(image_size=32, autoencoder=dict(code_size=8, code_channels=2, width=16, depth=1))
    return JemModel(JemConfig.from_dict(values)).eval()


@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_an_onnx_file_gives_the_same(network, tmp_path, num_images):
    session = onnxruntime.InferenceSession(export(network, tmp_path / "tagger.onnx"))
    size = network.config.image_size
    x = torch.rand(num_images, 3, size, size) * 2 - 1
    probabilities, energy = session.run(["probabilities", "energy"], {"pixel_values": x.numpy()})
    with torch.no_grad():
        output = network(x)
    torch.testing.assert_close(torch.tensor(probabilities), output.logits.sigmoid(), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(energy), output.energy, atol=1e-4, rtol=0)
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert about["labels"] == network.config.label_names and about["image_size"] == size
    assert about["image_processor"]["image_mean"] == [0.5, 0.5, 0.5]
    assert about["image_processor"]["crop_size"] == {"height": size, "width": size}


def test_an_exported_program_gives_the_same(network, tmp_path):
    about = {"labels": ""}
    program = torch.export.load(export(network, tmp_path / "tagger.pt2"), extra_files=about)
    size = network.config.image_size
    x = torch.rand(3, 3, size, size) * 2 - 1
    with torch.no_grad():
        probabilities, energy = program.module()(x)
        output = network(x)
    torch.testing.assert_close(probabilities, output.logits.sigmoid())
    torch.testing.assert_close(energy, output.energy)
    assert json.loads(about["labels"]) == network.config.label_names


def test_what_cannot_be_exported(model, config, tmp_path):
    with pytest.raises(ValueError, match=r"let it end in \.onnx or \.pt2"):
        export(model, tmp_path / "tagger.bin")
    pairwise = JemModel(JemConfig.from_dict(config.to_dict() | {"head": "pairwise"}))
    with pytest.raises(ValueError, match="'pairwise' sums over labels by sampling"):
        export(pairwise, tmp_path / "tagger.onnx")


def test_the_command(model, tmp_path):
    model.save_pretrained(tmp_path / "tiny")
    result = CliRunner().invoke(
        app, ["export", str(tmp_path / "tiny"), "-o", str(tmp_path / "out" / "a.onnx"), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["output"] == str(tmp_path / "out" / "a.onnx")
    assert (tmp_path / "out" / "a.onnx").stat().st_size > 1000
