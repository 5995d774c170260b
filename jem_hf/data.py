"""Images with attributes: from the Hub, a folder or the avatars to tensors in memory.

`datasets` is imported inside the functions that need it; `AttributeTensors` works without it.
"""

import json
import os

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .configuration_jem import nearest_name


def load_attribute_dataset(
    name_or_path,
    *,
    attributes=None,
    min_frequency=0.0,
    max_frequency=1.0,
    novel=None,
    image_column=None,
    cache_dir=None,
    **kwargs,
):
    """Load images and attributes as a `DatasetDict` with the column "image" and one column an attribute.

    Attributes are the columns of type bool (binary) and `ClassLabel` (its names are the values); None marks a label
    that is missing.

    Args:
        name_or_path: "avatars", a dataset id on the Hub, or a folder.
        attributes: names to keep, in this order; default: all, in column order.
        min_frequency, max_frequency: binary attributes whose share of positives among the labels present in the train
            split (in the first split where none is called train) is below or above are dropped.
        novel: combinations such as `{"Eyeglasses": True, "Beard": True}`; rows that match one move to split "novel".
        image_column: name of the column of images, where there are several.
        kwargs: passed to `load_avatars` or to `datasets.load_dataset`.

    Raises ValueError for a dataset that is not there, unknown names, empty splits, and where no attribute is left.
    """
    dataset = _load(name_or_path, cache_dir, kwargs)
    features = next(iter(dataset.values())).features
    image_column = _image_column(features, image_column)
    names, values = attribute_values(features)
    if not names:
        raise ValueError(f"{name_or_path!r} has no attributes: cast the label columns to bool or ClassLabel")
    _check_names(attributes or [], names)
    dataset = dataset.select_columns([image_column, *names])
    if novel:
        dataset = _move_novel(dataset, [_encode_combination(combination, names, values) for combination in novel])
    for split, rows in dataset.items():
        if len(rows) == 0:
            raise ValueError(
                f"split {split!r} of {name_or_path!r} is empty: load other splits, or ask for less in novel"
            )
    names = list(attributes or names)
    train = _labels(dataset["train"] if "train" in dataset else next(iter(dataset.values())), names)
    kept = [name for name in names if name in values or min_frequency <= _frequency(train[name]) <= max_frequency]
    if not kept:
        raise ValueError(
            f"no attribute is positive in {min_frequency} to {max_frequency} of the train split: "
            f"widen min_frequency and max_frequency"
        )
    dataset = dataset.select_columns([image_column, *kept])
    return dataset if image_column == "image" else dataset.rename_column(image_column, "image")


def attribute_values(features):
    """Names of the attributes among dataset features, in order, and the values of each that is a `ClassLabel`."""
    import datasets

    values = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return [name for name in features if name in values or features[name] == datasets.Value("bool")], values


class AttributeTensors(torch.utils.data.Dataset):
    """Images uint8 (N, C, H, W) and labels int64 (N, K), -1 where missing, in memory; `attributes` are the K names."""

    def __init__(self, images, labels, attributes):
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 (N, C, H, W), not {images.dtype} {tuple(images.shape)}")
        if labels.shape != (len(images), len(attributes)) or labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 {(len(images), len(attributes))}, not {labels.dtype} {tuple(labels.shape)}"
            )
        self.images, self.labels, self.attributes = images, labels, list(attributes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}

    def __getitems__(self, indices):
        pixel_values, labels = self.images[indices], self.labels[indices]
        return [{"pixel_values": x, "labels": y} for x, y in zip(pixel_values, labels)]

    def subset(self, indices):
        """The rows of a list, slice, index tensor or boolean mask."""
        return AttributeTensors(self.images[indices], self.labels[indices], self.attributes)

    def save(self, path):
        """Write one safetensors file, the attributes in its metadata."""
        tensors = {"images": self.images.contiguous(), "labels": self.labels.contiguous()}
        save_file(tensors, path, metadata={"attributes": json.dumps(self.attributes)})

    @classmethod
    def load(cls, path):
        with safe_open(path, framework="pt") as file:
            return cls(file.get_tensor("images"), file.get_tensor("labels"), json.loads(file.metadata()["attributes"]))


