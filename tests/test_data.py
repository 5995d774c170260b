import io
import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from jem_hf.avatars import ATTRIBUTES, NOVEL_COMBINATIONS, load_avatars, render
from jem_hf.data import (
    AttributeStream,
    AttributeTensors,
    attribute_values,
    encode_dataset,
    load_attribute_dataset,
)
from jem_hf.image_processing_jem import JemImageProcessor
from jem_hf.label_prior_jem import PairwiseLabelPrior
from jem_hf.recipes import load_recipe, load_splits, train
from jem_hf.splits import ZERO_SHOT_CANDIDATES

PROCESSOR = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture(scope="module")
def avatars(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return load_attribute_dataset(
        "avatars", num_train=30, num_test=10, num_novel=20, size=32, num_proc=1, cache_dir=cache
    )


@pytest.fixture
def folder(tmp_path):
    """A folder of parquet files with three kinds of columns, missing labels, and images of one grey level."""
    rows = {
        "id": list(range(8)),
        "Smiling": [True, True, True, None, False, False, True, False],
        "Hat": [True, False, True, False, False, False, True, False],
        "Never": [False] * 8,
        "color": [0, 1, 2, None, 0, 1, 2, 0],
        "picture": [Image.new("L", (12, 10), 20 * i) for i in range(8)],
    }
    features = {name: datasets.Value("bool") for name in ("Smiling", "Hat", "Never")} | {
        "id": datasets.Value("int64"),
        "color": datasets.ClassLabel(names=["red", "green", "blue"]),
        "picture": datasets.Image(),
    }
    features = datasets.Features({name: features[name] for name in rows})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    return tmp_path / "data"


@pytest.fixture
def load(folder):
    return lambda **kwargs: load_attribute_dataset(folder, cache_dir=str(folder.parent / "cache"), **kwargs)


def test_render_is_deterministic_and_depends_on_index_and_seed():
    image, labels = render(3, seed=1, size=32)
    again, labels_again = render(3, seed=1, size=32)
    assert image.mode == "RGB" and image.size == (32, 32)
    assert np.array_equal(image, again) and labels == labels_again and list(labels) == ATTRIBUTES
    assert not np.array_equal(image, render(4, seed=1, size=32)[0])
    assert not np.array_equal(image, render(3, seed=2, size=32)[0])


def test_background_and_clothes_have_the_color_of_their_labels():
    """The top left corner is background (hats and hair aside), the middle of the last row clothing (beards aside)."""
    for index in range(60):
        image, labels = render(index, size=32)
        red, green, blue = (int(value) for value in np.asarray(image)[31, 16])
        if not labels["Beard"]:
            assert labels["Red_Clothes"] == (red > 2 * blue)
        if not (labels["Hat"] or labels["Afro"] or labels["Long_Hair"]):
            red, green, blue = (int(value) for value in np.asarray(image)[0, 0])
            assert labels["Blue_Background"] == (blue > green + 30)
            assert labels["Green_Background"] == (green > red + 30 and green > blue + 30)


def test_hair_has_a_color_only_where_there_is_hair_and_groups_exclude_each_other(avatars):
    for split in avatars.values():
        for row in split.remove_columns("image"):
            top = [row["Hat"], row["Bald"], row["Long_Hair"], row["Afro"]]
            hair = [row["Black_Hair"], row["Blond_Hair"], row["Red_Hair"], row["Gray_Hair"]]
            assert sum(top) <= 1 and sum(hair) == (0 if row["Hat"] or row["Bald"] else 1)
            assert row["Eyeglasses"] + row["Sunglasses"] <= 1 and row["Beard"] + row["Moustache"] <= 1
            assert row["Eyes_Closed"] + row["Wide_Eyes"] + row["Heart_Eyes"] + row["Sunglasses"] <= 1


def test_novel_combinations_occur_in_split_novel_only(avatars):
    def matches(row):
        return [combination.items() <= row.items() for combination in NOVEL_COMBINATIONS]

    assert {split: len(rows) for split, rows in avatars.items()} == {"train": 30, "test": 10, "novel": 20}
    assert all("Pablo Stanley" in rows.info.description for rows in avatars.values())
    for split, rows in avatars.items():
        assert all(any(matches(row)) == (split == "novel") for row in rows.remove_columns("image"))


def test_avatars_are_cached_and_splits_are_prefixes_of_larger_ones(tmp_path, avatars, monkeypatch):
    arguments = {"num_test": 5, "num_novel": 5, "size": 32, "num_proc": 1, "cache_dir": str(tmp_path)}
    small = load_avatars(num_train=5, **arguments)
    for split in small:
        assert small[split][:]["image"] == avatars[split].select(range(5))[:]["image"]
    monkeypatch.setattr("jem_hf.avatars.render", None)  # a second rendering would fail
    assert load_avatars(num_train=5, **arguments)["train"][:]["image"] == small["train"][:]["image"]


def test_two_processes_render_the_same_avatars(tmp_path, avatars):
    parallel = load_avatars(30, 10, 20, size=32, num_proc=2, cache_dir=str(tmp_path))
    assert parallel["train"][:] == avatars["train"][:]


def test_columns_are_kept_in_order_and_the_image_column_is_renamed(load):
    assert list(load()["train"].features) == ["image", "Smiling", "Hat", "Never", "color"]
    assert list(load(attributes=["color", "Smiling"])["train"].features) == ["image", "color", "Smiling"]
    assert attribute_values(load()["train"].features) == (
        ["Smiling", "Hat", "Never", "color"],
        {"color": ["red", "green", "blue"]},
    )


def test_frequencies_count_the_labels_present_and_spare_attributes_of_many_values(load):
    assert load(min_frequency=4 / 7, max_frequency=4 / 7)["train"].column_names == ["image", "Smiling", "color"]
    assert load(min_frequency=3 / 8, max_frequency=3 / 8)["train"].column_names == ["image", "Hat", "color"]


def test_matching_rows_move_to_novel(load):
    dataset = load(novel=[{"Smiling": True, "Hat": True}, {"color": "green"}], attributes=["Hat"])
    levels = {split: [np.asarray(image)[0, 0] // 20 for image in rows[:]["image"]] for split, rows in dataset.items()}
    assert levels == {"train": [3, 4, 7], "novel": [0, 1, 2, 5, 6]}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"attributes": ["Smilng"]}, "unknown attribute 'Smilng'; did you mean 'Smiling'?"),
        ({"novel": [{"Hta": True}]}, "unknown attribute 'Hta'; did you mean 'Hat'?"),
        ({"novel": [{"color": "pink"}]}, "'color' has the values .*, not 'pink'"),
        ({"novel": [{"Never": True}]}, "split 'novel' .* is empty"),
        ({"novel": [{"Never": False}]}, "split 'train' .* is empty"),
        ({"attributes": ["Never"], "min_frequency": 0.1}, "no attribute is positive in 0.1 to 1.0"),
        ({"image_column": "id"}, "no column of images called 'id'"),
    ],
)
def test_bad_requests_are_named(load, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(**kwargs)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        load_attribute_dataset(tmp_path / "absent")
    image = Image.new("RGB", (4, 4))
    for columns, message in [({"Hat": [True]}, "no column of images"), ({"image": [image]}, "no attributes")]:
        folder = tmp_path / message.replace(" ", "_")
        folder.mkdir()
        datasets.Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
        with pytest.raises(ValueError, match=message):
            load_attribute_dataset(folder, cache_dir=str(tmp_path / "cache"))


def test_encoding_keeps_pixels_and_marks_missing_labels(load):
    tensors = encode_dataset(load()["train"], PROCESSOR, ["color", "Smiling", "Hat"], batch_size=3)
    assert tensors.images.dtype == torch.uint8 and tensors.images.shape == (8, 3, 8, 8)
    assert torch.equal(tensors.images.float().mean((1, 2, 3)), 20.0 * torch.arange(8))
    assert tensors.labels.T.tolist() == [
        [0, 1, 2, -1, 0, 1, 2, 0],
        [1, 1, 1, -1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 0, 1, 0],
    ]
    with pytest.raises(ValueError, match="did you mean 'Smiling'"):
        encode_dataset(load()["train"], PROCESSOR, ["Smilin"])


def with_broken_images(*broken):
    """Three good images, the broken ones, and one more good image."""
    good = {"bytes": png(60), "path": "good.png"}
    images = [good] * 3 + list(broken) + [good]
    columns = {"image": images, "Hat": [i % 2 == 0 for i in range(len(images))]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"bytes": b"\x89PNG\r\n\x1a\nrubbish", "path": "a/b.png"}, r"image in row 3 \(a/b.png\) cannot be read"),
        ({"bytes": b"", "path": None}, "image in row 3 cannot be read"),
        ({"bytes": None, "path": "/nowhere/c.png"}, r"image in row 3 \(/nowhere/c.png\) cannot be read"),
        ({"bytes": None, "path": None}, "row 3"),
        (None, "row 3"),
    ],
)
def test_a_broken_image_is_named_by_its_row_and_file(broken, message):
    with pytest.raises(ValueError, match=message):
        encode_dataset(with_broken_images(broken), PROCESSOR, ["Hat"], batch_size=2)


