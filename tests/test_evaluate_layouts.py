"""`jem-hf evaluate` on every layout of a dataset, by a model that always says the second value of an attribute."""

import json

import numpy as np
import pytest
import torch
from dataset_folders import load, write_celeba, write_image, write_image_folder, write_parquet_folder, write_zappos
from typer.testing import CliRunner

from jem_hf import JemConfig, JemImageProcessor, JemModel
from jem_hf.cli import app


def write_tags(folder):
    lines = [json.dumps({"file_name": f"{i}.png", "tags": ["hat"] * (i % 3 == 1)}) for i in range(20)]
    return write_image_folder(folder, "metadata.jsonl", "\n".join(lines))


def write_classes(folder):
    for i in range(20):
        write_image(folder / ("cat", "dog")[i % 4 == 1] / f"{i}.png", 10 * i)
    return folder


def write_saved_dataset(folder):
    load(write_classes(folder.parent / "classes")).save_to_disk(folder)
    return folder


def write_parquet_file(folder):
    return write_parquet_folder(folder) / "train.parquet"


CELEBA = {"Bald": [i & 1 for i in range(20)], "Male": [(i >> 2) & 1 for i in range(20)]}
TABLE = {
    "Hat": [None, *(i % 2 == 0 for i in range(1, 20))],
    "Color": [None if i == 3 else (2, 0, 1)[i % 3] for i in range(20)],
}
ZAPPOS = {"Category.Boots": [0, 0, 1, 1], "Material.Suede": [1, 1, None, 0]}
ZAPPOS_CATEGORICAL = {"Gender": [0, 1, 1, 1], "Material": [0, 1, None, 0]}
CLASSES = {"label": [i % 4 == 1 for i in range(20)]}
PARQUET = {"Smiling": [1, 1, 1, None, 0, 0, 1, 0], "color": [0, 1, 2, None, 0, 1, 2, 0]}
LAYOUTS = [  # how it is written, its labels in the order of the images' brightness, names of values, fields
    pytest.param(write_celeba, CELEBA, {}, {}, id="celeba"),
    pytest.param(write_zappos, ZAPPOS, {}, {}, id="ut-zap50k"),
    pytest.param(
        write_zappos,
        ZAPPOS_CATEGORICAL,
        {"Gender": ["Men", "Women"], "Material": ["Leather", "Suede"]},
        {"binarised": False},
        id="ut-zap50k-categorical",
    ),
    pytest.param(write_image_folder, TABLE, {"Color": ["blue", "green", "red"]}, {}, id="metadata.csv"),
    pytest.param(write_tags, {"hat": [i % 3 == 1 for i in range(20)]}, {}, {}, id="metadata.jsonl"),
    pytest.param(write_classes, CLASSES, {"label": ["cat", "dog"]}, {}, id="folders-of-classes"),
    pytest.param(write_saved_dataset, CLASSES, {"label": ["cat", "dog"]}, {}, id="save_to_disk"),
    pytest.param(write_parquet_folder, PARQUET, {"color": ["red", "green", "blue"]}, {}, id="parquet-folder"),
    pytest.param(write_parquet_file, PARQUET, {"color": ["red", "green", "blue"]}, {}, id="parquet-file"),
]


def save_model(folder, attributes, values):
    config = JemConfig(
        attributes=attributes,
        attribute_values=values,
        backbone_kwargs={"width": 4, "hidden_size": 8},
        image_size=8,
    )
    model = JemModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.linear.bias.view(len(attributes), -1)[:, 1] = 2.0
    model.save_pretrained(folder, code=False)
    JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)


def brightness(rows):
    return [round(float(np.asarray(image).mean())) for image in rows[:]["image"]]


@pytest.mark.parametrize("write, labels, values, fields", LAYOUTS)
def test_accuracy_by_hand(write, labels, values, fields, tmp_path, monkeypatch):
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "models"))
    data = write(tmp_path / "data")
    save_model(tmp_path / "model", list(labels), values)
    if write is not write_celeba:  # which has a test split
        fields = {**fields, "split_file": str(tmp_path / "split.json")}
        splits = load(data, split={"test": 0.5}, **fields)
    else:
        splits = load(data)
    order = sorted(level for rows in splits.values() for level in brightness(rows))
    tested = [order.index(level) for level in brightness(splits["test"])]

    arguments = ["evaluate", tmp_path / "model", "--dataset", data, "--prediction-only", "--json"]
    arguments += ["--cache_dir", tmp_path / "cache"]
    for name, value in fields.items():
        arguments += [f"--{name}", value]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["num_images"] == len(tested)
    for name, column in labels.items():
        known = [column[i] for i in tested if column[i] is not None]
        found = report["prediction"]["per_attribute"][name]["accuracy"]
        assert found == (pytest.approx(np.mean([label == 1 for label in known])) if known else None)
