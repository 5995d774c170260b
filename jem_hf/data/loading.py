"""Images with attributes: from the Hub, a folder or the avatars to a `DatasetDict`.

`datasets` is imported inside the functions that need it; `tensors.AttributeTensors` works without it.
"""

import os

import torch
from transformers.utils import logging

from ..models.values_jem import nearest_name
from .attributes import reader
from .columns import (
    attribute_values,
    cast_attributes,
    check_names,
    features_of,
    find_image_column,
    label_table,
    label_tensor,
)
from .sources import load_source
from .splits import ZERO_SHOT_CANDIDATES, make_split, read_splits, write_splits, zero_shot_combinations

logger = logging.get_logger(__name__)

NUM_SHARDS = 1024  # of a stream of files, whose order is shuffled: data are often sorted, and a buffer sees a part


def load_attribute_dataset(
    name_or_path: str | os.PathLike,
    *,
    attributes: list[str] | None = None,
    values: dict[str, list] | None = None,
    other_values: str = "raise",
    min_frequency: float = 0.0,
    max_frequency: float = 1.0,
    novel: list[dict] | str | None = None,
    novel_required: bool = True,
    split: dict | None = None,
    split_file: str | os.PathLike | None = None,
    image_column: str | None = None,
    streaming: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **kwargs,
):
    """
    Load images and attributes as a `DatasetDict` with the column "image" and one column an attribute.

    Attributes are the columns of type bool (binary) and `ClassLabel` (its names are the values); None marks a label
    that is missing. Columns of whole numbers, strings and tags become such, see `attributes.find_columns`. What is
    left out is said in one warning, with the reason.

    Args:
        name_or_path (`str` or `os.PathLike`):
            "avatars", a dataset id on the Hub, a parquet file, or a folder, see `sources.load_source`.
        attributes (`list[str]`, *optional*): Names to keep, in this order; default: all, in column order.
        values (`dict[str, list]`, *optional*):
            The values of attributes that are not binary, by name, in the order of their labels.
        other_values (`str`, defaults to `"raise"`):
            What becomes of cells that hold none of these `values`: an error or, with "missing", a missing label.
        min_frequency, max_frequency (`float`, defaults to 0 and 1):
            Binary attributes that `attributes` does not name are left out if their share of positives among the
            labels present in the train split (the first where none is called train) is below or above; values of
            other attributes that `values` does not list count as missing if they are rarer than `min_frequency`.
            Counted before rows are divided or move to "novel".
        novel (`list[dict]` or `str`, *optional*):
            Combinations such as `{"Eyeglasses": True, "Beard": False}`, or the name of a preset in
            `splits.ZERO_SHOT_CANDIDATES`; rows that match one move to split "novel".
        novel_required (`bool`, defaults to `True`): Whether it is an error that no row matches.
        split (`dict`, *optional*):
            How to divide a dataset that has one split, which is not "test": `{"kind": "random" or "balanced",
            "seed": 0, "test": 0.1, ...}`. Other datasets keep their splits.
        split_file (`str`, *optional*):
            JSON file of row indices, which is read if it is there and else written from `split`.
        image_column (`str`, *optional*): Name of the column of images, where there are several.
        streaming (`bool`, defaults to `False`):
            Give an `IterableDatasetDict`, see `AttributeStream`. On one from the Hub nothing can be counted.
        cache_dir (`str`, *optional*): Where `datasets` keeps what it converts, see `sources.cache_folder`.
        kwargs: Of `load_avatars`, of `datasets.load_dataset`, or of the layout (`binarised` of UT-Zap50K).

    Raises:
        ValueError: a dataset that is not there or malformed, unknown names and values, empty splits, no attribute
            that is left, and requests that a stream from the Hub cannot meet.
    """
    import datasets

    dataset = load_source(name_or_path, streaming, cache_dir, **kwargs)
    is_stream = isinstance(dataset, datasets.IterableDatasetDict)
    if is_stream:
        _check_streamable(dataset, attributes, min_frequency, max_frequency, novel, split, split_file)
    image_column = find_image_column(features_of(next(iter(dataset.values()))), image_column)
    combinations = novel if isinstance(novel, list | tuple) else []
    wanted = [*(attributes or []), *(name for combination in combinations for name in combination)]
    if other_values not in ("raise", "missing"):
        raise ValueError(f"other_values is 'raise' or 'missing', not {other_values!r}")
    dataset, left_out = cast_attributes(dataset, image_column, attributes and wanted, values, other_values)
    names, known_values = attribute_values(features_of(next(iter(dataset.values()))))
    check_names([*wanted, *(values or {})], names, left_out)
    if not names:
        raise ValueError(
            f"{str(name_or_path)!r} has no attributes ({_reasons(left_out) or 'no column of labels'}): labels of a "
            f"folder of images belong in its metadata.csv; other columns are to be cast to bool or ClassLabel"
        )
    if isinstance(novel, str):
        combinations = _preset(dataset, novel, names)
    if (
        min_frequency > 0
        and not is_stream
        and (common := _common_values(dataset, known_values, values or {}, min_frequency))
    ):
        known_values |= common
        dataset, _ = cast_attributes(dataset, image_column, names, common, "missing")
    kept = attributes or _frequent(dataset, names, known_values, min_frequency, max_frequency, left_out)
    if (split or split_file) and not is_stream:  # by the labels that are kept, which an evaluation knows as well
        dataset = _split(dataset, split, split_file, kept)
    _check_not_empty(dataset, name_or_path)
    if left_out and not attributes:
        logger.warning(f"columns left out of {str(name_or_path)!r}: {_reasons(left_out)}")
    if combinations:
        readers = {name: reader(name, known_values.get(name)) for name in names}
        labels = [{name: readers[name](str(word)) for name, word in each.items()} for each in combinations]
        dataset = _move_novel(dataset, labels)
        if not novel_required and len(dataset["novel"]) == 0:
            dataset.pop("novel")
        _check_not_empty(dataset, name_or_path)
    dataset = dataset.select_columns([image_column, *kept])
    if image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    if is_stream or not streaming:
        return dataset
    streams = {split: rows.to_iterable_dataset(min(NUM_SHARDS, len(rows))) for split, rows in dataset.items()}
    return datasets.IterableDatasetDict(streams)