def test_broken_images_are_skipped_with_one_warning(caplog):
    truncated = {"bytes": png(60)[:40], "path": "cut.png"}
    dataset = with_broken_images(truncated, None)
    tensors = encode_dataset(dataset, PROCESSOR, ["Hat"], batch_size=2, on_error="skip")
    assert tensors.labels.tolist() == [[1], [0], [1], [0]] and len(tensors.images) == 4
    assert [record.message for record in caplog.records] == [
        "left out 2 of 6 images that cannot be read, the first in row 3 (cut.png)"
    ]
    with pytest.raises(ValueError, match="none of the 2 images can be read"):
        encode_dataset(dataset.select([3, 4]), PROCESSOR, ["Hat"], on_error="skip")
    with pytest.raises(ValueError, match="unknown on_error 'ignore'; choose from raise, skip"):
        encode_dataset(dataset, PROCESSOR, ["Hat"], on_error="ignore")


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
    loaded = load_attribute_dataset(tmp_path / "rows.parquet", cache_dir=str(tmp_path / "cache"))["train"]
    assert attribute_values(loaded.features) == (["Hat", "Male", "Age"], {"Age": ["3", "10", "20"]})
    assert encode_dataset(loaded, PROCESSOR, ["Hat", "Male", "Age"]).labels.T.tolist() == [
        [0, 1, -1, 1, 0, 1],
        [0, 1, 1, 1, 0, -1],
        [0, 2, 0, 1, 2, -1],
    ]
    for name, reason in [("Id", "6 different values in 6 rows"), ("Share", "numbers that are not whole")]:
        with pytest.raises(ValueError, match=f"column '{name}' is no attribute: it h.*{reason}"):
            load_attribute_dataset(tmp_path / "rows.parquet", attributes=[name], cache_dir=str(tmp_path / "cache"))


