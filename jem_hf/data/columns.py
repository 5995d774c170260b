"""Label columns as attributes: bool for binary ones, `ClassLabel` for those of several values, None for missing."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from ..models.configuration_jem import BINARY, nearest_name

logger = logging.get_logger(__name__)

MAX_VALUES = 50
WORDS = {"false": False, "no": False, "n": False, "f": False, "0": False, "-1": False}
WORDS |= {"true": True, "yes": True, "y": True, "t": True, "1": True}
BINARY_WORDS = ("no n yes y", "false f true t", "-1 1", "0 no false 1 yes true")  # that may stand in one column
WHOLE = re.compile(r"([+-]?[0-9]+)(\.0*)?")
NUMBER = re.compile(r"[+-]?[0-9]*[.,]?[0-9]+([eE][+-]?[0-9]+)?\.?")


class Column(NamedTuple):
    """Where an attribute comes from: a column, the feature that holds it and what turns a cell into a label."""

    source: str
    feature: Any
    read: Callable | None = None  # None: cells are labels already


class _NoAttributeError(Exception):
    """Why a column is no attribute."""


def find_columns(
    features: dict, cells: Callable | None, names: list[str] | None = None, values: dict[str, list] | None = None
) -> tuple[dict[str, Column], dict[str, str]]:
    """
    The attributes among the columns of a dataset.

    Bool and `ClassLabel` columns are attributes as they are. Columns of strings and whole numbers are binary where
    all their words are in one group of `BINARY_WORDS`, else have up to `MAX_VALUES` values; case and spaces do not
    tell values apart, the commonest spelling names one. Lists of tags, and strings with commas or semicolons whose
    parts recur, are one binary attribute a tag.

    Args:
        features (`dict`): Of the dataset, without the image.
        cells (`Callable`, *optional*):
            From the name of a column to its cells in all splits; None on a stream, where columns of numbers and
            strings are attributes only if named, and then binary unless `values` has them.
        names (`list[str]`, *optional*): Attributes that are wanted; default: all that there are.
        values (`dict[str, list]`, *optional*): The values of some attributes, in the order of their labels.

    Returns:
        Columns by name of attribute, in column order, and the reasons why others are none.

    Raises:
        ValueError: a column that mixes True and False with words that are not binary.
    """
    found, reasons, notes = {}, {}, []
    for source, feature in features.items():
        chosen = (values or {}).get(source)
        is_wanted = source in names if names else cells is not None
        tags = _tags(source, feature, cells) if chosen is None else None
        if tags is not None:
            for name, column in tags.items():
                found[f"{source}.{name}" if name in features or name in found else name] = column
            if is_wanted:
                notes.append(f"{source!r} holds the tags {', '.join(tags)}")
            if names and is_wanted:
                reasons[source] = f"it holds the tags {', '.join(tags)}: name those"
            continue
        try:
            found[source], merged = _column(source, feature, cells, chosen, is_wanted)
        except _NoAttributeError as reason:
            reasons[source] = str(reason)
        else:
            if merged and (is_wanted or not names):
                notes.append(f"{source!r} has {merged}")
    if notes:
        logger.warning(f"how columns are read: {'; '.join(notes)}")
    return found, reasons


def text_of(cell: Any) -> str | None:
    """A cell as text, whole numbers without a point; None where it is missing."""
    if cell is None or cell != cell:
        return None
    text = unicodedata.normalize("NFC", " ".join(str(cell).split()))
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text or None


def reader(name: str, values: list | None = None, names: list[str] | None = None) -> Callable[[Any], Any]:
    """
    What turns the cells of an attribute into labels: bool, or an index of `values` if it is not binary.

    Args:
        names (`list[str]`, *optional*): What the cells stand for if they are those of a `ClassLabel`.
    """
    texts = [str(value) for value in values or BINARY]
    labels = {text_of(text).casefold(): i for i, text in enumerate(texts)} | {text: i for i, text in enumerate(texts)}
    if values is None:
        labels = WORDS
    elif len(texts) == 2 and {WORDS.get(text.casefold()) for text in texts} == {False, True}:
        label_of_truth = {WORDS[text.casefold()]: i for i, text in enumerate(texts)}
        labels = {word: label_of_truth[truth] for word, truth in WORDS.items()} | labels

    def read(cell):
        if names is not None and cell is not None:
            cell = names[cell] if cell >= 0 else None
        text = text_of(cell)
        if text is None:
            return None
        label = labels.get(text, labels.get(text.casefold()))
        if label is None:
            remedy = "" if values else f"; or list all, values={{{name!r}: [...]}}"
            raise ValueError(f"attribute {name!r} has no value {text!r}{nearest_name(text, texts)}{remedy}")
        return label

    return read


def _column(source, feature, cells, values, wanted) -> tuple[Column, str]:
    """A column as attribute, and which spellings in it count as one value."""
    import datasets

    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if values is not None:
        return Column(source, datasets.ClassLabel(names=list(map(str, values))), reader(source, values, names)), ""
    if names or feature == datasets.Value("bool"):
        return Column(source, feature), ""
    kind = getattr(feature, "dtype", "")
    if not re.fullmatch("u?int[0-9]+|float[0-9]+|string|large_string", kind):
        raise _NoAttributeError(f"it is of type {kind or feature}: cast it to bool or ClassLabel")
    binary = Column(source, datasets.Value("bool"), reader(source))
    if cells is None:
        if not wanted:
            raise _NoAttributeError("the values of a stream cannot be counted: name it in attributes or values")
        return binary, ""
    count = Counter(text for text in map(text_of, cells(source)) if text is not None)
    spellings = _spellings(count, str.casefold)
    if _is_binary(spellings):
        return binary, _note(_spellings(count, lambda text: WORDS[text.casefold()])) if len(count) > 2 else ""
    if {"true", "false"} & spellings.keys() and wanted:
        other = min(text for text in count if text.casefold() not in ("true", "false"))
        raise ValueError(
            f"column {source!r} mixes True and False with {other!r}: write one kind of value, nothing where it is "
            f"missing"
        )
    if all(map(NUMBER.fullmatch, count)) and not all(map(WHOLE.fullmatch, count)):
        raise _NoAttributeError("it holds numbers that are not whole: cast it to bool or ClassLabel")
    if len(spellings) < 2:
        raise _NoAttributeError(f"all its values are {min(count)!r}" if count else "it has no values")
    if len(spellings) > MAX_VALUES or len(spellings) == count.total():
        raise _NoAttributeError(
            f"it has {len(spellings)} different values in {count.total()} rows, more than {MAX_VALUES} or one a row: "
            f"cast it to ClassLabel"
        )
    is_number = all(map(WHOLE.fullmatch, count))
    values = sorted((each[0] for each in spellings.values()), key=int if is_number else None)
    return Column(source, datasets.ClassLabel(names=values), reader(source, values)), _note(spellings)


def _spellings(count: Counter, key: Callable) -> dict[Any, list[str]]:
    """The texts that share a key, the commonest first."""
    spellings = {}
    for text in sorted(count, key=lambda text: (-count[text], text)):
        spellings.setdefault(key(text), []).append(text)
    return spellings


def _note(spellings: dict[Any, list[str]]) -> str:
    return ", ".join(" = ".join(map(repr, each)) for each in spellings.values() if len(each) > 1)


def _is_binary(words: Iterable[str]) -> bool:
    return bool(words) and any(set(words) <= set(group.split()) for group in BINARY_WORDS)


def _tags(source, feature, cells) -> dict[str, Column] | None:
    """A binary attribute a tag of a column of tags, None for any other column."""
    import datasets

    inner = getattr(feature, "feature", None)
    if isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    if isinstance(inner, datasets.ClassLabel):
        return {name: _tag(source, i) for i, name in enumerate(inner.names)}
    is_text = feature in (datasets.Value("string"), datasets.Value("large_string"))
    if cells is None or not (is_text or inner in (datasets.Value("string"), datasets.Value("large_string"))):
        return None
    column = [cell for cell in cells(source) if cell]
    if is_text and (any(map(NUMBER.fullmatch, column)) or not any(map(re.compile("[,;]").search, column))):
        return None
    count = Counter(tag for cell in column for tag in _split(cell))
    tags = _spellings(count, str.casefold)
    if len(tags) > MAX_VALUES or (is_text and (len(set(column)) < 2 or count.total() < 2 * len(tags))):
        return None
    return {each[0]: _tag(source, tag) for tag, each in sorted(tags.items(), key=lambda item: item[1])}


def _tag(source: str, tag: str) -> Column:
    import datasets

    def read(cell):
        if cell is None or cell == "":
            return None
        return tag in _folded(cell if isinstance(cell, str) else tuple(cell))

    return Column(source, datasets.Value("bool"), read)


def _split(cell: str | Iterable) -> list[str]:
    parts = re.split("[,;]", cell) if isinstance(cell, str) else cell
    return [text for text in map(text_of, parts) if text]


@lru_cache(10_000)  # each tag of a column reads the same cells
def _folded(cell: str | tuple) -> set[str]:
    return {tag.casefold() for tag in _split(cell)}


def cast_attributes(dataset, image_column: str, names: list[str] | None, values: dict[str, list] | None):
    """A dataset of its images and attributes alone, as bool and `ClassLabel`, and why other columns are none."""
    import datasets

    features = dict(features_of(next(iter(dataset.values()))))
    features.pop(image_column)
    is_stream = isinstance(dataset, datasets.IterableDatasetDict)

    def cells(name):
        return [cell for rows in dataset.values() for cell in label_table(rows, [name])[name].to_pylist()]

    columns, reasons = find_columns(features, None if is_stream else cells, names, values)
    sources = list(dict.fromkeys(column.source for column in columns.values()))
    dataset = dataset.select_columns([image_column, *sources])
    if any(column.read for column in columns.values()):
        cast = _cast_stream if is_stream else _cast_rows
        dataset = type(dataset)({split: cast(rows, image_column, columns) for split, rows in dataset.items()})
    return dataset, reasons


def _labels(row: dict, columns: dict[str, Column]) -> dict:
    return {name: read(row[source]) if read else row[source] for name, (source, _, read) in columns.items()}


def _cast_rows(rows, image_column, columns):
    import datasets

    sources = list(dict.fromkeys(column.source for column in columns.values()))
    labels = [_labels(row, columns) for row in label_table(rows, sources).to_pylist()]
    features = datasets.Features({name: column.feature for name, column in columns.items()})
    labels = datasets.Dataset.from_list(labels, features=features, split=rows.split)
    return datasets.concatenate_datasets([rows.select_columns([image_column]), labels], axis=1)


def _cast_stream(rows, image_column, columns):
    import datasets

    def cast(row):
        return {image_column: row[image_column], **_labels(row, columns)}

    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    features = {image_column: datasets.Image(decode=False)}
    features |= {name: column.feature for name, column in columns.items()}
    rows = rows.map(cast, remove_columns=list(features_of(rows)), features=datasets.Features(features))
    return rows.cast_column(image_column, datasets.Image())


def attribute_values(features) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the attributes among dataset features, in order, and the values of each that is a `ClassLabel`."""
    import datasets

    values = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return [name for name in features if name in values or features[name] == datasets.Value("bool")], values