def encode_dataset(dataset, image_processor, attributes, batch_size=256):
    """Decode, resize and crop the images of one split to uint8 RGB and its labels to integers: `AttributeTensors`.

    False and True become 0 and 1, `ClassLabel` its index, None -1. Raises ValueError naming the row of a broken image.
    """
    import datasets

    image_column = _image_column(dataset.features)
    _check_names(attributes, attribute_values(dataset.features)[0])
    columns = _labels(dataset, attributes)
    labels = torch.tensor([[-1 if y is None else int(y) for y in columns[name].to_pylist()] for name in attributes])
    encoded_images = dataset.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    decoder = datasets.Image()
    pixel_values = []
    for start in range(0, len(dataset), batch_size):
        images = []
        for row, image in enumerate(encoded_images[start : start + batch_size][image_column], start):
            try:
                images.append(decoder.decode_example(image).convert("RGB"))
            except (AttributeError, OSError, SyntaxError, TypeError, ValueError) as error:  # PIL's, and None's
                raise ValueError(f"the image in row {row} cannot be read ({error}): remove the row") from error
        batch = image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
        pixel_values.append(batch["pixel_values"].to(torch.uint8))
    return AttributeTensors(torch.cat(pixel_values), labels.T.contiguous(), attributes)


def _load(name_or_path, cache_dir, kwargs):
    import datasets

    from .avatars import load_avatars

    name_or_path = os.path.expanduser(name_or_path)
    if name_or_path == "avatars":
        return load_avatars(cache_dir=cache_dir, **kwargs)
    if not os.path.exists(name_or_path) and (name_or_path.startswith((".", "/")) or name_or_path.count("/") > 1):
        raise ValueError(
            f"no folder {name_or_path!r}: give 'avatars', a dataset id on the Hub, or a folder that exists"
        )
    try:
        dataset = datasets.load_dataset(name_or_path, cache_dir=cache_dir, **kwargs)
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(
            f"cannot load the dataset {name_or_path!r} ({error}): give 'avatars', a dataset id on the Hub, "
            f"or a folder of data"
        ) from error
    return datasets.DatasetDict({str(dataset.split): dataset}) if isinstance(dataset, datasets.Dataset) else dataset


def _image_column(features, image_column=None):
    import datasets

    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column is not None:
        columns = [name for name in columns if name == image_column]
    if len(columns) != 1:
        found = "several columns" if columns else "no column"
        wanted = f" called {image_column!r}" if image_column else ""
        raise ValueError(f"{found} of images{wanted} among {list(features)}: name one of type Image with image_column")
    return columns[0]


def _check_names(names, known):
    for name in names:
        if name not in known:
            raise ValueError(f"unknown attribute {name!r}{nearest_name(name, known)}")


def _labels(dataset, names):
    """The label columns as an arrow table."""
    return dataset.select_columns(list(names)).with_format("arrow")[:]


def _frequency(column):
    """The share of True among the labels present, 0 if there is none."""
    import pyarrow.compute

    return pyarrow.compute.mean(column).as_py() or 0.0


def _encode_combination(combination, names, values):
    """The combination with the values of `ClassLabel` attributes as indices."""
    _check_names(combination, names)
    encoded = {}
    for name, value in combination.items():
        known = values.get(name, [False, True])
        if value not in known:
            raise ValueError(f"attribute {name!r} has the values {known}, not {value!r}")
        encoded[name] = known.index(value)
    return encoded


def _move_novel(dataset, combinations):
    """Move the rows that match one of the combinations to the split "novel", beside those that are there."""
    import datasets

    moved = [dataset["novel"]] if "novel" in dataset else []
    kept = {}
    for split in (split for split in dataset if split != "novel"):
        columns = _labels(dataset[split], {name for combination in combinations for name in combination}).to_pydict()
        matches = [
            any(
                all(columns[name][row] == value for name, value in combination.items()) for combination in combinations
            )
            for row in range(len(dataset[split]))
        ]
        kept[split] = dataset[split].select([row for row, match in enumerate(matches) if not match])
        moved.append(dataset[split].select([row for row, match in enumerate(matches) if match]))
    return datasets.DatasetDict(kept | {"novel": datasets.concatenate_datasets(moved)})
