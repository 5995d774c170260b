import json

import datasets
import numpy as np
import pytest
import torch
from dataset_folders import load, write_image_folder, write_parquet_folder
from PIL import Image

from jem_hf import JemConfig
from jem_hf.data.columns import attribute_values
from jem_hf.data.loading import load_attribute_dataset
from jem_hf.data.splits import ZERO_SHOT_CANDIDATES
from jem_hf.data.tensors import encode_dataset
from jem_hf.models.image_processing_jem import JemImageProcessor
from jem_hf.training.splits import load_evaluation_splits, load_splits

PROCESSOR = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture
def folder(tmp_path):
    return write_parquet_folder(tmp_path / "data")


def test_columns_are_kept_in_order_and_the_image_column_is_renamed(folder):
    assert list(load(folder)["train"].features) == ["image", "Smiling", "Hat", "Never", "color"]
    assert list(load(folder, attributes=["color", "Smiling"])["train"].features) == ["image", "color", "Smiling"]
    assert attribute_values(load(folder)["train"].features) == (
        ["Smiling", "Hat", "Never", "color"],
        {"color": ["red", "green", "blue"]},
    )


def test_frequencies_count_the_labels_present_and_spare_attributes_of_many_values(folder):
    for frequency, name in ((4 / 7, "Smiling"), (3 / 8, "Hat")):
        rows = load(folder, min_frequency=frequency, max_frequency=frequency)["train"]
        assert rows.column_names == ["image", name, "color"]


def test_rare_values_count_as_missing(tmp_path, caplog):
    colours = ["red"] * 10 + ["blue"] * 7 + ["teal"] * 2 + [""]
    lines = [f"{i}.png,{colour},{i % 2}" for i, colour in enumerate(colours)]
    folder = write_image_folder(tmp_path / "data", content="\n".join(["file_name,color,Hat", *lines]))
    rows = load(folder, min_frequency=3 / 19)["train"]
    assert rows.features["color"].names == ["blue", "red"]
    everything = load(folder)["train"]
    assert everything.features["color"].names == ["blue", "red", "teal"]
    assert list(rows["color"]) == [label if label in (0, 1) else None for label in everything["color"]]
    assert list(rows["Hat"]) == list(everything["Hat"])
    assert "'color' has 'teal', which count as missing" in caplog.text
    assert load(folder, min_frequency=2 / 19)["train"].features["color"].names == ["blue", "red", "teal"]
    listed = load(folder, min_frequency=0.4, values={"color": ["teal", "red", "blue"]})["train"]
    assert listed.features["color"].names == ["teal", "red", "blue"]


def test_values_that_are_not_listed(folder):
    values = {"color": ["green", "red"]}
    with pytest.raises(ValueError, match="'color' has no value 'blue'"):
        load(folder, values=values)
    everything, rows = load(folder)["train"], load(folder, values=values, other_values="missing")["train"]
    assert rows["color"] == [{0: 1, 1: 0}.get(i) for i in everything["color"]]
    with pytest.raises(ValueError, match="'color' has none of the values of that attribute: it has blue, green, red"):
        load(folder, values={"color": ["rot", "blau"]}, other_values="missing")
    with pytest.raises(ValueError, match="other_values is 'raise' or 'missing'"):
        load(folder, other_values="drop")


