import numpy as np
import pytest
from transformers import AutoConfig

from jem_hf import JemConfig
from jem_hf.models.requests_jem import parse_request


def test_saved_and_loaded_without_loss(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, JemConfig)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert loaded.attributes == ["Smiling", "Hair", "Hat"]
    assert loaded.num_values == [2, 3, 2]
    assert loaded.id2label == {0: "Smiling", 1: "Hair=black", 2: "Hair=blond", 3: "Hair=red", 4: "Hat"}


def test_order_of_attributes_survives(tmp_path):
    names = ["Zebra", "Apple", "Moon"]
    JemConfig(attributes=names).save_pretrained(tmp_path)
    assert JemConfig.from_pretrained(tmp_path).attributes == names


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attributes": []}, "at least one attribute"),
        ({}, "at least one attribute"),
        ({"attributes": ["A", "B", "A"]}, "duplicate attribute 'A'"),
        ({"attributes": ["A", ""]}, "non-empty"),
        ({"attributes": ["Hair"], "attribute_values": {"Hiar": ["a", "b"]}}, "did you mean 'Hair'"),
        ({"attributes": ["Hair"], "attribute_values": {"Hair": ["a"]}}, "'Hair' needs at least two"),
        ({"attributes": ["Hair"], "attribute_values": {"Hair": ["a", "a"]}}, "'Hair' needs at least two"),
        ({"attributes": ["Hat"], "novel_combinations": [{"Hut": True}]}, "did you mean 'Hat'"),
        ({"attributes": ["Hat"], "novel_combinations": [{"Hat": "red"}]}, "attribute 'Hat' has no value 'red'"),
        ({"attributes": ["A"], "backbone": "resnet_of_dreams"}, "unknown backbone 'resnet_of_dreams'"),
        ({"attributes": ["A"], "head": "produkt"}, "did you mean 'product'"),
        ({"attributes": ["A"], "sampler": "langevine"}, "did you mean 'langevin'"),
        ({"attributes": ["A"], "free_attributes": "complet"}, "did you mean 'complete'"),
    ],
)
def test_wrong_values_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        JemConfig(**fields)


@pytest.mark.parametrize(
    "field, value", [("image_size", "32"), ("attributes", "Smiling"), ("backbone", 3), ("guidance_scale", "two")]
)
def test_wrong_types_are_refused_by_name(field, value):
    with pytest.raises(Exception, match=field):
        JemConfig(**{"attributes": ["A"], field: value})


@pytest.mark.parametrize("value", [True, "True", np.True_, 1, np.int64(1)])
def test_values_of_a_combination_are_kept_as_users_write_them(value):
    combination = {"Hat": value, "Stars": 3, "Hair": np.str_("red")}
    config = JemConfig(
        attributes=["Hat", "Stars", "Hair"],
        attribute_values={"Stars": ["1", "2", "3", "4"], "Hair": ["black", "red"]},
        novel_combinations=[combination],
    )
    assert config.novel_combinations == [{"Hat": True, "Stars": "3", "Hair": "red"}]
    assert parse_request(combination, config) == parse_request(config.novel_combinations[0], config) == [1, 2, 1]
    assert JemConfig.from_dict(config.to_dict()).novel_combinations == config.novel_combinations
