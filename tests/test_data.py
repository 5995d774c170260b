import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from jem_hf.avatars import ATTRIBUTES, NOVEL_COMBINATIONS, load_avatars, render
from jem_hf.data import AttributeTensors, attribute_values, encode_dataset, load_attribute_dataset
from jem_hf.image_processing_jem import JemImageProcessor

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


def test_a_broken_image_is_named_by_its_row(load):
    rows = load()["train"].cast_column("image", datasets.Image(decode=False))
    for broken in ({"bytes": b"\x89PNG\r\n\x1a\nrubbish", "path": None}, {"bytes": None, "path": None}, None):
        images = [row["image"] for row in rows][:3] + [broken]
        dataset = datasets.Dataset.from_dict({"image": images, "Hat": [True] * 4}).cast_column(
            "image", datasets.Image()
        )
        with pytest.raises(ValueError, match="row 3"):
            encode_dataset(dataset, PROCESSOR, ["Hat"], batch_size=2)


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
