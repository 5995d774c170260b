"""Configuration of a joint energy-based model."""

import json
from typing import Any

import timm
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .autoencoder_jem import complete_autoencoder
from .hub_jem import IS_REMOTE_CODE, OnHub
from .values_jem import BINARY, LARGEST, as_choice, as_float, label_of, value_of

SMALLEST = {
    **dict(image_size=1, num_channels=1, num_inference_steps=1, flow_time=0, flow_temperature=0, step_size=0),
    **dict(eta=0, reach=0, noise_scale=0),
    "guidance_scale": -LARGEST,
}
CHOICES = {
    "head": ["product", "pairwise", "dot", "mlp"],
    "sampler": ["flow", "ancestral", "langevin"],
    "free_attributes": ["marginalise", "gibbs", "complete"],
    "label_sampler": ["gibbs", "gibbs_with_gradients"],
}


@strict
class JemConfig(OnHub, PreTrainedConfig):
    r"""
    What a [`JemModel`] is: its network, its images, its attributes and how it samples by default.

    Args:
        attributes (`list[str]`): Names of the K attributes, in the order of the label columns.
        attribute_values (`dict[str, list[str]]`, *optional*):
            The values of the attributes that are not binary, by name. All others have the values False and True.
        novel_combinations (`list[dict]`, *optional*):
            Combinations such as `{"Male": True, "Bangs": True}` that were kept out of training, for evaluation.
        split (`dict`, *optional*):
            How data of one split were divided, such as `{"kind": "balanced", "seed": 0, "test": 0.2}`, so that an
            evaluation meets no image that was trained on.
        backbone (`str`, defaults to `"jem_cnn"`): The paper's network, or a timm one without batch statistics.
        backbone_kwargs (`dict`, *optional*): Arguments for `timm.create_model`, such as `{"width": 64}`.
        image_size (`int`, defaults to 32): Height and width of the images, in pixels.
        num_channels (`int`, defaults to 3): Colour channels of the images.
        autoencoder (`dict` or `str`, *optional*):
            Puts the energy on codes of the images instead of their pixels: arguments of
            [`Autoencoder`](autoencoder_jem.py) such as `{"code_channels": 8}`, or `{"from_pretrained": name}` of a
            `JemModel` or of an autoencoder of diffusers, which a plain name means as well.
        head (`str`, defaults to `"product"`):
            How features and labels make an energy: `"product"` (labels independent given the image), `"pairwise"`,
            `"dot"` or `"mlp"`, see [`heads_jem`](heads_jem.py).
        sampler (`str`, defaults to `"flow"`):
            How images are drawn: `"flow"` or `"ancestral"` (gradient flow from normal noise, as it is or with a part
            of the noise drawn anew in each step, for energies trained by the warm-up) or `"langevin"` (the paper's
            chain from uniform noise, for energies trained by contrastive divergence).
        num_inference_steps (`int`, defaults to 16): Steps of the generating chain.
        flow_time (`float`, defaults to 1.6): Sum of the step sizes of the flow.
        flow_temperature (`float`, defaults to 0.0):
            Of the flow at its start, falling to 0: noise that makes details of what is a blend without it, and wants
            more steps and twice the time or more.
        eta (`float`, defaults to 1.0), reach (`float`, defaults to 1.0):
            Of ancestral steps, how much noise is drawn anew and how far they go, see
            [`ancestral`](image_samplers_jem.py).
        step_size (`float`, defaults to 4.0): Step of the Langevin chain, in pixels of [-1, 1] or codes.
        noise_scale (`float`, defaults to 0.002): Noise of the Langevin chain, in pixels of [-1, 1] or codes.
        guidance_scale (`float`, defaults to 2.0): g in `log p(x) + g log p(y|x)`.
        free_attributes (`str`, defaults to `"complete"`):
            What becomes of attributes that a request leaves open: `"marginalise"` (summed out), `"gibbs"` (drawn along
            the chain) or `"complete"` (drawn once, before the chain, from the model of the labels).
        outlier_score (`bool`, defaults to False): Whether it says how strange an image is, see
            [`OutlierScore`](outliers_jem.py); its statistics of training images are taken at the end of training.
        calibrated (`bool`, defaults to False): Whether probabilities are fitted to a validation split at the end of
            training, see [`Calibration`](calibration_jem.py); needs the head `"product"`.
        label_sampler (`str`, defaults to `"gibbs"`):
            How labels that interact are drawn: `"gibbs"` or `"gibbs_with_gradients"`. The head "product" needs none.

    Raises:
        ValueError: no attributes, a duplicate attribute, fewer than two values, an unknown backbone, head, sampler or
            treatment of free attributes, a number out of its range.
    """

    checkpoint_files = ("config.json",)
    model_type = "jem"
    has_no_defaults_at_init = True

    attributes: list[str] | None = None
    attribute_values: dict[str, list[str]] | None = None
    novel_combinations: list[dict] | None = None
    split: dict | None = None
    backbone: str = "jem_cnn"
    backbone_kwargs: dict | None = None
    image_size: int = 32
    num_channels: int = 3
    autoencoder: dict | str | None = None
    head: str = "product"
    sampler: str = "flow"
    num_inference_steps: int = 16
    flow_time: float | int = 1.6
    flow_temperature: float | int = 0.0
    eta: float | int = 1.0
    reach: float | int = 1.0
    step_size: float | int = 4.0
    noise_scale: float | int = 0.002
    guidance_scale: float | int = 2.0
    free_attributes: str = "complete"
    label_sampler: str = "gibbs"
    outlier_score: bool = False
    calibrated: bool = False

    def __post_init__(self, **kwargs):
        self.backbone_kwargs = self.backbone_kwargs or {}
        self.attribute_values = self.attribute_values or {}
        self.novel_combinations = self.novel_combinations or []
        self._check_attributes(self.attributes or [], self.attribute_values)
        self.novel_combinations = [self._with_values(each) for each in self.novel_combinations]
        self.check_settings()
        if self.autoencoder is not None:
            self.autoencoder = complete_autoencoder(self.autoencoder, self.image_size, self.num_channels)
        kwargs["id2label"] = dict(enumerate(self.label_names))
        kwargs["label2id"] = {name: i for i, name in enumerate(self.label_names)}
        kwargs.pop("num_labels", None)
        if not IS_REMOTE_CODE:  # what is installed takes no code, and asks for no trust in any
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        self.problem_type = "multi_label_classification"
        super().__post_init__(**kwargs)

    def _check_attributes(self, attributes: list[str], attribute_values: dict[str, list[str]]):
        if not attributes:
            raise ValueError("JemConfig needs at least one attribute: pass attributes=['Smiling', ...]")
        for name in attributes:
            if not name or not isinstance(name, str):
                raise ValueError(f"attribute names are non-empty strings, not {name!r}")
            if attributes.count(name) > 1:
                raise ValueError(f"duplicate attribute {name!r}: name every attribute once")
        for name, values in attribute_values.items():
            as_choice("attribute", name, attributes)
            if len(values) < 2 or len(set(values)) < len(values):
                raise ValueError(f"attribute {name!r} needs at least two different values, not {values}")
        for label in self.label_names:
            if self.label_names.count(label) > 1:
                raise ValueError(f"two labels are called {label!r}: rename the attribute or the value")

    def _with_values(self, combination: dict) -> dict[str, bool | str | None]:
        """A novel combination with its values as users write them."""
        values = self.named_values
        for name in combination:
            as_choice("attribute", name, values)
        labels = {name: label_of(name, value, values[name] or BINARY) for name, value in combination.items()}
        return {name: value_of(label, values[name]) for name, label in labels.items()}

    def check_settings(self) -> None:
        """Raise `ValueError` for fields out of their ranges, or that do not go together."""
        if self.backbone != "jem_cnn" and not timm.is_model(self.backbone):
            as_choice("backbone", self.backbone, ["jem_cnn", *timm.list_models()])
        try:
            json.dumps({**(self.backbone_kwargs or {}), "": ""}, sort_keys=True)  # names that are none do not sort
        except (TypeError, ValueError) as error:
            raise ValueError(f"backbone_kwargs are names and values of JSON, not {self.backbone_kwargs}") from error
        for field, choices in CHOICES.items():
            as_choice(field, getattr(self, field), choices)
        for field, smallest in SMALLEST.items():
            as_float(field, getattr(self, field), smallest)
        if self.calibrated and self.head != "product":
            raise ValueError(f"calibrated needs the head 'product', not {self.head!r}: set calibrated to false")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """From the content of a `config.json`. Raises `ValueError` for one of another kind of model."""
        if not isinstance(config_dict, dict) or config_dict.get("model_type", cls.model_type) != cls.model_type:
            found = config_dict.get("model_type") if isinstance(config_dict, dict) else config_dict
            raise ValueError(f"this is not the config of a JemModel but {found!r}: load another folder, or AutoModel")
        return super().from_dict(config_dict, **kwargs)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the energy sees: codes, or the images themselves where there is no autoencoder."""
        if self.autoencoder is None:
            return self.num_channels, self.image_size, self.image_size
        settings: Any = self.autoencoder
        return settings["code_channels"], settings["code_size"], settings["code_size"]

    def values(self, attribute: str) -> list[str]:
        """The values of one attribute, in the order of their label indices."""
        return (self.attribute_values or {}).get(attribute, BINARY)

    @property
    def num_values(self) -> list[int]:
        """V_k, the number of values of each of the K attributes."""
        return [len(values or BINARY) for values in self.named_values.values()]

    @property
    def named_values(self) -> dict[str, list[str] | None]:
        """The values of each attribute, None where it is binary; fields are slow to read, so ask once for all."""
        named = self.attribute_values or {}
        return {name: named.get(name) for name in self.attributes or []}

    @property
    def label_names(self) -> list[str]:
        """One name for each log-odds: the attribute where it is binary, else `attribute=value` for each value."""
        return [
            label
            for name, values in self.named_values.items()
            for label in ([name] if values is None else [f"{name}={value}" for value in values])
        ]


__all__ = ["JemConfig"]
