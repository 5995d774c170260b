"""Cells of a data set that hold a value which a model does not know: no labels for it, but not missing either."""

from collections.abc import Mapping
from itertools import product

from ..data.attributes import reader, text_of
from ..data.columns import features_of, find_image_column, label_table
from ..data.sources import load_source
from ..models.configuration_jem import JemConfig
from ..training.fields import field_value

SOURCE_FIELDS = ("cache_dir", "binarised", "num_train", "num_test", "num_novel")  # that `load_source` takes


def images_of_other_values(
    name_or_path: str, config: JemConfig, overrides: Mapping[str, str] | None = None
) -> dict[str, set[str]]:
    """
    The images whose cell holds none of the values of a model, by attribute: their files, "" for all that have none.

    Args:
        name_or_path, overrides: As of `load_evaluation_splits`.
        config ([`JemConfig`]): Of the model.
    """
    import datasets

    if not config.attribute_values:
        return {}
    fields = {name: field_value("dataset", name, text) for name, text in (overrides or {}).items()}
    settings = {name: fields[name] for name in SOURCE_FIELDS if name in fields}
    source = load_source(fields.get("name_or_path", name_or_path), **settings)
    column = find_image_column(features_of(next(iter(source.values()))), fields.get("image_column"))
    found: dict[str, set[str]] = {name: set() for name in config.attribute_values}
    for rows, name in product(source.values(), found):
        names = getattr(rows.features[name], "names", None)
        read = reader(name, config.attribute_values[name], names, "missing")
        cells = enumerate(label_table(rows, [name])[name].to_pylist())
        present = [(i, cell) for i, cell in cells if text_of(cell) is not None and not (names and cell < 0)]
        other = rows.select([i for i, cell in present if read(cell) is None])
        images = other.cast_column(column, datasets.Image(decode=False))[column]
        found[name] |= {(image and image["path"]) or "" for image in images}
    return found
