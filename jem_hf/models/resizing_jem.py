"""Attributes and values added to a trained model, or taken from it, as transformers resizes embeddings."""

import torch
from torch import nn

from .configuration_jem import JemConfig
from .heads_jem import HEADS, DotHead, Head, ProductHead
from .label_prior_jem import PairwiseLabelPrior
from .label_samplers_jem import existing_values

NEW_VALUE = -5.0  # logit of a new value, beside the mean of the old ones


def resize(model, attributes: list[str], attribute_values: dict[str, list[str]] | None = None) -> None:
    """`JemModel.resize_attributes`, which see."""
    config = resized_config(model.config, attributes, attribute_values)
    mixture, added, dropped = _label_map(model.config, config)
    with torch.device("meta"):
        head = HEADS[config.head](model.head.linear.in_features, config.num_values)
        label_prior = PairwiseLabelPrior(config.num_values)
    _load(head, _resized_head(model.head, mixture, added, dropped), model.head)
    old, new = (existing_values(each.num_values).flatten() for each in (model.config, config))
    prior = _resized_prior(model.label_prior, mixture[new][:, old], added[new], dropped[old])
    _load(label_prior, prior, model.label_prior)
    model.config, model.head, model.label_prior = config, head, label_prior
    model.expect_calibration(config.calibrated)
    if model.outliers is not None:  # its statistics are those of another log p(x)
        model.outliers.quantiles.zero_()


def resized_config(config: JemConfig, attributes: list[str], attribute_values: dict | None = None) -> JemConfig:
    """A config with other attributes; of `novel_combinations` those that it can still express."""
    old_values = {name: values for name, values in config.named_values.items() if values and name in attributes}
    attribute_values = old_values | (attribute_values or {})
    changed = {"attributes": attributes, "attribute_values": attribute_values, "novel_combinations": []}
    resized = JemConfig.from_dict(config.to_dict() | changed)
    for name in config.named_values.keys() & set(attributes):
        if not set(config.values(name)) & set(resized.values(name)):
            old = ", ".join(config.values(name))
            raise ValueError(f"attribute {name!r} keeps none of its values, {old}: give it another name")
    resized.novel_combinations = [
        combination
        for combination in config.novel_combinations or []
        if all(name in attributes and str(value) in resized.values(name) for name, value in combination.items())
    ]
    return resized


def _label_map(old: JemConfig, new: JemConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What becomes of the places `k V + v` of the values, float64.

    Returns:
        Matrix (K'V', KV) of new places as mixtures of old ones: a value that stays is itself, a new value of an old
        attribute the mean of the old values, a new attribute zero; 1 (K'V') at new values of old attributes; and
        1 / V_k (KV) at the values of attributes that are dropped.
    """
    width, new_width = max(old.num_values), max(new.num_values)
    attributes = list(new.named_values)
    mixture = torch.zeros(len(attributes), new_width, len(old.named_values), width, dtype=torch.float64)
    added = torch.zeros(mixture.shape[:2], dtype=torch.float64)
    dropped = torch.zeros(mixture.shape[2:], dtype=torch.float64)
    for j, name in enumerate(old.named_values):
        values = old.values(name)
        if name not in attributes:
            dropped[j, : len(values)] = 1 / len(values)
            continue
        k = attributes.index(name)
        for v, value in enumerate(new.values(name)):
            if value in values:
                mixture[k, v, j, values.index(value)] = 1
            else:
                mixture[k, v, j, : len(values)] = 1 / len(values)
                added[k, v] = 1
    return mixture.flatten(2).flatten(0, 1), added.flatten(), dropped.flatten()


def _resized_head(head: Head, mixture, added, dropped) -> dict[str, torch.Tensor]:
    state = _double(head)
    if isinstance(head, ProductHead):
        bias = state["linear.bias"]
        if "interaction" in state:
            interaction = (state["interaction"] + state["interaction"].T) / 2
            bias = bias + interaction @ dropped
            state["interaction"] = mixture @ interaction @ mixture.T
        state["linear.bias"] = mixture @ bias + NEW_VALUE * added
        state["linear.weight"] = mixture @ state["linear.weight"]
    else:
        labels = "psi.0" if isinstance(head, DotHead) else "labels"
        weight = state[f"{labels}.weight"]
        state[f"{labels}.bias"] += weight @ dropped
        state[f"{labels}.weight"] = weight @ mixture.T
    return state


def _resized_prior(prior: PairwiseLabelPrior, mixture, added, dropped) -> dict[str, torch.Tensor]:
    state = _double(prior)
    bias = mixture @ (state["bias"] + state["weight"] @ dropped) + NEW_VALUE * added
    return {"bias": bias, "weight": mixture @ state["weight"] @ mixture.T}


def _double(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.double().cpu() for name, tensor in module.state_dict().items()}


def _load(module: nn.Module, state: dict[str, torch.Tensor], like: nn.Module) -> None:
    """Give a module its state, in the precision, on the device and in the mode of another."""
    tensors = like.state_dict()
    module.load_state_dict({name: value.to(tensors[name]) for name, value in state.items()}, assign=True)
    module.train(like.training)
