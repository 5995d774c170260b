"""Label columns as attributes: bool for binary ones, `ClassLabel` for those of several values, None for missing."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..models.configuration_jem import nearest_name

MAX_VALUES = 50
BINARY_PAIRS = (("false", "true"), ("no", "yes"), ("0", "1"), ("-1", "1"))


class Column(NamedTuple):
    """Where an attribute comes from: a column, the feature that holds it and what turns a cell into a label."""

    source: str
    feature: Any
    read: Callable | None = None  # None: cells are labels already

    def label(self, cell):
        return self.read(cell) if self.read else cell


def find_columns(features, cells, names=None, values=None) -> tuple[dict[str, Column], dict[str, str]]:
    """
    The attributes among the columns of a dataset.

    Bool and `ClassLabel` columns are attributes as they are; columns of whole numbers and strings are binary where
    they hold one of `BINARY_PAIRS`, else have their values in order; lists of tags are one binary attribute a tag.

    Args:
        features: of the dataset, without the image.
        cells: a function from the name of a column to all its cells; None on a stream, where columns of numbers and
            strings are attributes only if named, and then binary unless `values` has them.
        names: attributes that are wanted; default: all that there are.
        values: the values of some attributes, in the order of their labels, whatever order the dataset has.

    Returns:
        Columns by name of attribute, in column order, and the reasons why others are none.

    Raises:
        ValueError: a value that `values` does not list, or a column that mixes True and False with other words.
    """
    found, reasons = {}, {}
    for source, feature in features.items():
        tags = _tags(source, feature, cells)
        if tags is not None:
            columns = {name if name not in features else f"{source}.{name}": column for name, column in tags.items()}
            found |= {f"{source}.{name}" if name in found else name: column for name, column in columns.items()}
            continue
        wanted = source in names if names else cells is not None
        try:
            found[source] = _column(source, feature, cells, (values or {}).get(source), wanted)
        except _NoAttributeError as reason:
            reasons[source] = str(reason)
    return found, reasons


class _NoAttributeError(Exception):
    """Why a column is no attribute."""


def _column(source, feature, cells, values, wanted):
    import datasets

    is_label = isinstance(feature, datasets.ClassLabel)
    if values is None and (is_label or feature == datasets.Value("bool")):
        return Column(source, feature)
    if values is not None:
        values = [str(value) for value in values]
        names = feature.names if is_label else None
        return Column(source, datasets.ClassLabel(names=values), _reader_of(source, values, names))
    kind = getattr(feature, "dtype", "")
    if not re.fullmatch("u?int[0-9]+|float[0-9]+|string|large_string", kind):
        raise _NoAttributeError(f"it is of type {kind or feature}: cast it to bool or ClassLabel")
    if cells is None:
        if not wanted:
            raise _NoAttributeError("the values of a stream cannot be counted: name it in attributes or values")
        return Column(source, datasets.Value("bool"), _reader_of_booleans(source))
    texts = [text for text in map(_text, cells(source)) if text is not None]
    known = set(texts)
    words = {text.lower() for text in known}
    if any(words <= set(pair) for pair in BINARY_PAIRS) and words:
        return Column(source, datasets.Value("bool"), _reader_of_booleans(source))
    if words & {"true", "false"} and wanted:
        other = min(word for word in known if word.lower() not in ("true", "false"))
        raise ValueError(
            f"column {source!r} mixes True and False with {other!r}: write one kind of value, nothing where it is "
            f"missing"
        )
    if kind.startswith("float") and not all(re.fullmatch("-?[0-9]+", text) for text in known):
        raise _NoAttributeError("it holds numbers that are not whole: cast it to bool or ClassLabel")
    if len(known) < 2:
        raise _NoAttributeError(f"all its values are {known.pop()!r}" if known else "it has no values")
    if len(known) > MAX_VALUES or len(known) == len(texts):
        raise _NoAttributeError(
            f"it has {len(known)} different values in {len(texts)} rows, more than {MAX_VALUES} or one a row: "
            f"cast it to ClassLabel"
        )
    is_number = all(re.fullmatch("-?[0-9]+", text) for text in known)
    values = sorted(known, key=int if is_number else None)
    return Column(source, datasets.ClassLabel(names=values), _reader_of(source, values))


def _tags(source, feature, cells):
    """A binary attribute a tag of a column of lists, None for any other column."""
    import datasets

    inner = getattr(feature, "feature", None)
    if isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    if isinstance(inner, datasets.ClassLabel):
        tags = dict(enumerate(inner.names))
    elif cells is not None and inner in (datasets.Value("string"), datasets.Value("large_string")):
        tags = {tag: tag for tag in sorted({tag for cell in cells(source) for tag in cell or () if tag})}
        if len(tags) > MAX_VALUES:
            return None
    else:
        return None
    return {
        name: Column(source, datasets.Value("bool"), lambda cell, tag=tag: None if cell is None else tag in cell)
        for tag, name in tags.items()
    }


def _text(cell):
    """A cell as text, whole numbers without a point; None where it is missing."""
    if cell is None or cell != cell:
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip() or None


def _reader_of(source, values, names=None):
    """Cells to indices of `values`; `names` are what the cells of a `ClassLabel` stand for."""
    index = {value: i for i, value in enumerate(values)}

    def read(cell):
        if names is not None and cell is not None:
            cell = names[cell] if cell >= 0 else None
        text = _text(cell)
        if text is not None and text not in index:
            raise ValueError(f"attribute {source!r} has no value {text!r}{nearest_name(text, values)}")
        return None if text is None else index[text]

    return read


def _reader_of_booleans(source):
    false, true = (set(words) for words in zip(*BINARY_PAIRS))

    def read(cell):
        text = _text(cell)
        if text is None:
            return None
        if text.lower() not in false | true:
            raise ValueError(
                f"column {source!r} is not binary, for it has {text!r}: give its values, values={{{source!r}: [...]}}"
            )
        return text.lower() in true

    return read


def attribute_values(features):
    """Names of the attributes among dataset features, in order, and the values of each that is a `ClassLabel`."""
    import datasets

    values = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return [name for name in features if name in values or features[name] == datasets.Value("bool")], values


def features_of(rows):
    """The features of a split; those of some streams are known from their first rows only."""
    return rows.features or rows._resolve_features().features


def find_image_column(features, image_column=None):
    import datasets

    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column is not None:
        columns = [name for name in columns if name == image_column]
    if len(columns) != 1:
        found = "several columns" if columns else "no column"
        wanted = f" called {image_column!r}" if image_column else ""
        raise ValueError(f"{found} of images{wanted} among {list(features)}: name one of type Image with image_column")
    return columns[0]


def check_names(names, known, reasons=None):
    for name in names:
        if reasons and name in reasons:
            raise ValueError(f"column {name!r} is no attribute: {reasons[name]}")
        if name not in known:
            raise ValueError(f"unknown attribute {name!r}{nearest_name(name, known)}")


def label_table(dataset, names):
    """The label columns as an arrow table."""
    return dataset.select_columns(list(names)).with_format("arrow")[:]


def label_tensor(dataset, names):
    """Labels (N, K), -1 where missing."""
    columns = label_table(dataset, names)
    labels = [[-1 if y is None else int(y) for y in columns[name].to_pylist()] for name in names]
    return torch.tensor(labels, dtype=torch.int64).T.contiguous()
