"""Folders as users have them, a few images each, from file to tensors."""

import json

import numpy as np
import pytest
import torch
from dataset_folders import load, write_celeba, write_image, write_image_folder, write_zappos
from datasets import DatasetDict

from jem_hf import JemModel
from jem_hf.models.image_processing_jem import JemImageProcessor
from jem_hf.training.recipes import load_recipe, load_splits, train

PROCESSOR = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def levels(rows):
    return [int(np.asarray(image)[0, 0].mean() / 10 + 0.5) for image in rows[:]["image"]]


def test_celeba_as_its_authors_ship_it(tmp_path):
    dataset = load(write_celeba(tmp_path / "data"))
    assert {name: len(rows) for name, rows in dataset.items()} == {"train": 12, "validation": 4, "test": 4}
    assert dataset["train"].column_names == ["image", "Bald", "Hat", "Male"]
    assert levels(dataset["validation"]) == [12, 13, 14, 15]
    assert dataset["test"][1]["Bald"] is True and dataset["test"][1]["Hat"] is False  # 17 is 10001
    (tmp_path / "data" / "list_eval_partition.txt").unlink()
    assert list(load(tmp_path / "data")) == ["train"]


def test_celeba_in_the_folders_of_its_archives(tmp_path):
    write_celeba(tmp_path / "flat")
    for file, sub in [("list_attr_celeba.txt", "Anno"), ("list_eval_partition.txt", "Eval")]:
        (tmp_path / "data" / sub).mkdir(parents=True)
        (tmp_path / "flat" / file).rename(tmp_path / "data" / sub / file)
    (tmp_path / "data" / "Img" / "img_align_celeba").mkdir(parents=True)
    (tmp_path / "flat" / "img_align_celeba").rename(
        tmp_path / "data" / "Img" / "img_align_celeba" / "img_align_celeba"
    )
    assert levels(load(tmp_path / "data")["test"]) == [16, 17, 18, 19]


