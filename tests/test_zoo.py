import json

import pytest

from jem_hf import JemConfig, JemImageProcessor, JemModel, list_models, model_info
from jem_hf.zoo import CARDS, resolve


def test_from_pretrained_takes_names_of_the_zoo():
    assert isinstance(JemModel.from_pretrained("jem-avatars"), JemModel)
    assert len(JemConfig.from_pretrained("jem-avatars").attributes) == 23
    assert JemImageProcessor.from_pretrained("jem-avatars").crop_size.height == 32


def test_other_names_stay_as_they_are(tmp_path):
    assert resolve("someone/model") == "someone/model"
    assert resolve(tmp_path) == str(tmp_path)
    with pytest.raises(ValueError, match="no model 'jem-dogs'; it has jem-avatars"):
        model_info("jem-dogs")


@pytest.mark.parametrize("name", list_models())
def test_cards_agree_with_their_files(name):
    card = model_info(name).card
    config = JemConfig.from_pretrained(name)
    assert card["attributes"] == config.attributes
    assert card["image_size"] == config.image_size
    report = json.loads((CARDS / name / "report.json").read_text())
    assert card["num_parameters"] == report["num_parameters"] == JemModel.from_pretrained(name).num_parameters()
    results = {
        metric["type"]: metric["value"] for entry in card["model-index"][0]["results"] for metric in entry["metrics"]
    }
    assert results["accuracy"] == round(report["prediction"]["accuracy"], 4)
    assert results["novel"] == round(report["generation"]["novel"]["agreement"], 4)
    assert (CARDS / name / "model.safetensors").stat().st_size < 8e6