def _reasons(left_out: dict[str, str]) -> str:
    return "; ".join(f"{name!r}, for {reason}" for name, reason in left_out.items())


def _check_streamable(dataset, attributes, min_frequency, max_frequency, novel, split, split_file):
    remedies = []
    if not attributes and (min_frequency > 0 or max_frequency < 1):
        remedies.append("name the attributes instead of min_frequency and max_frequency")
    if isinstance(novel, str):
        remedies.append(f"list the combinations instead of novel={novel!r}")
    if split_file or (split and len(dataset) == 1):
        remedies.append("leave split and split_file out")
    if remedies:
        raise ValueError(f"no stream from the Hub can be counted or divided: {', '.join(remedies)}; or take no stream")


def _check_not_empty(dataset, name_or_path):
    for split, rows in dataset.items():
        if hasattr(rows, "__len__") and len(rows) == 0:  # streams have no length
            raise ValueError(
                f"split {split!r} of {str(name_or_path)!r} is empty: load other splits, or ask for less in novel"
            )


def _split(dataset, split, split_file, names):
    """Divide the one split of a dataset; leave the splits of any other."""
    import datasets

    parts = [name for name in dataset if name != "novel"]
    if len(parts) > 1 or parts == ["test"]:
        if split_file:
            raise ValueError(f"the dataset is divided into {', '.join(parts)} already: leave split_file out")
        return dataset
    rows = dataset[parts[0]]
    split_file = split_file and os.path.expanduser(split_file)
    if split_file and os.path.exists(split_file):
        indices = read_splits(split_file, len(rows))
    elif split:
        indices = make_split(split, label_tensor(rows, names))
        if split_file:
            write_splits(split_file, indices, len(rows), split.get("seed", 0))
    else:
        raise ValueError(f"no file {split_file!r} of splits: give split as well, to write it")
    divided = {name: rows.select(chosen) for name, chosen in indices.items()}
    return datasets.DatasetDict(divided | {name: dataset[name] for name in dataset if name not in parts})


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


def _common_values(dataset, values, listed, min_frequency):
    """The values that are frequent enough, of attributes that have at least two such, and some that are not."""
    names = [name for name in values if name not in listed]
    train = label_table(dataset.get("train", next(iter(dataset.values()))), names) if names else {}
    common = {}
    for name in names:
        counts = {each["values"]: each["counts"] for each in train[name].value_counts().to_pylist()}
        num_rows = sum(count for label, count in counts.items() if label is not None)
        kept = [value for i, value in enumerate(values[name]) if counts.get(i, 0) >= min_frequency * num_rows]
        if 2 <= len(kept) < len(values[name]):
            common[name] = kept
    return common


def _frequent(dataset, names, values, min_frequency, max_frequency, left_out):
    """The names without the binary attributes whose frequency is out of range, which are noted in `left_out`."""
    import pyarrow.compute

    if min_frequency <= 0 and max_frequency >= 1:
        return names
    train = label_table(dataset.get("train", next(iter(dataset.values()))), names)
    kept = []
    for name in names:
        frequency = 0.0 if name in values else pyarrow.compute.mean(train[name]).as_py() or 0.0
        if name in values or min_frequency <= frequency <= max_frequency:
            kept.append(name)
        else:
            left_out[name] = f"{frequency:.1%} are positive, not {min_frequency} to {max_frequency}"
    if not kept:
        raise ValueError(
            f"no attribute is positive in {min_frequency} to {max_frequency} of the train split: "
            f"widen min_frequency and max_frequency"
        )
    return kept


def _move_novel(dataset, combinations):
    """Move the rows that match one of the combinations to the split "novel", beside those that are there."""
    import datasets

    names = list(dict.fromkeys(name for combination in combinations for name in combination))

    def matches(*labels):
        row = dict(zip(names, labels))
        return any(all(row[name] == value for name, value in each.items()) for each in combinations)

    kept, moved = {}, [dataset["novel"]] if "novel" in dataset else []
    for split in (split for split in dataset if split != "novel"):
        rows = dataset[split]
        if isinstance(rows, datasets.IterableDataset):
            kept[split] = rows.filter(lambda *labels: not matches(*labels), input_columns=names)
            moved.append(rows.filter(matches, input_columns=names))
        else:
            match = torch.tensor([matches(*row.values()) for row in label_table(rows, names).to_pylist()])
            kept[split], novel = (rows.select(part.nonzero()[:, 0].tolist()) for part in (~match, match))
            moved.append(novel)
    return type(dataset)(kept | {"novel": datasets.concatenate_datasets(moved)})
