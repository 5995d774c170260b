"""Images with attributes: from the Hub, a folder or the avatars to a `DatasetDict`.

`datasets` is imported inside the functions that need it; `tensors.AttributeTensors` works without it.
"""

import os

import torch

from ..models.configuration_jem import nearest_name
from .columns import (
    attribute_values,
    check_names,
    features_of,
    find_columns,
    find_image_column,
    label_table,
    label_tensor,
)
from .layouts import load_layout
from .splits import ZERO_SHOT_CANDIDATES, make_split, read_splits, write_splits, zero_shot_combinations


def load_attribute_dataset(
    name_or_path,
    *,
    attributes=None,
    values=None,
    min_frequency=0.0,
    max_frequency=1.0,
    novel=None,
    split=None,
    split_file=None,
    image_column=None,
    streaming=False,
    cache_dir=None,
    **kwargs,
):
    """Load images and attributes as a `DatasetDict` with the column "image" and one column an attribute.

    Attributes are the columns of type bool (binary) and `ClassLabel` (its names are the values); None marks a label
    that is missing. Columns of whole numbers, strings and lists of tags become such, see `columns.find_columns`.

    Args:
        name_or_path: "avatars", a dataset id on the Hub, a parquet file, or a folder: of parquet files, of images with
            `metadata.csv` or `metadata.jsonl`, or as its authors ship CelebA and UT-Zap50K (see `layouts`).
        attributes: names to keep, in this order; default: all, in column order.
        values: the values of attributes that are not binary, by name, in the order of their labels.
        min_frequency, max_frequency: binary attributes whose share of positives among the labels present in the train
            split (in the first split where none is called train) is below or above are dropped; counted before rows
            move to "novel".
        novel: combinations such as `{"Eyeglasses": True, "Beard": False}`, or the name of a preset in
            `splits.ZERO_SHOT_CANDIDATES`; rows that match one move to split "novel".
        split: how to divide a dataset that has one split, which is not "test": `{"kind": "random" or "balanced",
            "seed": 0, "test": 0.1, ...}`. Other datasets keep their splits.
        split_file: JSON file of row indices, which is read if it is there and else written from `split`.
        image_column: name of the column of images, where there are several.
        streaming: give an `IterableDatasetDict`, which nothing is counted on; see `AttributeStream`.
        kwargs: passed to `load_avatars`, to `datasets.load_dataset`, or to the layout (`binarised` of UT-Zap50K).

    Raises ValueError for a dataset that is not there or malformed, unknown names and values, empty splits, where no
    attribute is left, and for requests that a stream cannot meet.
    """
    if streaming:
        _check_streamable(min_frequency, max_frequency, novel, split, split_file)
    dataset = _load(name_or_path, cache_dir, streaming, kwargs)
    image_column = find_image_column(features_of(next(iter(dataset.values()))), image_column)
    combinations = novel if isinstance(novel, list | tuple) else []
    wanted = [*(attributes or []), *(name for combination in combinations for name in combination)]
    dataset, reasons = _cast_attributes(dataset, image_column, attributes and wanted, values, streaming)
    names, known_values = attribute_values(features_of(next(iter(dataset.values()))))
    check_names([*wanted, *(values or {})], names, reasons)
    if not names:
        raise ValueError(
            f"{name_or_path!r} has no attributes: cast the label columns to bool or ClassLabel; labels of a folder of "
            f"images belong in its metadata.csv"
        )
    if split or split_file:
        dataset = _split(dataset, split, split_file, attributes or names)
    if isinstance(novel, str):
        combinations = _preset(dataset, novel, names)
    kept = list(attributes or names)
    if not streaming:
        _check_not_empty(dataset, name_or_path)
        kept = _frequent(dataset, kept, known_values, min_frequency, max_frequency)
    if combinations:
        encoded = [_encode_combination(combination, names, known_values) for combination in combinations]
        dataset = _move_novel(dataset, encoded)
        if not streaming:
            _check_not_empty(dataset, name_or_path)
    dataset = dataset.select_columns([image_column, *kept])
    return dataset if image_column == "image" else dataset.rename_column(image_column, "image")


