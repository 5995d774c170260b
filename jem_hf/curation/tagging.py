"""Attributes of many images as columns of a table."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import SAFE_WEIGHTS_NAME

from ..hub.zoo import resolve
from ..models.configuration_jem import JemConfig
from ..models.image_processing_jem import JemImageProcessor
from ..models.modeling_jem import JemModel
from ..models.requests_jem import Request, parse_request
from ..models.values_jem import as_choice, as_float
from .pictures import Pictures
from .table import Table


class Tagger:
    """
    Tags batches of images: `dataset.map(Tagger("jem-celeba"), batched=True, num_proc=2)`, Ray Data's `map_batches`,
    or a call. It is pickled by the name of its model, which each process loads for itself when it tags.

    Args:
        model (`str`): Zoo name, Hub id or folder.
        image_column (`str`, *optional*, defaults to `"image"`):
            Of a batch; its images are any that [`open_image`](image_processing_jem.py) takes.
        thresholds (`dict[str, float]`, *optional*):
            Probability from which a binary attribute counts as there, by name; 0.5 for others.
        given (`str` or `dict`, *optional*): What is known of all images, see [`parse_request`](requests_jem.py).
        outlier_score (`bool`, *optional*, defaults to `False`): Add it; it takes several times as long as the rest.
        crop_to (`list[float]`, *optional*): Square that images are cut to first, see [`find_crop`](framing.py).

    Raises:
        OSError: no such model.
        ValueError: attributes that it does not have, or an outlier score that it has not.
    """

    def __init__(
        self,
        model: str,
        *,
        image_column: str = "image",
        thresholds: Mapping[str, float] | None = None,
        given: Request = "",
        outlier_score: bool = False,
        crop_to: Sequence[float] | None = None,
    ):
        self.name, self.image_column, self.outlier_score, self.crop_to = model, image_column, outlier_score, crop_to
        self.config, self.weights = JemConfig.from_pretrained(model), _hash(model)
        self.thresholds = dict(thresholds or {})
        self._loaded: tuple[JemModel, JemImageProcessor] | None = None
        self._process = os.getpid()
        binary = [name for name, values in self.config.named_values.items() if values is None]
        for name, threshold in self.thresholds.items():
            as_choice("binary attribute", name, binary)
            as_float(f"the threshold of {name}", threshold)
        self.known = parse_request(given, self.config)
        if outlier_score and not self.config.outlier_score:
            raise ValueError(f"the model {model!r} has no outlier score: train it with outlier_score: true")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}

    @property
    def model(self) -> JemModel:
        return self._load()[0]

    @property
    def processor(self) -> JemImageProcessor:
        return self._load()[1]

    @property
    def columns(self) -> dict[str, type]:
        """Names and types of the columns: `predicted_A` and `p_A`, of each value `p_A=value`; `energy`."""
        config = self.config
        types: dict[str, type] = {f"predicted_{a}": bool if v is None else str for a, v in config.named_values.items()}
        types |= dict.fromkeys((f"p_{label}" for label in config.label_names), float) | {"energy": float}
        return types | ({"outlier_score": float} if self.outlier_score else {})

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, list]:
        """The columns of a batch of images. Raises `ValueError` for an image that cannot be read."""
        return self.tag(self.processor(list(batch[self.image_column]), return_tensors="pt")["pixel_values"])

    @torch.no_grad()
    def tag(self, pixel_values: torch.Tensor) -> dict[str, list]:
        """The columns of images (B, C, H, W) in [-1, 1]."""
        model, config = self.model, self.config
        pixel_values = pixel_values.to(model.device)
        distribution = model.label_distribution(model.encode(pixel_values))
        known = torch.tensor(self.known, device=model.device).expand(len(pixel_values), -1)
        logits = distribution.marginal_logits(known)[0]
        scores, best = model.log_odds(logits).sigmoid(), logits.argmax(-1)
        columns: dict[str, list] = {}
        for k, (name, values) in enumerate(config.named_values.items()):
            if values is None:
                p = scores[:, config.label_names.index(name)]
                columns[f"predicted_{name}"] = (p >= self.thresholds.get(name, 0.5)).tolist()
            else:
                columns[f"predicted_{name}"] = [values[label] for label in best[:, k].tolist()]
        columns |= {f"p_{label}": p.tolist() for label, p in zip(config.label_names, scores.T)}
        columns["energy"] = (-distribution.log_joint(known)).tolist()
        if self.outlier_score:
            columns["outlier_score"] = model.outlier_score(pixel_values).tolist()
        return columns

    def _load(self) -> tuple[JemModel, JemImageProcessor]:
        if self._process != os.getpid():  # one of several: each has one core, and threads do not survive a fork
            self._process, self._loaded = os.getpid(), None
            torch.set_num_threads(1)
        if self._loaded is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = JemModel.from_pretrained(self.name).to(device).eval()
            changed = {} if self.crop_to is None else {"crop_to": list(self.crop_to)}
            self._loaded = model, JemImageProcessor.from_pretrained(self.name, **changed)
        return self._loaded


def _hash(model: str) -> str:
    """Of the weights in a folder, so that caches know when they change; the name of a model that is elsewhere."""
    weights = Path(resolve(model)[0], SAFE_WEIGHTS_NAME)
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else model


def tag_pictures(
    tagger: Tagger,
    pictures: Pictures,
    table: Table,
    *,
    batch_size: int = 64,
    num_proc: int | None = None,
    on_error: str = "skip",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """
    Tag all images that a table does not hold yet, a row an image: its name, the columns of [`Tagger`], and an `error`
    where it could not be read. Those are tried again in the next call.

    Args:
        on_error (`str`, *optional*, defaults to `"skip"`): Or "raise": at the first image that cannot be read, after
            what came before it is kept.

    Returns:
        How many were "tagged" and "broken" in this call, and "there" before.

    Raises:
        ValueError: a table of other columns, or with `on_error="raise"` an image that cannot be read.
    """
    as_choice("on_error", on_error, ("skip", "raise"))
    there = table.names()
    left = pictures.without(there)
    counts = {"tagged": 0, "broken": 0, "there": len(pictures) - len(left)}
    try:
        for names, pixel_values, errors in left.batches(batch_size, num_proc):
            tags = tagger.tag(pixel_values) if len(pixel_values) else {}
            read = [i for i, error in enumerate(errors) if error is None]
            rows = {name: [None] * len(names) for name in tagger.columns}
            for name, values in tags.items():
                for i, value in zip(read, values):
                    rows[name][i] = value
            broken = len(names) - len(read)
            if broken and on_error == "raise":
                first = next(i for i, error in enumerate(errors) if error)
                table.add({"image": names[:first], **{n: v[:first] for n, v in rows.items()}, "error": errors[:first]})
                raise ValueError(errors[first])
            table.add({"image": names, **rows, "error": errors})
            counts["tagged"] += len(read)
            counts["broken"] += broken
            progress(counts["tagged"] + counts["broken"], len(left))
    except BaseException:
        table.keep()  # also where it is interrupted
        raise
    table.finish()
    return counts
