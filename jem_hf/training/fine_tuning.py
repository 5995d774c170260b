"""Fine-tuning: a trained model goes on with data of other attributes, and keeps those that it has."""

import copy
from itertools import islice

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import default_data_collator

from ..data.tensors import AttributeTensors
from ..models.configuration_jem import JemConfig
from ..models.image_processing_jem import to_pixels
from ..models.modeling_jem import JemModel
from ..models.values_jem import BINARY


def unite_attributes(splits: dict, values: dict, config: JemConfig) -> tuple[dict, dict]:
    """
    Data with the attributes of a model, which come first, and its own. Labels that it does not have are missing (-1).

    Args:
        splits: `AttributeTensors` by name.
        values: the values of their attributes that are not binary.
        config: of the model.

    Returns:
        The splits, and the values of all attributes that are not binary, those of the data first.

    Raises:
        ValueError: a stream, or an attribute that is binary in the data or in the model alone.
    """
    if not all(isinstance(rows, AttributeTensors) for rows in splits.values()):
        raise ValueError("a trained model is fine-tuned on data in memory: leave streaming out")
    names = next(iter(splits.values())).attributes
    for name in set(names) & set(config.attributes):
        if (name in values) != (name in config.attribute_values):
            raise ValueError(
                f"attribute {name!r} has the values {values.get(name, BINARY)} in the data and {config.values(name)} "
                "in the model: rename the values of the data, or the attribute"
            )
    attributes = list(dict.fromkeys([*config.attributes, *names]))
    columns, encoded = [attributes.index(name) for name in names], {}
    for split, rows in splits.items():
        labels = torch.full((len(rows), len(attributes)), -1)
        labels[:, columns] = rows.labels
        encoded[split] = AttributeTensors(rows.images, labels, attributes)
    united = {**config.attribute_values, **values}
    for name in set(values) & set(config.attribute_values):
        united[name] = list(dict.fromkeys([*values[name], *config.attribute_values[name]]))
    return encoded, united


def load_resized(name_or_path: str, train: AttributeTensors, values: dict, novel: list[dict], **settings) -> JemModel:
    """
    A trained model with the attributes of data, `values` being those of the attributes that are not binary.

    Args:
        novel: combinations that are not in the training split. Those of the model stay where the data has no labels
            that could show them.
        settings: fields of the config to set, such as `guidance_scale`.
    """
    model = JemModel.from_pretrained(name_or_path, **settings)
    model.resize_attributes(train.attributes, values)
    labelled = {name for name, labels in zip(train.attributes, train.labels.T) if (labels >= 0).any()}
    kept = [each for each in model.config.novel_combinations if each not in novel and not set(each) <= labelled]
    model.config.novel_combinations = novel + kept
    return model


class Teacher:
    """
    A trained model, which labels images for its successor in the attributes that it knows.

    Labels drawn from its predictions are learning without forgetting (Li and Hoiem 2016, arXiv 1606.09282, temperature
    1): on average over the draws the cross-entropy is the one with the predictions themselves. As labels they are
    learnt by every objective: the images of the old attributes stay as well as their predictions.

    Args:
        model: The model as it was; it is copied.
        config: Of its successor.

    Raises:
        ValueError: it knows none of the attributes, or none of the values of one.
    """

    def __init__(self, model: JemModel, config: JemConfig):
        self.known = torch.tensor([name in model.config.attributes for name in config.attributes])
        if not self.known.any():
            raise ValueError(f"the teacher knows none of {', '.join(config.attributes)}: leave it out")
        model = copy.deepcopy(model).resize_attributes(config.attributes, config.attribute_values)
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def complete(
        self, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Labels (B, K) of images (B, C, H, W) in [-1, 1]: missing ones (-1) that the teacher knows are drawn."""
        drawn = self.model.label_distribution(self.model.encode(x)).draw(labels, generator)
        return torch.where(self.known.to(x.device), drawn, labels)

    def label(self, dataset: Dataset, batch_size: int = 250, batches_of_stream: int = 8) -> torch.Tensor:
        """Labels (N, K) of a dataset, completed, the same at each call; of a stream those of its first rows."""
        device = self.model.device
        generator = torch.Generator(device).manual_seed(0)
        batches = DataLoader(dataset, batch_size, collate_fn=default_data_collator, generator=torch.Generator())
        if not hasattr(dataset, "__len__"):
            batches = islice(batches, batches_of_stream)
        pairs = ((to_pixels(batch["pixel_values"].to(device)), batch["labels"].to(device)) for batch in batches)
        return torch.cat([self.complete(x, labels, generator) for x, labels in pairs])