def test_a_split_is_made_once_and_kept_by_index(load, tmp_path):
    split = {"kind": "balanced", "seed": 5, "test": 0.25, "validation": 0.125}
    dataset = load(split=split, split_file=str(tmp_path / "split.json"))
    assert {name: len(rows) for name, rows in dataset.items()} == {"train": 5, "test": 2, "validation": 1}
    kept = json.loads((tmp_path / "split.json").read_text())
    assert (kept["seed"], kept["num_rows"]) == (5, 8)
    again = load(split_file=str(tmp_path / "split.json"), novel=[{"color": "red", "Smiling": False}])
    for name, rows in kept["splits"].items():
        assert grey_levels(dataset[name]) == rows
        assert grey_levels(again[name]) == [row for row in rows if row not in (4, 7)]
    assert sorted(grey_levels(again["novel"])) == [4, 7]
    with pytest.raises(ValueError, match=r"no file .* of splits: give split as well"):
        load(split_file=str(tmp_path / "absent.json"))


def grey_levels(rows):
    return [int(np.asarray(image).flat[0]) // 20 for image in rows[:]["image"]]


def test_datasets_with_a_test_split_keep_their_splits(load, folder):
    load()["train"].select([0, 3]).rename_column("image", "picture").to_parquet(folder / "test.parquet")
    dataset = load(split={"test": 0.5})
    assert {name: len(rows) for name, rows in dataset.items()} == {"train": 8, "test": 2}
    with pytest.raises(ValueError, match=r"divided into .* already: leave split_file out"):
        load(split_file="split.json")


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
    image = {"bytes": png(0), "path": None}
    rows = datasets.Dataset.from_dict({"image": [image] * 200, **labels}).cast_column("image", datasets.Image())
    (tmp_path / "data").mkdir()
    rows.select(range(150)).to_parquet(tmp_path / "data" / "train.parquet")
    rows.select(range(150, 200)).to_parquet(tmp_path / "data" / "test.parquet")
    dataset = load_attribute_dataset(tmp_path / "data", novel="celeba-zero-shot", cache_dir=str(tmp_path / "cache"))
    assert len(dataset["novel"]) == 8 and len(dataset["train"]) == 144 and len(dataset["test"]) == 48
    assert all(row["Blond_Hair"] and not row["Young"] for row in dataset["novel"].remove_columns("image"))
    with pytest.raises(ValueError, match="unknown preset 'celeba-zeroshot' of novel; did you mean 'celeba-zero-shot'"):
        load_attribute_dataset(tmp_path / "data", novel="celeba-zeroshot", cache_dir=str(tmp_path / "cache"))


def test_a_stream_has_the_rows_of_the_dataset(load):
    names = ["color", "Smiling", "Hat"]
    tensors = encode_dataset(load()["train"], PROCESSOR, names)
    streamed = load(streaming=True, attributes=names)
    assert isinstance(streamed, datasets.IterableDatasetDict)
    assert next(iter(streamed["train"]))["image"].size == (12, 10)
    stream = AttributeStream(streamed["train"], PROCESSOR, names, shuffle_buffer=0).to_tensors()
    assert torch.equal(stream.images, tensors.images) and torch.equal(stream.labels, tensors.labels)
    split = load(streaming=True, novel=[{"Smiling": True, "Hat": True}, {"color": "green"}])
    assert {name: [row["image"].getpixel((0, 0)) // 20 for row in rows] for name, rows in split.items()} == {
        "train": [3, 4, 7],
        "novel": [0, 1, 2, 5, 6],
    }


def test_a_stream_is_shuffled_anew_every_epoch_and_the_same_for_the_same_seed(load):
    streamed = load()["train"].to_iterable_dataset()

    def order(epoch, seed=0):
        stream = AttributeStream(streamed, PROCESSOR, ["Hat"], shuffle_buffer=8, seed=seed)
        stream.set_epoch(epoch)
        return [int(row["pixel_values"][0, 0, 0]) // 20 for row in stream]

    assert sorted(order(0)) == list(range(8)) and order(0) == order(0)
    assert order(0) != order(1) and order(0) != order(0, seed=1)


def test_columns_of_a_stream_are_read_as_named(load, folder):
    rows = load()["train"].rename_column("image", "picture")
    rows = rows.add_column("Bald", [0, 1, None, 1, 0, 1, 1, 1]).add_column("size", list("abacbacb"))
    rows.to_parquet(folder / "train.parquet")
    streamed = load(streaming=True, attributes=["Bald", "size", "Hat"], values={"size": ["c", "b", "a"]})["train"]
    first = list(streamed.remove_columns("image"))[:3]
    assert [list(row.values()) for row in first] == [[False, 2, True], [True, 1, False], [None, 2, True]]
    with pytest.raises(ValueError, match="column 'size' is not binary, for it has 'a': give its values"):
        list(load(streaming=True, attributes=["size"])["train"])
    assert "size" not in load(streaming=True)["train"].column_names


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"min_frequency": 0.1}, "frequencies cannot be counted on a stream: name the attributes instead"),
        ({"max_frequency": 0.9}, "frequencies cannot be counted on a stream: name the attributes instead"),
        ({"novel": "celeba-zero-shot"}, "list the combinations"),
        ({"split": {"test": 0.1}}, "a stream cannot be divided"),
        ({"attributes": ["Hta"]}, "did you mean 'Hat'"),
    ],
)
def test_what_a_stream_cannot_do_is_said(load, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(streaming=True, **kwargs)


def test_broken_images_of_a_stream(caplog):
    stream = with_broken_images({"bytes": b"no image", "path": "bad.png"}).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"image in row 3 \(bad.png\) cannot be read"):
        list(AttributeStream(stream, PROCESSOR, ["Hat"], shuffle_buffer=0))
    assert len(AttributeStream(stream, PROCESSOR, ["Hat"], on_error="skip").to_tensors()) == 4
    assert len(caplog.records) == 1 and "left out 1 of 5 images" in caplog.records[0].message


