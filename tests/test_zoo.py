import json
import math
import shutil

import pytest
from huggingface_hub import ModelCard

from jem_hf import JemConfig, JemImageProcessor, JemModel, list_models, model_info
from jem_hf.hub import zoo
from jem_hf.hub.cards import BEGIN, END, TITLES, write_card
from jem_hf.hub.zoo import CARDS, resolve
from jem_hf.training.recipes import load_recipe

TRAINED = [name for name in list_models() if (CARDS / name / "model.safetensors").is_file()]


def test_from_pretrained_takes_names_of_the_zoo():
    assert isinstance(JemModel.from_pretrained("jem-avatars"), JemModel)
    assert len(JemConfig.from_pretrained("jem-avatars").attributes) == 23
    assert JemImageProcessor.from_pretrained("jem-avatars").crop_size.height == 64


def test_other_names_stay_as_they_are(tmp_path):
    assert resolve("someone/model", kwargs={"revision": "x"}) == ("someone/model", {"revision": "x"}, {})
    assert resolve(tmp_path) == (str(tmp_path), {}, {})
    with pytest.raises(ValueError, match="no model 'jem-dogs'; it has jem-avatars"):
        model_info("jem-dogs")


def test_a_folder_comes_before_the_zoo(tmp_path, monkeypatch):
    (tmp_path / "jem-avatars").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("jem-avatars") == ("jem-avatars", {}, {})


def test_a_model_without_weights_says_how_to_train_it():
    assert "jem-utzappos" in list_models()
    assert not model_info("jem-utzappos").is_trained
    for kind in (JemModel, JemConfig, JemImageProcessor):
        with pytest.raises(ValueError, match="jem-hf train paper-ut-zap50k"):
            kind.from_pretrained("jem-utzappos")


@pytest.mark.parametrize(
    "filter, found",
    [
        (None, True),
        ("jem-*", True),
        ("jem-dogs*", False),
        ("avatars", True),
        ("Eyeglasses", True),
        (["energy-based-model", "apache-2.0"], True),
        (["energy-based-model", "gpl"], False),
    ],
)
def test_list_models_filters(filter, found):
    assert ("jem-avatars" in list_models(filter)) == found


@pytest.fixture
def copied_zoo(tmp_path, monkeypatch):
    """A zoo of its own, with jem-avatars in it."""
    shutil.copytree(CARDS / "jem-avatars", tmp_path / "zoo" / "jem-avatars")
    monkeypatch.setattr(zoo, "CARDS", tmp_path / "zoo")
    return tmp_path / "zoo"


def test_a_damaged_file_is_refused(copied_zoo):
    weights = copied_zoo / "jem-avatars" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert JemConfig.from_pretrained("jem-avatars").image_size == 64
    with pytest.raises(OSError, match=r"model\.safetensors is not the file that the card of 'jem-avatars' declares"):
        JemModel.from_pretrained("jem-avatars")
    JemModel.from_pretrained(copied_zoo / "jem-avatars")  # a folder is the user's own


def test_adding_a_model_is_adding_a_folder(copied_zoo):
    shutil.copytree(copied_zoo / "jem-avatars", copied_zoo / "jem-mine")
    assert list_models() == ["jem-avatars", "jem-mine"]
    assert JemModel.from_pretrained("jem-mine").config.image_size == 64


def test_weights_at_the_hub_repo_of_the_card(copied_zoo):
    folder = copied_zoo / "jem-avatars"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match="no weights yet"):
        resolve("jem-avatars")
    card = ModelCard.load(folder / "README.md")
    card.data.repo_id, card.data.revision = "alice/jem-avatars", "v1"
    card.save(folder / "README.md")
    assert model_info("jem-avatars").is_trained
    declared = {"model.safetensors": model_info("jem-avatars").files["model.safetensors"]["sha256"]}
    assert resolve("jem-avatars") == ("alice/jem-avatars", {"revision": "v1"}, declared)
    assert resolve("jem-avatars", kwargs={"revision": "v2"}) == ("alice/jem-avatars", {"revision": "v2"}, {})


@pytest.mark.parametrize("name", list_models())
def test_every_card_declares_its_model(name):
    card = model_info(name).card
    assert card["name"] == name
    assert card["license"] and card["pipeline_tag"] and "energy-based-model" in card["tags"]
    assert card["image_size"] > 0 and load_recipe(card["recipe"]).training
    assert (CARDS / name / "README.md").read_text().count(f"# {name}\n") == 1


@pytest.mark.parametrize("name", TRAINED)
def test_cards_agree_with_their_files(name):
    info = model_info(name)
    card, folder = info.card, info.folder
    config = JemConfig.from_pretrained(name)
    assert card["attributes"] == config.attributes
    assert card["image_size"] == config.image_size
    assert {"config.json", "preprocessor_config.json", "model.safetensors"} <= set(info.files)
    info.check()
    assert all((folder / path).stat().st_size == entry["size"] for path, entry in info.files.items())
    report = json.loads((folder / "report.json").read_text())
    assert card["num_parameters"] == report["num_parameters"] == JemModel.from_pretrained(name).num_parameters()
    results = {
        metric["type"]: metric["value"] for entry in card["model-index"][0]["results"] for metric in entry["metrics"]
    }
    assert {"accuracy", "ece", "ap", "full", "seen"} <= set(results)
    for (section, key), _ in TITLES.items():
        value = report[section].get(key)
        value = value["agreement"] if isinstance(value, dict) else value
        if value is not None:
            assert math.isfinite(results[key]) and results[key] == round(value, 4)
    assert (folder / "model.safetensors").stat().st_size < 20e6
    for path in folder.iterdir():
        assert path.suffix not in (".md", ".json") or str(CARDS.parent) not in path.read_text()


def test_the_hand_written_part_of_a_card_survives(config, model, tmp_path):
    model.save_pretrained(tmp_path)
    report = {"num_parameters": 1, "prediction": {"accuracy": 0.5}}
    path = write_card(tmp_path, config, report, name="mine", recipe="quickstart", dataset="avatars")
    assert f"{BEGIN}\n{END}" in path.read_text()
    path.write_text(path.read_text().replace(BEGIN, f"{BEGIN}\n## By hand\n\nTwo lines."))
    report["prediction"]["accuracy"] = 0.75
    names = dict(name="mine", recipe="quickstart", dataset=str(tmp_path))
    write_card(tmp_path, config, report, base_model="alice/faces", **names)
    card = ModelCard.load(path)
    assert card.data.base_model == "alice/faces" and "Fine-tuned from `alice/faces`: `jem-hf" in card.text
    write_card(tmp_path, config, report, base_model="jem-avatars", **names)
    card = ModelCard.load(path)
    assert card.data.base_model is None and "Fine-tuned from `jem-avatars`" in card.text
    assert "## By hand\n\nTwo lines.\n" in card.text
    assert card.data.eval_results[0].metric_value == 0.75
    assert card.data.dataset == tmp_path.name and str(tmp_path) not in path.read_text()
