"""Where trained helpers (judges, baseline) are kept, found again by what they were trained on."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import logging

logger = logging.get_logger(__name__)


def cache_path(
    kind: str, settings: Any, tensors: Iterable[torch.Tensor], cache_dir: str | os.PathLike | None = None
) -> Path:
    """
    The file of one trained helper: its name is a hash of all that decides the weights.

    Args:
        kind (`str`): Folder below `cache_dir`, such as "oracles"; by default in $JEM_HF_CACHE, else ~/.cache/jem_hf.
        settings: Anything whose `repr` names architecture, seed and training.
        tensors: The training data.
    """
    key = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        key.update(repr(tuple(tensor.shape)).encode())
        key.update(tensor.cpu().contiguous().numpy())
    root = os.path.expanduser(cache_dir or os.environ.get("JEM_HF_CACHE") or "~/.cache/jem_hf")
    return Path(root) / kind / f"{key.hexdigest()}.safetensors"


def save_atomically(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write safetensors so that `path` is there whole or not at all. Where that fails, warn: work goes on without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        logger.warning(
            f"cannot keep a trained network in the cache {str(path.parent)!r} ({error.strerror}), so the next "
            "evaluation trains it again: name a folder that can be written, by --cache_dir or JEM_HF_CACHE"
        )