def test_matching_rows_move_to_novel(folder):
    dataset = load(folder, novel=[{"Smiling": True, "Hat": True}, {"color": "green"}], attributes=["Hat"])
    levels = {split: [np.asarray(image)[0, 0] // 20 for image in rows[:]["image"]] for split, rows in dataset.items()}
    assert levels == {"train": [3, 4, 7], "novel": [0, 1, 2, 5, 6]}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"attributes": ["Smilng"]}, "unknown attribute 'Smilng'; did you mean 'Smiling'?"),
        ({"novel": [{"Hta": True}]}, "unknown attribute 'Hta'; did you mean 'Hat'?"),
        ({"novel": [{"color": "pink"}]}, "'color' has no value 'pink'; choose from red, green, blue"),
        ({"novel": [{"Never": True}]}, "split 'novel' .* is empty"),
        ({"novel": [{"Never": False}]}, "split 'train' .* is empty"),
        ({"image_column": "id"}, "no column of images called 'id'"),
    ],
)
def test_bad_requests_are_named(folder, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **kwargs)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        load_attribute_dataset(tmp_path / "absent")
    image = Image.new("RGB", (4, 4))
    for columns, message in [({"Hat": [True]}, "no column of images"), ({"image": [image]}, "no attributes")]:
        folder = tmp_path / message.replace(" ", "_")
        folder.mkdir()
        datasets.Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_a_parquet_file_and_integer_columns(tmp_path):
    labels = {
        "Hat": [0, 1, None, 1, 0, 1],
        "Male": [-1, 1, 1, 1, -1, None],
        "Age": [3, 20, 3, 10, 20, None],
        "Share": [0.5, 0.25, 0.5, 0.25, 0.5, 0.5],
        "Id": [11, 12, 13, 14, 15, 16],
    }
    images = [Image.new("RGB", (8, 8), (20 * i,) * 3) for i in range(6)]
    rows = datasets.Dataset.from_dict({"image": images, **labels}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "rows.parquet")
    loaded = load(tmp_path / "rows.parquet")["train"]
    assert attribute_values(loaded.features) == (["Hat", "Male", "Age"], {"Age": ["3", "10", "20"]})
    assert encode_dataset(loaded, PROCESSOR, ["Hat", "Male", "Age"]).labels.T.tolist() == [
        [0, 1, -1, 1, 0, 1],
        [0, 1, 1, 1, 0, -1],
        [0, 2, 0, 1, 2, -1],
    ]
    for name, reason in [("Id", "6 different values in 6 rows"), ("Share", "numbers that are not whole")]:
        with pytest.raises(ValueError, match=f"column '{name}' is no attribute: it h.*{reason}"):
            load(tmp_path / "rows.parquet", attributes=[name])


def test_a_split_is_made_once_and_kept_by_index(folder, tmp_path):
    split = {"kind": "balanced", "seed": 5, "test": 0.25, "validation": 0.125}
    dataset = load(folder, split=split, split_file=str(tmp_path / "split.json"))
    assert {name: len(rows) for name, rows in dataset.items()} == {"train": 5, "test": 2, "validation": 1}
    kept = json.loads((tmp_path / "split.json").read_text())
    assert (kept["seed"], kept["num_rows"]) == (5, 8)
    again = load(folder, split_file=str(tmp_path / "split.json"), novel=[{"color": "red", "Smiling": False}])
    for name, rows in kept["splits"].items():
        assert grey_levels(dataset[name]) == rows
        assert grey_levels(again[name]) == [row for row in rows if row not in (4, 7)]
    assert sorted(grey_levels(again["novel"])) == [4, 7]
    with pytest.raises(ValueError, match=r"no file .* of splits: give split as well"):
        load(folder, split_file=str(tmp_path / "absent.json"))


