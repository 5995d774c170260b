"""The models that come with the package: a folder in `model_cards` each, declared by the front matter of its card."""

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from ..models.hub_jem import OnHub, file_hash
from .cards import write_draft

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
if not CARDS.is_dir():  # not installed, but used where it is developed
    CARDS = CARDS.parents[1] / "model_cards"
DEFAULT_MODEL = "jem-avatars"
WEIGHTS = "model.safetensors"
LISTS = {"attributes": str, "tags": str, "files": dict}  # what a card may list


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo: its name, its folder and what its card declares."""

    name: str
    folder: Path
    card: dict

    @property
    def is_trained(self) -> bool:
        """Whether there are weights, here or at the card's Hub repo."""
        return (self.folder / WEIGHTS).is_file() or (bool(self.card.get("repo_id")) and WEIGHTS in self.files)

    @property
    def keywords(self) -> list[str]:
        """What it can be found by beside its name."""
        declared = [self.card.get(key) for key in ("dataset", "recipe", "license", "pipeline_tag")]
        return declared + self.card.get("tags", []) + self.card.get("attributes", [])

    @property
    def files(self) -> dict[str, dict]:
        """`size` and `sha256` that the card declares, by path."""
        return {entry["path"]: entry for entry in self.card.get("files", [])}

    def check(self, *paths: str) -> None:
        """Compare files with the card. Raises `OSError` where one is not what its hash says."""
        for path in paths or self.files:
            if path in self.files and file_hash(self.folder / path) != self.files[path]["sha256"]:
                raise OSError(
                    f"{self.folder / path} is not the file that the card of {self.name!r} declares: its SHA-256 is "
                    "another one; install jem_hf again, or load a changed copy by its folder"
                )


def list_models(filter: str | list[str] | None = None) -> list[str]:
    """
    Names of the models in the zoo.

    Args:
        filter: what they must be: a name or pattern such as `"jem-*"`, a tag, an attribute, or the dataset, recipe or
            licence of the card; of a list all.
    """
    names = sorted(path.parent.name for path in CARDS.glob("*/README.md"))
    for each in [filter] if isinstance(filter, str) else filter or []:
        names = [name for name in names if fnmatch(name, each) or each in model_info(name).keywords]
    return names


def model_info(name: str) -> ZooModel:
    """What the zoo knows of a model. Raises `ValueError` where there is none of that name, or its card is broken."""
    if name not in list_models():
        raise ValueError(f"the zoo has no model {name!r}; it has {', '.join(list_models()) or 'none'}")
    return ZooModel(name, CARDS / name, _read_card(CARDS / name / "README.md"))


def _read_card(path: Path) -> dict:
    try:
        card = ModelCard.load(path).data.to_dict()
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"the front matter of {path} cannot be read: {error}") from error
    if not isinstance(card.get("image_size"), int):
        raise ValueError(f"the front matter of {path} has image_size: {card.get('image_size')!r}, which is no number")
    for field, kind in LISTS.items():
        entries = card.get(field, [])
        if not isinstance(entries, list) or not all(isinstance(entry, kind) for entry in entries):
            raise ValueError(f"the front matter of {path} has {field}: {entries!r}, no list of {kind.__name__}")
    for entry in card.get("files", []):
        if not all(isinstance(entry.get(key), str) for key in ("path", "sha256")):
            raise ValueError(f"the front matter of {path} has files without path and sha256: {entry!r}")
    return card


def resolve(name_or_path: str | os.PathLike, files=(WEIGHTS,), kwargs: dict | None = None) -> tuple[str, dict, dict]:
    """
    Where a model is: a folder, the folder of a zoo model, the Hub repo of its card, or a Hub id as it is.

    Args:
        files: what is wanted of it; of a zoo model's folder compared with the hashes of the card.
        kwargs: of `from_pretrained`.

    Returns:
        Folder or Hub id, the arguments for it (the card's revision, if none is given), and the SHA-256 by path of what
        is still to be compared with the card, once it is downloaded.

    Raises:
        ValueError: a model of the zoo that has no weights yet.
        OSError: a file that is not what the card declares.
    """
    name, kwargs = os.fspath(name_or_path), kwargs or {}
    if os.path.isdir(name) or name not in list_models():
        return name, kwargs, {}
    model = model_info(name)
    if all((model.folder / path).is_file() for path in files):
        model.check(*files)
        return str(model.folder), kwargs, {}
    if model.is_trained:
        if kwargs.get("revision"):  # of another than the card's nothing is known
            return model.card["repo_id"], kwargs, {}
        # the weights alone: an upload writes into config.json where the code is
        declared = {WEIGHTS: model.files[WEIGHTS]["sha256"]}
        return model.card["repo_id"], {**kwargs, "revision": model.card.get("revision")}, declared
    recipe = model.card.get("recipe", name)
    raise ValueError(
        f"{name!r} is declared in the zoo but has no weights yet: train it with jem-hf train {recipe}, "
        "and load the folder that it writes"
    )


OnHub.resolve = staticmethod(resolve)
OnHub.write_card = staticmethod(write_draft)
