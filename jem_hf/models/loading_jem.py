"""Weights as they must be: all of them, of the right shapes, finite, and never from a pickle."""

from pathlib import Path

import torch
from safetensors import SafetensorError


class CheckedWeights:
    """Mixin of a model: a checkpoint that does not fit is an error, where transformers fills the gaps at random."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """
        Load a checkpoint, see transformers.

        Raises:
            ValueError: weights that are missing, unknown, of another shape than the config says, or not finite.
            OSError: no safetensors file, or one that is damaged.
        """
        name = pretrained_model_name_or_path
        _check_folder(name, kwargs.get("subfolder") or "")
        # of shapes that differ transformers would give no names; they are refused below
        settings = dict(use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True)
        try:
            model, info = super().from_pretrained(name, *args, **(kwargs | settings))
        except SafetensorError as error:
            raise OSError(f"the weights of {name} are damaged or no safetensors ({error}): get them anew") from error
        _check_weights(name, model, info)
        model.to_channels_last()
        model._revision = kwargs.get("revision")
        return (model, info) if output_loading_info else model


def _check_folder(name, subfolder: str = "") -> None:
    """Raise `OSError` for a folder that holds no weights in safetensors."""
    folder = Path(name or "", subfolder)
    if name is None or not folder.is_dir():
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    indices = [path.read_text(errors="replace") for path in folder.glob("*.safetensors.index.json")]
    is_pickled = any(f'"{pickle}"' in index for pickle in pickles for index in indices)
    if is_pickled or not any(folder.glob("*.safetensors")):
        remedy = "give the folder of a checkpoint"
        if pickles:
            remedy = f"{pickles[0]} may be a pickle, which can run code: save the weights with safetensors"
        raise OSError(f"{folder} has no model.safetensors, and weights are read from nothing else: {remedy}")


def _check_weights(name, model: torch.nn.Module, info: dict) -> None:
    shapes = [
        f"{weight} has the shape {tuple(found)} and not {tuple(expected)}"
        for weight, found, expected in info["mismatched_keys"]
    ]
    finite = {weight: tensor.is_meta or tensor.isfinite().all() for weight, tensor in model.state_dict().items()}
    problems = {
        "has weights that are not those of its config": shapes,
        "lacks weights": info["missing_keys"],
        "has unknown weights": info["unexpected_keys"],
        "has weights that are not finite": [weight for weight in finite if not finite[weight]],
    }
    for problem, weights in problems.items():
        if weights:
            some = f"{', '.join(sorted(weights)[:3])} ({len(weights)} in all)"
            raise ValueError(f"the checkpoint {name} {problem}: {some}: get a whole one, with its own config.json")