def test_a_recipe_trains_on_a_stream(load, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # seconds after every pass
    load()["train"].select([0, 3, 5]).rename_column("image", "picture").to_parquet(folder / "test.parquet")
    overrides = {
        "name_or_path": str(folder),
        "cache_dir": str(tmp_path / "cache"),
        "streaming": "true",
        "shuffle_buffer": "4",
        "attributes": "[Smiling, Hat, color]",
        "output_dir": str(tmp_path / "model"),
        "max_steps": "5",  # more than the two batches of an epoch
        "eval_steps": "5",
        "per_device_train_batch_size": "4",
        "backbone_kwargs": "{width: 4, hidden_size: 8}",
        "size": "{shortest_edge: 8}",
        "crop_size": "{height: 8, width: 8}",
    }
    recipe = load_recipe("celeba-32", overrides)
    del recipe.dataset["min_frequency"]
    trainer, splits = train(recipe)
    assert isinstance(splits["train"], AttributeStream) and len(splits["test"]) == 3
    assert trainer.state.global_step == 5 and trainer.model.config.attribute_values == {
        "color": ["red", "green", "blue"]
    }
    labels, _ = load_splits({"name_or_path": str(folder), "cache_dir": str(tmp_path / "cache")}, PROCESSOR)
    prior = PairwiseLabelPrior([2, 2, 3]).fit(labels["train"].labels[:, [0, 1, 3]])
    order = [trainer.model.label_prior.bias, prior.bias]
    assert torch.allclose(*order, atol=0.05) and prior.bias.abs().max() > 0.5


def test_tensors_survive_saving_and_give_rows_alone_and_in_batches(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(-1, 2, (5, 2), generator=generator)
    AttributeTensors(images, labels, ["Ä", "b"]).save(tmp_path / "data.safetensors")
    tensors = AttributeTensors.load(tmp_path / "data.safetensors")
    assert (
        torch.equal(tensors.images, images)
        and torch.equal(tensors.labels, labels)
        and tensors.attributes == ["Ä", "b"]
    )
    assert len(tensors) == 5 and len(tensors.subset(labels[:, 0] >= 0)) == int((labels[:, 0] >= 0).sum())
    (batch,) = torch.utils.data.DataLoader(tensors.subset([4, 2]), batch_size=2)
    assert torch.equal(batch["pixel_values"], images[[4, 2]]) and torch.equal(batch["labels"], labels[[4, 2]])
    assert torch.equal(tensors[3]["pixel_values"], images[3]) and torch.equal(tensors[3]["labels"], labels[3])
    with pytest.raises(ValueError, match="images must be uint8"):
        AttributeTensors(images.float(), labels, ["a", "b"])
    with pytest.raises(ValueError, match="labels must be int64"):
        AttributeTensors(images, labels, ["a"])


def test_training_core_works_where_datasets_is_not_installed():
    code = """
import sys, torch
sys.modules["datasets"] = sys.modules["pyarrow"] = None
from jem_hf import AttributeTensors, JemTrainer
print(len(AttributeTensors(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1).long(), ["a"])))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "2", result.stderr
