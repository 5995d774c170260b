"""Splits of a dataset as tensors: those that a recipe trains on, and those that a trained model is evaluated on."""

import torch

from ..data.columns import attribute_values, features_of
from ..data.loading import load_attribute_dataset
from ..data.sources import is_local
from ..data.tensors import AttributeStream, AttributeTensors, encode_dataset
from ..models.configuration_jem import JemConfig
from ..models.image_processing_jem import JemImageProcessor
from ..models.values_jem import BINARY, nearest_name
from .fields import SECTIONS, expand_home, field_value

DEFAULT_SPLIT = {"kind": "random", "seed": 0, "test": 0.1}


def load_splits(
    dataset: dict,
    processor: JemImageProcessor,
    attributes: list[str] | None = None,
    values: dict[str, list[str]] | None = None,
) -> tuple[dict, dict]:
    """
    Splits of a dataset as tensors in memory, and the values of its attributes that are not binary.

    Args:
        dataset (`dict`):
            The section of that name of a recipe. A dataset of one split, which is not "test", is divided by
            `DEFAULT_SPLIT` if no `split` is given. With `streaming` the train split is an `AttributeStream`.
        processor ([`JemImageProcessor`]): Makes images of one size.
        attributes (`list[str]`, *optional*): Names of the label columns, in order; by default what the section says.
        values (`dict[str, list[str]]`, *optional*):
            `attribute_values` of a model's config: labels are numbered in their order, and cells with other values
            count as missing.

    Raises:
        ValueError: as `load_attribute_dataset`, and for an attribute whose values are not those of the model.
    """
    dataset = dict(dataset)
    name_or_path = dataset.pop("name_or_path", "avatars")
    on_error, shuffle_buffer = dataset.pop("on_error", "raise"), dataset.pop("shuffle_buffer", 1000)
    streaming = dataset.get("streaming", False)
    if not (dataset.get("split") or dataset.get("split_file")) and (is_local(name_or_path) or not streaming):
        dataset["split"] = DEFAULT_SPLIT
    if attributes:
        dataset |= {"attributes": attributes, "values": {**(dataset.get("values") or {}), **(values or {})}}
        dataset |= {"min_frequency": 0.0, "max_frequency": 1.0, "other_values": "missing"}
    splits = load_attribute_dataset(name_or_path, **dataset)
    names, found = attribute_values(features_of(next(iter(splits.values()))))
    for name in names if values is not None else ():
        if found.get(name) != values.get(name):
            raise ValueError(
                f"attribute {name!r} has the values {found.get(name, BINARY)} in {name_or_path!r} and "
                f"{values.get(name, BINARY)} in the model: rename the values of the data"
            )
    encoded = {}
    for split, rows in splits.items():
        if not streaming:
            encoded[split] = encode_dataset(rows, processor, names, on_error=on_error)
        elif split == "train":
            encoded[split] = AttributeStream(rows, processor, names, shuffle_buffer, on_error=on_error)
        else:
            encoded[split] = AttributeStream(rows, processor, names, 0, on_error=on_error).to_tensors()
    return encoded, found


def load_evaluation_splits(
    name_or_path: str, processor: JemImageProcessor, config: JemConfig, overrides: dict[str, str] | None = None
) -> dict:
    """
    Splits as `load_splits` gives them, as a model wants them: its attributes, divided as its training data were, and
    its novel combinations apart, if there are images of them.

    Args:
        name_or_path (`str`): As of `load_attribute_dataset`.
        processor, config ([`JemImageProcessor`], [`JemConfig`]): Of the model.
        overrides (`dict[str, str]`, *optional*): Further fields of the section "dataset" of a recipe, as text.

    Raises:
        ValueError: a field that the section does not have.
    """
    dataset = {"name_or_path": expand_home("name_or_path", name_or_path)}
    if config.novel_combinations:
        dataset |= {"novel": config.novel_combinations, "novel_required": False}
    if config.split and not {"split", "split_file"} & (overrides or {}).keys():
        dataset["split"] = config.split
    for name, text in (overrides or {}).items():
        if name not in SECTIONS["dataset"]:
            raise ValueError(f"unknown field {name!r}{nearest_name(name, SECTIONS['dataset'])}")
        dataset[name] = field_value("dataset", name, text)
    return load_splits(dataset, processor, config.attributes, config.attribute_values)[0]


def validation_part(splits: dict[str, AttributeTensors]) -> tuple[AttributeTensors, AttributeTensors]:
    """
    What is trained on, and what a calibration is fitted on.

    The splits "train" and "validation" (or "valid"); without the latter a random tenth of the training split is it,
    one image or more; both are all of a training split of a single image.

    Raises:
        ValueError: a training split that is a stream, and no other.
    """
    train = splits["train"]
    for name in ("validation", "valid"):
        if name in splits:
            return train, splits[name]
    if not isinstance(train, AttributeTensors):
        raise ValueError("a stream has no images to spare for calibration: add a split 'validation', or do without it")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    num = max(1, round(0.1 * len(train)))
    return train.subset(order[num:] if len(train) > num else order), train.subset(order[:num])
