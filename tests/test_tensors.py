import io
import subprocess
import sys
from itertools import islice

import datasets
import pytest
import torch
from dataset_folders import load, write_parquet_folder
from PIL import Image

from jem_hf.data.tensors import AttributeStream, AttributeTensors, encode_dataset
from jem_hf.models.image_processing_jem import JemImageProcessor
from jem_hf.models.label_prior_jem import PairwiseLabelPrior
from jem_hf.training.recipes import load_recipe, load_splits, train

PROCESSOR = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture
def folder(tmp_path):
    return write_parquet_folder(tmp_path / "data")


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


def test_tensors_give_rows_alone_and_in_batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(-1, 2, (5, 2), generator=generator)
    tensors = AttributeTensors(images, labels, ["Ä", "b"])
    assert len(tensors) == 5 and len(tensors.subset(labels[:, 0] >= 0)) == int((labels[:, 0] >= 0).sum())
    (batch,) = torch.utils.data.DataLoader(tensors.subset([4, 2]), batch_size=2)
    assert torch.equal(batch["pixel_values"], images[[4, 2]]) and torch.equal(batch["labels"], labels[[4, 2]])
    assert torch.equal(tensors[3]["pixel_values"], images[3]) and torch.equal(tensors[3]["labels"], labels[3])
    sample = tensors.sample(3)
    places = [int((images == image).flatten(1).all(1).nonzero()) for image in sample.images]
    assert len(set(places)) == 3 and places != [0, 1, 2] and torch.equal(sample.labels, labels[places])
    assert torch.equal(tensors.sample(3).images, sample.images) and len(tensors.sample(9)) == 5
    with pytest.raises(ValueError, match="images must be uint8"):
        AttributeTensors(images.float(), labels, ["a", "b"])
    with pytest.raises(ValueError, match="labels must be int64"):
        AttributeTensors(images, labels, ["a"])


def test_encoding_keeps_pixels_and_marks_missing_labels(folder):
    tensors = encode_dataset(load(folder)["train"], PROCESSOR, ["color", "Smiling", "Hat"], batch_size=3)
    assert tensors.images.dtype == torch.uint8 and tensors.images.shape == (8, 3, 8, 8)
    assert torch.equal(tensors.images.float().mean((1, 2, 3)), 20.0 * torch.arange(8))
    assert tensors.labels.T.tolist() == [
        [0, 1, 2, -1, 0, 1, 2, 0],
        [1, 1, 1, -1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 0, 1, 0],
    ]
    with pytest.raises(ValueError, match="did you mean 'Smiling'"):
        encode_dataset(load(folder)["train"], PROCESSOR, ["Smilin"])


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


def test_a_stream_has_the_rows_of_the_dataset(folder):
    names = ["color", "Smiling", "Hat"]
    tensors = encode_dataset(load(folder)["train"], PROCESSOR, names)
    streamed = load(folder, streaming=True, attributes=names)
    assert isinstance(streamed, datasets.IterableDatasetDict)
    assert next(iter(streamed["train"]))["image"].size == (12, 10)
    stream = AttributeStream(streamed["train"], PROCESSOR, names, shuffle_buffer=0).to_tensors()
    assert torch.equal(stream.images, tensors.images) and torch.equal(stream.labels, tensors.labels)
    split = load(folder, streaming=True, novel=[{"Smiling": True, "Hat": True}, {"color": "green"}])
    assert {name: [row["image"].getpixel((0, 0)) // 20 for row in rows] for name, rows in split.items()} == {
        "train": [3, 4, 7],
        "novel": [0, 1, 2, 5, 6],
    }


def test_the_first_rows_of_a_sorted_stream_are_of_all_kinds(tmp_path):
    rows = {"image": [png(n // 300) for n in range(3000)], "kind": [n // 300 for n in range(3000)]}
    names = [f"k{n}" for n in range(10)]
    features = datasets.Features(image=datasets.Image(), kind=datasets.ClassLabel(names=names))
    rows["image"] = [{"bytes": image, "path": None} for image in rows["image"]]
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    section = {"name_or_path": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "streaming": True}
    splits, _ = load_splits(section | {"shuffle_buffer": 100}, PROCESSOR)
    first = torch.stack([row["labels"] for row in islice(splits["train"], 300)])
    assert first.unique().tolist() == list(range(10))


def test_a_stream_is_shuffled_anew_every_epoch_and_the_same_for_the_same_seed(folder):
    streamed = load(folder)["train"].to_iterable_dataset()

    def order(epoch, seed=0):
        stream = AttributeStream(streamed, PROCESSOR, ["Hat"], shuffle_buffer=8, seed=seed)
        stream.set_epoch(epoch)
        return [int(row["pixel_values"][0, 0, 0]) // 20 for row in stream]

    assert sorted(order(0)) == list(range(8)) and order(0) == order(0)
    assert order(0) != order(1) and order(0) != order(0, seed=1)


def test_broken_images_of_a_stream(caplog):
    stream = with_broken_images({"bytes": b"no image", "path": "bad.png"}).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"image in row 3 \(bad.png\) cannot be read"):
        list(AttributeStream(stream, PROCESSOR, ["Hat"], shuffle_buffer=0))
    assert len(AttributeStream(stream, PROCESSOR, ["Hat"], on_error="skip").to_tensors()) == 4
    assert len(caplog.records) == 1 and "left out 1 of 5 images" in caplog.records[0].message


def test_a_recipe_trains_on_a_stream(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # seconds after every pass
    load(folder)["train"].select([0, 3, 5]).rename_column("image", "picture").to_parquet(folder / "test.parquet")
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
    trainer, splits = train(load_recipe("celeba-32", overrides))
    assert isinstance(splits["train"], AttributeStream) and len(splits["test"]) == 3
    assert trainer.state.global_step == 5 and trainer.model.config.attribute_values == {
        "color": ["red", "green", "blue"]
    }
    labels, _ = load_splits({"name_or_path": str(folder), "cache_dir": str(tmp_path / "cache")}, PROCESSOR)
    prior = PairwiseLabelPrior([2, 2, 3]).fit(labels["train"].labels[:, [0, 1, 3]])
    order = [trainer.model.label_prior.bias, prior.bias]
    assert torch.allclose(*order, atol=0.05) and prior.bias.abs().max() > 0.5


def test_a_stream_of_local_files_is_divided_and_counted_as_the_recipe_says(folder, tmp_path):
    section = {"name_or_path": str(folder), "cache_dir": str(tmp_path / "cache"), "min_frequency": 0.3}
    loaded, values = load_splits(section, PROCESSOR)
    streamed, values_of_stream = load_splits(section | {"streaming": True, "shuffle_buffer": 0}, PROCESSOR)
    assert isinstance(streamed["train"], AttributeStream) and values_of_stream == values
    assert streamed["train"].attributes == loaded["train"].attributes == ["Smiling", "Hat", "color"]
    for stream, tensors in ((streamed["train"].to_tensors(), loaded["train"]), (streamed["test"], loaded["test"])):
        assert torch.equal(stream.images, tensors.images) and torch.equal(stream.labels, tensors.labels)


@pytest.mark.slow
def test_training_core_works_where_datasets_is_not_installed():
    code = """
import sys, torch
sys.modules["datasets"] = sys.modules["pyarrow"] = None
from jem_hf import AttributeTensors, JemTrainer
print(len(AttributeTensors(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1).long(), ["a"])))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "2", result.stderr
