"""Checkpoints that are not what they say: one clear error each, nothing unpickled, no file touched."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

import jem_hf
from jem_hf import JemConfig, JemImageProcessor, JemModel
from jem_hf.cli import app

PACKAGE = Path(jem_hf.__file__).parent


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    JemImageProcessor(**size).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def weights(change):
    """A change of the tensors, as a change of the folder."""

    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def config(**fields):
    def apply(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | fields))

    return apply


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder.parent / "unpickled")))


def pickle_as_safetensors(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(folder.parent / "unpickled")))


def index_of_pickles(folder):
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "part.bin").write_bytes(pickle.dumps(Payload(folder.parent / "unpickled")))
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(names, "part.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


HEAD = "head.linear.bias"
CASES = {
    "wrong shape": (weights(lambda t: t.update({HEAD: torch.zeros(4)})), r"head.linear.bias has the shape \(4,\)"),
    "missing key": (weights(lambda t: t.pop(HEAD)), "lacks weights: head.linear.bias"),
    "missing keys of the labels": (weights(lambda t: t.pop("label_prior.bias")), "lacks weights: label_prior.bias"),
    "extra key": (weights(lambda t: t.update(tail=torch.zeros(4))), "has unknown weights: tail"),
    "other names": (
        weights(lambda t: [t.update({f"x.{name}": t.pop(name)}) for name in list(t)]),
        "lacks weights",
    ),
    "no weights": (weights(lambda t: t.clear()), "lacks weights"),
    "NaN": (weights(lambda t: t[HEAD].fill_(float("nan"))), "not finite: head.linear.bias"),
    "infinity": (weights(lambda t: t["backbone.mlp.1.weight"].view(-1)[3:4].fill_(float("-inf"))), "not finite"),
    "truncated": (truncate, "damaged or no safetensors"),
    "nothing in the file": (write("model.safetensors", b""), "damaged or no safetensors"),
    "text": (write("model.safetensors", b"<html>404</html>" * 9), "damaged or no safetensors"),
    "pickle alone": (only_pickle, "pytorch_model.bin may be a pickle"),
    "pickle named safetensors": (pickle_as_safetensors, "damaged or no safetensors"),
    "index of pickles": (index_of_pickles, ""),
    "no file of weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "empty folder": (empty, "has no config.json"),
    "config no JSON": (write("config.json", b"{"), "not a valid JSON"),
    "config binary": (write("config.json", b"\xff\xfe\x00"), "not a valid JSON"),
    "config a list": (write("config.json", b"[1]"), "not the config of a JemModel"),
    "config empty": (write("config.json", b"{}"), "at least one attribute"),
    "config of another model": (config(model_type="bert"), "not the config of a JemModel but 'bert'"),
    "more attributes": (config(attributes=["Smiling", "Hair", "Hat", "Bald"]), "not those of its config"),
    "fewer attributes": (config(attributes=["Smiling", "Hair"]), "not those of its config"),
    "more values": (config(attribute_values={"Hair": ["black", "blond", "red", "grey"]}), "not those of its config"),
    "another width": (config(backbone_kwargs={"width": 8, "hidden_size": 8}), "not those of its config"),
    "unknown argument": (config(backbone_kwargs={"widht": 8}), "does not take.*'widht'"),
    "unknown head": (config(head="produkt"), "did you mean 'product'"),
    "another head": (config(head="pairwise"), "lacks weights: head.interaction"),
    "wrong type": (config(image_size="8"), "image_size"),
    "NaN in the config": (config(guidance_scale=float("nan")), "guidance_scale is a finite number"),
}


@pytest.mark.parametrize("name", CASES)
def test_broken_checkpoints(folder, name):
    change, message = CASES[name]
    change(folder)
    before = digest(folder.parent)
    with pytest.raises(Exception, match=f"(?s){message}"):
        JemModel.from_pretrained(folder)
    run = CliRunner().invoke(app, ["generate", str(folder), "Hat", "--output", str(folder / "grid.png")])
    assert run.exit_code == 2 and not run.stdout and not isinstance(run.exception, Exception)
    lines = [line for line in run.stderr.splitlines() if "Loading weights" not in line]
    assert len(lines) == 1 and lines[0].startswith("jem-hf: ") and re.search(message, lines[0])
    assert digest(folder.parent) == before and not (folder.parent / "unpickled").exists()


def test_the_payload_is_one(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "unpickled")))
    assert (tmp_path / "unpickled").exists()


def test_the_unbroken_checkpoint_loads_by_either_class(folder, model):
    for auto in (JemModel, AutoModel):
        loaded, info = auto.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_file_in_place_of_its_folder(folder, file):
    for kind in (JemModel, JemConfig, JemImageProcessor):
        with pytest.raises(OSError, match=f"{file} is a file: give the folder that it is in, .*checkpoint"):
            kind.from_pretrained(folder / file)
    run = CliRunner().invoke(app, ["generate", str(folder / file), "Hat", "--output", str(folder / "grid.png")])
    lines = [line for line in run.stderr.splitlines() if "Loading weights" not in line]
    assert run.exit_code == 2 and len(lines) == 1 and "give the folder" in lines[0]
    with pytest.raises(OSError, match="is a file: give a folder"):
        JemModel.from_pretrained(folder).save_pretrained(folder / file)


def test_home_is_expanded_in_names_of_models(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    model = JemModel.from_pretrained("~/checkpoint")
    model.save_pretrained("~/copy")
    JemImageProcessor.from_pretrained("~/checkpoint").save_pretrained("~/copy")
    copied = {path.name for path in (folder.parent / "copy").iterdir()}
    assert copied == {path.name for path in folder.iterdir()}
    assert JemConfig.from_pretrained("~/copy").attributes == model.config.attributes
    assert model.image_processor().crop_size.height == 8


def test_shapes_are_never_forgiven(folder):
    """Weights of another shape would be left as the memory was."""
    config(attributes=["Smiling", "Hair", "Hat", "Bald"])(folder)
    with pytest.raises(ValueError, match="not those of its config"):
        JemModel.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_code_beside_the_weights_runs_on_request_only(folder):
    for path in folder.glob("*.py"):
        path.write_text(f"open({str(folder / 'ran')!r}, 'w')\n" + path.read_text())
    for auto in (JemModel, AutoModel):
        auto.from_pretrained(folder)
    assert not (folder / "ran").exists()


def test_the_package_unpickles_nothing():
    """`torch.load` without `weights_only=True`, pickle, joblib and numpy's pickles appear nowhere."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert not re.search(
            r"^\s*(import|from) (pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b", text, re.M
        )
        assert not re.search(r"allow_pickle=True|yaml\.(load|unsafe_load|full_load)\(|(?<![.\w])eval\(", text), path
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\(.*", text)), path