def features_of(rows):
    """The features of a split; those of some streams are known from their first rows only."""
    return rows.features or rows._resolve_features().features


def find_image_column(features, image_column: str | None = None) -> str:
    """The one column of images, or the one of that name."""
    import datasets

    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column is not None:
        columns = [name for name in columns if name == image_column]
    if len(columns) != 1:
        found = "several columns" if columns else "no column"
        wanted = f" called {image_column!r}" if image_column else ""
        raise ValueError(f"{found} of images{wanted} among {list(features)}: name one of type Image with image_column")
    return columns[0]


def check_names(names: Iterable[str], known: list[str], reasons: dict[str, str] | None = None) -> None:
    """Raise `ValueError` for a name that is no attribute, with the reason if the column is there."""
    for name in names:
        if name not in known and name in (reasons or {}):
            raise ValueError(f"column {name!r} is no attribute: {reasons[name]}")
        if name not in known:
            raise ValueError(f"unknown attribute {name!r}{nearest_name(name, known)}")


def label_table(dataset, names: Iterable[str]):
    """The label columns as an arrow table."""
    return dataset.select_columns(list(names)).with_format("arrow")[:]


def label_tensor(dataset, names: Iterable[str]) -> torch.Tensor:
    """Labels (N, K), -1 where missing."""
    columns = label_table(dataset, names)
    labels = [[-1 if y is None else int(y) for y in columns[name].to_pylist()] for name in names]
    return torch.tensor(labels, dtype=torch.int64).T.contiguous()