def _load(name_or_path, cache_dir, streaming, kwargs):
    import datasets
    import pyarrow

    from .avatars import load_avatars

    name_or_path = os.path.expanduser(name_or_path)
    is_folder, is_file = os.path.isdir(name_or_path), os.path.isfile(name_or_path)
    if name_or_path == "avatars":
        return _streamed(load_avatars(cache_dir=cache_dir, **kwargs), streaming)
    if not (is_folder or is_file) and (name_or_path.startswith((".", "/")) or name_or_path.count("/") > 1):
        raise ValueError(
            f"no folder {name_or_path!r}: give 'avatars', a dataset id on the Hub, or a folder that exists"
        )
    dataset = load_layout(name_or_path, **kwargs) if is_folder else None
    if dataset is not None:
        return _streamed(dataset, streaming)
    if is_file:
        if not name_or_path.endswith(".parquet"):
            raise ValueError(f"{name_or_path!r} is no parquet file: give one, or a folder of data")
        name_or_path, kwargs = "parquet", {"data_files": name_or_path, **kwargs}
    try:
        dataset = datasets.load_dataset(name_or_path, cache_dir=cache_dir, streaming=streaming, **kwargs)
    except (
        FileNotFoundError,
        ConnectionError,
        datasets.exceptions.DatasetGenerationError,
        pyarrow.ArrowException,
    ) as error:
        raise ValueError(
            f"cannot load the dataset {name_or_path!r} ({error.__cause__ or error}): give 'avatars', a dataset id on "
            f"the Hub, or a folder of data"
        ) from error
    if isinstance(dataset, datasets.Dataset):
        return datasets.DatasetDict({str(dataset.split): dataset})
    if isinstance(dataset, datasets.IterableDataset):
        return datasets.IterableDatasetDict({str(dataset.split): dataset})
    return dataset


def _streamed(dataset, streaming):
    import datasets

    if not streaming:
        return dataset
    return datasets.IterableDatasetDict({name: rows.to_iterable_dataset() for name, rows in dataset.items()})


def _check_streamable(min_frequency, max_frequency, novel, split, split_file):
    if min_frequency > 0 or max_frequency < 1:
        raise ValueError(
            "frequencies cannot be counted on a stream: name the attributes instead of min_frequency and max_frequency"
        )
    if isinstance(novel, str):
        raise ValueError(
            f"frequencies cannot be counted on a stream: list the combinations instead of novel={novel!r}"
        )
    if split or split_file:
        raise ValueError("a stream cannot be divided by row: take a dataset with splits, or no stream")


def _cast_attributes(dataset, image_column, names, values, streaming):
    """Only the images and the attributes, as bool and `ClassLabel`, and the reasons why other columns are none."""
    features = dict(features_of(next(iter(dataset.values()))))
    features.pop(image_column)

    def cells(name):
        return [cell for rows in dataset.values() for cell in label_table(rows, [name])[name].to_pylist()]

    columns, reasons = find_columns(features, None if streaming else cells, names, values)
    dataset = dataset.select_columns([image_column, *dict.fromkeys(column.source for column in columns.values())])
    if all(column.read is None for column in columns.values()):
        return dataset, reasons
    cast = _cast_stream if streaming else _cast_rows
    return type(dataset)({split: cast(rows, image_column, columns) for split, rows in dataset.items()}), reasons


def _cast_rows(rows, image_column, columns):
    import datasets

    table = label_table(rows, list(dict.fromkeys(column.source for column in columns.values())))
    labels = {
        name: [column.label(cell) for cell in table[column.source].to_pylist()] for name, column in columns.items()
    }
    features = datasets.Features({name: column.feature for name, column in columns.items()})
    labels = datasets.Dataset.from_dict(labels, features=features, split=rows.split)
    return datasets.concatenate_datasets([rows.select_columns([image_column]), labels], axis=1)


def _cast_stream(rows, image_column, columns):
    import datasets

    def cast(row):
        labels = {name: column.label(row[column.source]) for name, column in columns.items()}
        return {image_column: row[image_column], **labels}

    features = {image_column: datasets.Image(decode=False)}
    features |= {name: column.feature for name, column in columns.items()}
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    sources = [image_column, *dict.fromkeys(column.source for column in columns.values())]
    rows = rows.map(cast, remove_columns=sources, features=datasets.Features(features))
    return rows.cast_column(image_column, datasets.Image())


