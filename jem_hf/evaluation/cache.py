"""Where trained helpers (oracle, baseline) are kept, found again by what they were trained on."""

import hashlib
import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file


def cache_path(kind: str, settings, tensors, cache_dir: str | os.PathLike | None = None) -> Path:
    """
    The file of one trained helper: its name is a hash of all that decides the weights.

    Args:
        kind: folder below the cache, such as "oracles".
        settings: anything whose `repr` names architecture, seed and training.
        tensors: the training data.
        cache_dir: root of the cache; by default $JEM_HF_CACHE, else ~/.cache/jem_hf.
    """
    key = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        key.update(repr(tuple(tensor.shape)).encode())
        key.update(tensor.cpu().contiguous().numpy())
    root = Path(cache_dir or os.environ.get("JEM_HF_CACHE") or "~/.cache/jem_hf").expanduser()
    return root / kind / f"{key.hexdigest()}.safetensors"


def save_atomically(tensors: dict, path: Path) -> None:
    """Write safetensors so that `path` is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)