def test_celeba_as_kaggle_ships_it(tmp_path):
    folder = write_celeba(tmp_path / "data")
    _, header, *lines = (folder / "list_attr_celeba.txt").read_text().splitlines()
    lines = ["image_id " + header, *lines]
    partition = ["image_id partition", *(folder / "list_eval_partition.txt").read_text().splitlines()]
    for name, rows in (("list_attr_celeba", lines), ("list_eval_partition", partition)):
        (folder / f"{name}.txt").unlink()
        (folder / f"{name}.csv").write_text("\n".join(",".join(row.split()) for row in rows))
    images = (folder / "img_align_celeba").rename(tmp_path / "img_align_celeba")
    images.rename((folder / "img_align_celeba").mkdir() or folder / "img_align_celeba" / "img_align_celeba")
    dataset = load(folder)
    assert levels(dataset["validation"]) == [12, 13, 14, 15]
    assert dataset["test"].column_names == ["image", "Bald", "Hat", "Male"] and dataset["test"][1]["Bald"] is True
    (folder / "list_eval_partition.csv").unlink()
    assert {split: len(rows) for split, rows in load(folder).items()} == {"train": 20}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lines": ["000001.jpg -1 1 1", "000002.jpg -1 1"]}, "txt line 4 is not a file name and 3 of -1, 1"),
        ({"lines": ["000001.jpg -1 1 0"]}, "line 3 is not"),
        ({"lines": ["000001.jpg -1 1 1"]}, "has 1 images and not 4, as line 1 says"),
        (
            {"lines": [f"{i}.png 1 1 1" if i else "000001.jpg 1 1 1" for i in range(4)]},
            r"line 4 names '1.png', which is not in .*img_align_celeba: 3 of 4 images are missing",
        ),
        ({"partition": ["000001.jpg 0", "000002.jpg 3"]}, "partition.txt line 2 is not a file name and 1 of 0, 1, 2"),
        ({"partition": ["000001.jpg 0"]}, "lacks 3 images, the first 000002.jpg"),
    ],
)
def test_celeba_with_mistakes(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(write_celeba(tmp_path / "data", num_images=4, **arguments))


def test_ut_zap50k_binarised(tmp_path):
    rows = load(write_zappos(tmp_path / "data"))["train"]
    assert levels(rows) == [1, 2, 3, 4]
    labels = rows.select_columns([name for name in rows.column_names if name != "image"])[:]
    assert labels["Category.Boots"] == [False, False, True, True]
    assert labels["Material.Suede"] == [True, True, None, False]
    assert labels["Material.Leather"] == [True, False, None, True]
    assert labels["Gender.Girls"] == [False, False, True, False]
    assert labels["Insole.Padded"] == [None, True, True, None]
    assert labels["HeelHeight.1in...1.3.4in"] == [True, False, None, None]
    assert labels["HeelHeight.5in...over"] == [False, True, None, None]  # as the authors' meta-data-bin.csv spells it
    assert len(labels) == 2 + 3 + 2 + 1 + 2 + 3 + 2 + 1


def test_ut_zap50k_categorical(tmp_path):
    tensors, values = load_splits(
        {
            "name_or_path": write_zappos(tmp_path / "data"),
            "binarised": False,
            "attributes": ["Gender", "Material", "HeelHeight"],
            "split": {"test": 0.25},
        },
        PROCESSOR,
    )
    assert values == {
        "Gender": ["Men", "Women"],
        "Material": ["Leather", "Suede"],
        "HeelHeight": ["1in...1.3.4in", "5in...over"],
    }
    rows = torch.cat([tensors["train"].labels, tensors["test"].labels]).tolist()
    assert sorted(rows) == sorted([[0, 0, 0], [1, 1, 1], [1, -1, -1], [1, 0, -1]])


@pytest.mark.parametrize(
    "row, message",
    [
        ("1-1,Shoes", r"meta-data.csv line 2 has 2 cells and the header 9"),
        ("1-1,Shoes,Oxfords,,,,,,", r"line 2 names '1-1', which is not in .*square: 1 of 1 images are missing"),
    ],
)
def test_ut_zap50k_with_mistakes(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        load(write_zappos(tmp_path / "data", [row]))
    with pytest.raises(ValueError, match="unknown argument 'binarized'"):
        load(tmp_path / "data", binarized=True)


def test_image_folder_with_columns_of_every_kind(tmp_path):
    dataset = load(write_image_folder(tmp_path / "data"))
    rows = dataset["train"]
    assert rows.column_names == ["image", "Hat", "Happy", "Male", "Bald", "Color", "Size"]
    assert sorted(levels(rows)) == list(range(20))
    rows = rows.select(sorted(range(20), key=lambda i: levels(rows)[i]))
    assert rows["Hat"][:4] == [None, False, True, False]
    assert rows["Happy"][:4] == [True, None, True, False]
    assert rows["Male"][:4] == [False, True, True, False]
    assert rows["Bald"][:4] == [False, True, None, True]
    assert rows.features["Color"].names == ["blue", "green", "red"] and rows["Color"][:4] == [2, 0, 1, None]
    assert rows.features["Size"].names == ["9", "10", "38"] and rows["Size"][:4] == [0, 1, 2, 0]
    dataset = load(tmp_path / "data", novel=[{"Size": 10, "Male": True}], values={"Color": ["red", "green", "blue"]})
    assert sorted(levels(dataset["novel"])) == [1, 4, 7, 10, 13, 16, 19]
    assert set(dataset["novel"]["Color"]) == {2}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"attributes": ["Note"]}, "column 'Note' is no attribute: it has 20 different values in 20 rows"),
        ({"attributes": ["Version"]}, "column 'Version' is no attribute: all its values are '7'"),
        ({"attributes": ["Colour"]}, "unknown attribute 'Colour'; did you mean 'Color'"),
        ({"values": {"Color": ["red", "Gren", "blue"]}}, "'Color' has no value 'green'; did you mean 'Gren'"),
        ({"novel": [{"Size": 11}]}, "'Size' has no value '11'; did you mean '10'"),
    ],
)
def test_columns_that_are_no_attributes(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(write_image_folder(tmp_path / "data"), **kwargs)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.csv", "file_name,Hat\n0.png,True\n1.png,maybe\n2.png,False\n", "'Hat' mixes True and False with"),
        (
            "metadata.csv",
            "file_name,Hat\n0.png,True\n1.png,True,4\n",
            "metadata.csv line 3 has 3 cells and the header 2",
        ),
        ("metadata.csv", "file_name,Hat\n0.png,True\na.png,False\n", "line 3 names 'a.png', .* 1 of 2 images are"),
        ("metadata.jsonl", '{"file_name": "0.png", "Hat": true}\n{"file_name"}\n', "line 2 is not a JSON object"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "Hat": true}\n{"file_name": "1.png", "Hat": "maybe"}\n',
            "column 'Hat' mixes True and False with 'maybe'",
        ),
        (
            "metadata.csv",
            "name,Hat\n0,True\n",
            "csv line 1: none of the columns name, Hat names the images: call it file_name",
        ),
    ],
)
def test_image_folder_with_mistakes(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load(write_image_folder(tmp_path / "data", name, content, num_images=3))


def test_tags_are_binary_attributes(tmp_path):
    tags = [["hat"], None, [], ["hat", "dark hair"]]
    lines = [json.dumps({"file_name": f"{i}.png", "tags": cell, "ok": i > 1}) for i, cell in enumerate(tags)]
    rows = load(write_image_folder(tmp_path / "data", "metadata.jsonl", "\n".join(lines), num_images=4))["train"]
    assert rows.column_names == ["image", "dark hair", "hat", "ok"]
    assert rows["hat"][:] == [True, None, False, True] and rows["dark hair"][:] == [False, None, False, True]


def test_a_saved_dataset_and_folders_of_classes(tmp_path):
    for i in range(6):
        write_image(tmp_path / "classes" / ("cat", "dog")[i % 2] / f"{i}.png", 10 * i)
    dataset = load(tmp_path / "classes")
    assert dataset["train"].features["label"].names == ["cat", "dog"]
    dataset.save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved")["train"][:] == dataset["train"][:]
    for name in ("val", "dev", "eval"):
        DatasetDict({"train": dataset["train"], name: dataset["train"].select([0])}).save_to_disk(tmp_path / name)
        assert {split: len(rows) for split, rows in load(tmp_path / name).items()} == {"train": 6, "validation": 1}


def test_a_recipe_trains_on_a_folder_without_splits_and_evaluation_finds_the_same_test_rows(tmp_path):
    folder, cache = write_image_folder(tmp_path / "data"), str(tmp_path / "cache")
    overrides = {
        "name_or_path": str(folder),
        "cache_dir": cache,
        "output_dir": str(tmp_path / "model"),
        "max_steps": "2",
        "eval_steps": "2",
        "per_device_train_batch_size": "4",
        "sample_grid": "0",
        "backbone_kwargs": "{width: 4, hidden_size: 8}",
        "min_frequency": "0",
        "size": "{shortest_edge: 8}",
        "crop_size": "{height: 8, width: 8}",
    }
    trainer, splits = train(load_recipe("celeba-32", overrides))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 18, "test": 2}
    assert trainer.eval_dataset is splits["test"]
    config = JemModel.from_pretrained(tmp_path / "model").config
    assert config.attribute_values == {"Color": ["blue", "green", "red"], "Size": ["9", "10", "38"]}
    dataset = {"name_or_path": str(folder), "cache_dir": cache}
    again, _ = load_splits(dataset, PROCESSOR, config.attributes, config.attribute_values)
    assert all(torch.equal(again[name].images, splits[name].images) for name in splits)
    novel, _ = load_splits({**dataset, "novel": [{"Size": "10"}]}, PROCESSOR, config.attributes)
    known = {float(image.float().mean()) for image in splits["test"].images}
    assert not known & {float(image.float().mean()) for image in novel["train"].images}