def grey_levels(rows):
    return [int(np.asarray(image).flat[0]) // 20 for image in rows[:]["image"]]


def test_datasets_with_a_test_split_keep_their_splits(folder):
    load(folder)["train"].select([0, 3]).rename_column("image", "picture").to_parquet(folder / "test.parquet")
    dataset = load(folder, split={"test": 0.5})
    assert {name: len(rows) for name, rows in dataset.items()} == {"train": 8, "test": 2}
    with pytest.raises(ValueError, match=r"divided into .* already: leave split_file out"):
        load(folder, split_file="split.json")


def test_zero_shot_preset_counts_the_whole_data_and_holds_its_combinations_out(tmp_path):
    """Of 200 rows, 8 (4%) have blond hair and are not young: a pair that is held out, its rows in novel only."""
    names = list(dict.fromkeys(name for pair in ZERO_SHOT_CANDIDATES["celeba-zero-shot"] for name in pair))
    generator = torch.Generator().manual_seed(0)
    labels = {name: (torch.rand(200, generator=generator) < 0.5).tolist() for name in names}
    for row in range(200):
        if labels["Blond_Hair"][row]:
            labels["Young"][row] = True
    for row in range(0, 200, 25):
        labels["Blond_Hair"][row], labels["Young"][row] = True, False
    rows = datasets.Dataset.from_dict({"image": [Image.new("L", (8, 8))] * 200, **labels})
    (tmp_path / "data").mkdir()
    rows.select(range(150)).to_parquet(tmp_path / "data" / "train.parquet")
    rows.select(range(150, 200)).to_parquet(tmp_path / "data" / "test.parquet")
    dataset = load(tmp_path / "data", novel="celeba-zero-shot")
    assert len(dataset["novel"]) == 8 and len(dataset["train"]) == 144 and len(dataset["test"]) == 48
    assert all(row["Blond_Hair"] and not row["Young"] for row in dataset["novel"].remove_columns("image"))
    with pytest.raises(ValueError, match="unknown preset 'celeba-zeroshot' of novel; did you mean 'celeba-zero-shot'"):
        load(tmp_path / "data", novel="celeba-zeroshot")


def hub_stream(folder, **kwargs):
    """As a stream from the Hub: one that `datasets` finds, not the package."""
    cache = str(folder.parent / "cache")
    data_files = {"train": str(folder / "train.parquet")}
    return load_attribute_dataset("parquet", data_files=data_files, streaming=True, cache_dir=cache, **kwargs)


def test_columns_of_a_stream_are_read_as_named(folder):
    rows = load(folder)["train"].rename_column("image", "picture")
    rows = rows.add_column("Bald", [0, 1, None, 1, 0, 1, 1, 1]).add_column("size", list("abacbacb"))
    rows.to_parquet(folder / "train.parquet")
    streamed = hub_stream(folder, attributes=["Bald", "size", "Hat"], values={"size": ["c", "b", "a"]})["train"]
    first = list(streamed.remove_columns("image"))[:3]
    assert [list(row.values()) for row in first] == [[False, 2, True], [True, 1, False], [None, 2, True]]
    with pytest.raises(ValueError, match=r"'size' has no value 'a'; .*list all, values="):
        list(hub_stream(folder, attributes=["size"])["train"])
    assert "size" not in hub_stream(folder)["train"].column_names
    novel = hub_stream(folder, novel=[{"Smiling": "yes", "Hat": "True"}, {"color": "Green"}])
    assert [row["image"].getpixel((0, 0)) // 20 for row in novel["novel"]] == [0, 1, 2, 5, 6]


def test_what_a_stream_from_the_hub_cannot_do_is_said_at_once(folder):
    impossible = {"min_frequency": 0.1, "novel": "celeba-zero-shot", "split": {"test": 0.1}}
    with pytest.raises(
        ValueError, match=r"name the attributes .*list the combinations .*leave split.*or take no stream"
    ):
        hub_stream(folder, **impossible)
    with pytest.raises(ValueError, match="did you mean 'Hat'"):
        hub_stream(folder, attributes=["Hta"], min_frequency=0.1)


def test_a_stream_of_local_files_can_all_that_a_dataset_can(folder):
    arguments = {"min_frequency": 0.3, "novel": [{"color": "green"}], "split": {"test": 0.4}}
    dataset = load(folder, **arguments)
    streamed = load(folder, streaming=True, **arguments)
    assert isinstance(streamed, datasets.IterableDatasetDict) and "Never" not in streamed["train"].column_names
    assert {name: list(rows) for name, rows in streamed.items()} == {
        name: list(rows) for name, rows in dataset.items()
    }


def test_an_evaluation_divides_data_as_training_did(tmp_path):
    """A column that min_frequency drops, and a value that it makes missing, do not decide where rows go."""
    lines = ["file_name,Hat,Smiling,Never,kind"]
    for i in range(200):
        kind = "rare" if i in (7, 150) else "ab"[i % 2]
        cells = ("no" if i % 60 else "yes", "yes" if i % 3 else "no", "yes" if i == 20 else "no", kind)
        lines.append(",".join([f"{i}.png", *cells]))
    folder = write_image_folder(tmp_path / "data", content="\n".join(lines), num_images=200)
    split = {"kind": "balanced", "seed": 0, "test": 0.2}
    trained, values = load_splits({"name_or_path": str(folder), "split": split, "min_frequency": 0.015}, PROCESSOR)
    attributes = trained["train"].attributes
    assert attributes == ["Hat", "Smiling", "kind"] and values == {"kind": ["a", "b"]}
    config = JemConfig(attributes=attributes, attribute_values=values, split=split, image_size=8)
    again = load_evaluation_splits(str(folder), PROCESSOR, config)
    assert again["test"].places == trained["test"].places and again["train"].places == trained["train"].places
    other = load_evaluation_splits(str(folder), PROCESSOR, config, {"split": "{kind: random, test: 0.5}"})
    assert len(other["test"]) == 100


def test_held_out_combinations_that_the_data_lack_are_no_mistake(folder):
    config = JemConfig(attributes=["Smiling", "Hat"], novel_combinations=[{"Smiling": True, "Hat": True}])
    assert set(load_evaluation_splits(str(folder), PROCESSOR, config)) == {"train", "test", "novel"}
    config = JemConfig(attributes=["Hat", "Never"], novel_combinations=[{"Hat": True, "Never": True}])
    assert set(load_evaluation_splits(str(folder), PROCESSOR, config)) == {"train", "test"}
    with pytest.raises(ValueError, match=r"split 'novel' of .* is empty"):
        load(folder, novel=[{"Hat": True, "Never": True}])
