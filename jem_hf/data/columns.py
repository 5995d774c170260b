"""Label columns: bool for binary attributes, `ClassLabel` for those of several values, None for missing."""

from collections.abc import Iterable

import torch

from ..models.values_jem import nearest_name
from .attributes import Column, find_columns

OF_DRAWN_IMAGES = ("synthetic", "request", "seed", "energy")  # columns of `jem-hf balance`, which are no attributes


def cast_attributes(
    dataset,
    image_column: str,
    names: list[str] | None,
    values: dict[str, list] | None,
    other_values: str = "raise",
):
    """A dataset of its images and attributes alone, as bool and `ClassLabel`, and why other columns are none."""
    import datasets

    features = dict(features_of(next(iter(dataset.values()))))
    features.pop(image_column)
    if features.keys() >= {*OF_DRAWN_IMAGES}:
        features = {name: feature for name, feature in features.items() if name not in OF_DRAWN_IMAGES}
    is_stream = isinstance(dataset, datasets.IterableDatasetDict)

    def cells(name):
        return [cell for rows in dataset.values() for cell in label_table(rows, [name])[name].to_pylist()]

    columns, reasons = find_columns(features, None if is_stream else cells, names, values, other_values)
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

    rows = rows.cast_column(image_column, datasets.Image(decode=False))  # not to decode only to encode again
    features = {image_column: datasets.Image(decode=False)} | {name: each.feature for name, each in columns.items()}
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
    """Raise `ValueError` for a name that is no attribute, with the reason if there is such a column."""
    for name in names:
        if name not in known:
            if reasons and name in reasons:
                raise ValueError(f"column {name!r} is no attribute: {reasons[name]}")
            raise ValueError(f"unknown attribute {name!r}{nearest_name(name, known)}")


def label_table(dataset, names: Iterable[str]):
    """The label columns as an arrow table."""
    return dataset.select_columns(list(names)).with_format("arrow")[:]


def label_tensor(dataset, names: Iterable[str]) -> torch.Tensor:
    """Labels (N, K), -1 where missing."""
    columns = label_table(dataset, names)
    labels = [[-1 if y is None else int(y) for y in columns[name].to_pylist()] for name in names]
    return torch.tensor(labels, dtype=torch.int64).T.contiguous()
