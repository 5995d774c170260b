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
        check_folder(name, kwargs.get("subfolder") or "")
        # of shapes that differ transformers would give no names; they are refused below
        settings = dict(use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True)
        try:
            model, info = super().from_pretrained(name, *args, **(kwargs | settings))
        except SafetensorError as error:
            raise OSError(f"the weights of {name} are damaged or no safetensors ({error}): get them anew") from error
        check_keys(name, info)
        check_finite(name, model)
        return (model, info) if output_loading_info else model


def check_folder(name, subfolder: str = "") -> None:
    """Raise `OSError` for a folder that holds no weights in safetensors."""
    folder = Path(name or "", subfolder)
    if name is None or not folder.is_dir():
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    indices = [path.read_text(errors="replace") for path in folder.glob("*.safetensors.index.json")]
    is_pickled = any(f'"{pickle}"' in index for pickle in pickles for index in indices)
    if any(folder.glob("*.safetensors")) and not is_pickled:
        return
    remedy = "give the folder of a checkpoint"
    if pickles:
        remedy = f"{pickles[0]} may be a pickle, which can run code: save the weights with safetensors"
    raise OSError(f"{folder} has no model.safetensors, and weights are read from nothing else: {remedy}")


def check_keys(name, info: dict) -> None:
    """Raise `ValueError` unless a checkpoint held all weights and no others, in their shapes."""
    remedy = "get the checkpoint anew, with the config.json that it was saved with"
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        weight, found, expected = mismatched[0]
        raise ValueError(
            f"the weights of {name} are not those of its config: {weight} has the shape {tuple(found)} and not "
            f"{tuple(expected)} ({len(mismatched)} differ): {remedy}"
        )
    for problem, weights in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"])):
        if weights:
            raise ValueError(
                f"the checkpoint {name} {problem} weights: {', '.join(sorted(weights)[:3])} ({len(weights)} in all): "
                f"{remedy}"
            )


def check_finite(name, model: torch.nn.Module) -> None:
    """Raise `ValueError` where a weight is NaN or infinite."""
    for weight, tensor in model.state_dict().items():
        if not tensor.is_meta and not tensor.isfinite().all():
            raise ValueError(
                f"the weights of {name} are not finite: {weight} has NaN or infinities, so its training had diverged; "
                "load an earlier checkpoint"
            )