def _split(dataset, split, split_file, names):
    """Divide the one split of a dataset; leave the splits of any other."""
    import datasets

    parts = [name for name in dataset if name != "novel"]
    if len(parts) > 1 or parts == ["test"]:
        if split_file:
            raise ValueError(f"the dataset is divided into {', '.join(parts)} already: leave split_file out")
        return dataset
    rows = dataset[parts[0]]
    if split_file and os.path.exists(split_file):
        indices = read_splits(split_file, len(rows))
    elif split:
        indices = make_split(split, label_tensor(rows, names))
        if split_file:
            write_splits(split_file, indices, len(rows), split.get("seed", 0))
    else:
        raise ValueError(f"no file {split_file!r} of splits: give split as well, to write it")
    divided = {name: rows.select(chosen) for name, chosen in indices.items()}
    if "novel" in dataset:
        divided["novel"] = dataset["novel"]
    return datasets.DatasetDict(divided)


def _preset(dataset, name, names):
    """The combinations of a preset that all the data together have at the right frequency."""
    if name not in ZERO_SHOT_CANDIDATES:
        raise ValueError(f"unknown preset {name!r} of novel{nearest_name(name, ZERO_SHOT_CANDIDATES)}")
    candidates = ZERO_SHOT_CANDIDATES[name]
    needed = list(dict.fromkeys(attribute for candidate in candidates for attribute in candidate))
    check_names(needed, names)
    labels = torch.cat([label_tensor(rows, needed) for rows in dataset.values()])
    combinations = zero_shot_combinations(labels, needed, candidates)
    if not combinations:
        raise ValueError(f"no combination of {name!r} has a frequency of 0.5% to 5%: list the combinations in novel")
    return combinations


def _check_not_empty(dataset, name_or_path):
    for split, rows in dataset.items():
        if len(rows) == 0:
            raise ValueError(
                f"split {split!r} of {name_or_path!r} is empty: load other splits, or ask for less in novel"
            )


def _frequent(dataset, names, values, min_frequency, max_frequency):
    """The names without the binary attributes whose frequency is out of range."""
    train = label_table(dataset["train"] if "train" in dataset else next(iter(dataset.values())), names)
    kept = [name for name in names if name in values or min_frequency <= _frequency(train[name]) <= max_frequency]
    if not kept:
        raise ValueError(
            f"no attribute is positive in {min_frequency} to {max_frequency} of the train split: "
            f"widen min_frequency and max_frequency"
        )
    return kept


def _frequency(column):
    """The share of True among the labels present, 0 if there is none."""
    import pyarrow.compute

    return pyarrow.compute.mean(column).as_py() or 0.0


def _encode_combination(combination, names, values):
    """The combination with the values of `ClassLabel` attributes as indices."""
    check_names(combination, names)
    encoded = {}
    for name, value in combination.items():
        known = values.get(name, [False, True])
        if name in values and not isinstance(value, bool):
            value = str(value)
        if value not in known:
            raise ValueError(f"attribute {name!r} has the values {known}, not {value!r}")
        encoded[name] = known.index(value)
    return encoded


def _move_novel(dataset, combinations):
    """Move the rows that match one of the combinations to the split "novel", beside those that are there."""
    import datasets

    names = list(dict.fromkeys(name for combination in combinations for name in combination))

    def matches(*labels):
        row = dict(zip(names, labels))
        return any(all(row[name] == value for name, value in each.items()) for each in combinations)

    moved = [dataset["novel"]] if "novel" in dataset else []
    kept = {}
    for split in (split for split in dataset if split != "novel"):
        rows = dataset[split]
        if isinstance(rows, datasets.IterableDataset):
            kept[split] = rows.filter(lambda *labels: not matches(*labels), input_columns=names)
            moved.append(rows.filter(matches, input_columns=names))
        else:
            match = [matches(*labels) for labels in zip(*label_table(rows, names).to_pydict().values())]
            kept[split] = rows.select([row for row, is_novel in enumerate(match) if not is_novel])
            moved.append(rows.select([row for row, is_novel in enumerate(match) if is_novel]))
    return type(dataset)(kept | {"novel": datasets.concatenate_datasets(moved)})
