"""The models that come with the package: a folder in `model_cards` each, declared by the front matter of its card."""

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard

_HERE = Path(__file__).resolve().parent
CARDS = next((path for path in (_HERE / "model_cards", _HERE.parent / "model_cards") if path.is_dir()), None)
DEFAULT_MODEL = "jem-avatars"


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo: its name, its folder and what its card declares."""

    name: str
    folder: Path
    card: dict

    @property
    def is_trained(self) -> bool:
        return (self.folder / "model.safetensors").is_file()


def list_models() -> list[str]:
    """Names of the models in the zoo."""
    return sorted(path.parent.name for path in CARDS.glob("*/README.md")) if CARDS else []


def model_info(name: str) -> ZooModel:
    """What the zoo knows of a model. Raises `ValueError` where there is none of that name."""
    if name not in list_models():
        raise ValueError(f"the zoo has no model {name!r}; it has {', '.join(list_models()) or 'none'}")
    folder = CARDS / name
    return ZooModel(name, folder, ModelCard.load(folder / "README.md").data.to_dict())


def resolve(name_or_path: str | os.PathLike) -> str:
    """The folder of a zoo model; folders and Hub ids as they are."""
    name = str(name_or_path)
    if os.path.isdir(name) or name not in list_models():
        return name
    model = model_info(name)
    if not model.is_trained:
        recipe = model.card.get("recipe", f"training/recipes/{name}.yaml")
        raise ValueError(
            f"{name!r} is declared in the zoo but has no weights yet: train it with jem-hf train {recipe}"
        )
    return str(model.folder)


class FromZoo:
    """Mixin: `from_pretrained` takes names of the zoo too."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        return super().from_pretrained(resolve(pretrained_model_name_or_path), *args, **kwargs)