def test_labels_are_numbered_as_in_the_model(tmp_path):
    dataset = {"name_or_path": str(write_image_folder(tmp_path / "data")), "cache_dir": str(tmp_path / "cache")}
    numbers = {}
    for order in (["red", "green", "blue"], ["blue", "yellow", "green", "red"]):
        splits, values = load_splits(dataset, PROCESSOR, ["Color", "Hat"], {"Color": order})
        assert values == {"Color": order}
        for image, label in zip(splits["train"].images, splits["train"].labels[:, 0].tolist()):
            numbers.setdefault(int(image[0, 0, 0]), set()).add("none" if label < 0 else order[label])
    assert all(len(names) == 1 for names in numbers.values())
    splits, _ = load_splits(dataset, PROCESSOR, ["Color", "Hat"], {"Color": ["pink", "red"]})
    assert set(splits["train"].labels[:, 0].tolist()) == {-1, 1}  # what the model does not know is missing
    with pytest.raises(ValueError, match="'Color' has none of the values of that attribute"):
        load_splits(dataset, PROCESSOR, ["Color", "Hat"], {"Color": ["pink", "violet"]})
    with pytest.raises(ValueError, match=r"'Color' has the values \['blue', .* in the model"):
        load_splits(dataset, PROCESSOR, ["Color", "Hat"], {})
    with pytest.raises(ValueError, match="unknown attribute 'Beard'"):
        load_splits(dataset, PROCESSOR, ["Beard"], {})
