"""Recipes: YAML files that say which data, model and training make a checkpoint."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from .columns import attribute_values, features_of
from .configuration_jem import BINARY, JemConfig, nearest_name
from .data import load_attribute_dataset
from .image_processing_jem import JemImageProcessor
from .modeling_jem import JemModel
from .precision import has_native_bfloat16
from .splits import ZERO_SHOT_CANDIDATES, zero_shot_combinations
from .tensors import AttributeStream, encode_dataset
from .training_args import JemTrainingArguments

_HERE = Path(__file__).resolve().parent
RECIPES = next(
    (path for path in (_HERE / "recipes", _HERE.parent / "training" / "recipes") if path.is_dir()), _HERE / "recipes"
)
DATASET_FIELDS = (
    "name_or_path attributes values min_frequency max_frequency novel split split_file image_column streaming "
    "shuffle_buffer on_error cache_dir binarised num_train num_test num_novel"
).split()
EVALUATION_SPLITS = ("validation", "valid", "test")
DEFAULT_SPLIT = {"kind": "random", "seed": 0, "test": 0.1}
PATHS = ("output_dir", "name_or_path", "cache_dir", "split_file")
CARD_FIELDS = (
    "name repo_id revision dataset dataset_name evaluation license license_name license_link requests data limits"
).split()
PROCESSOR_FIELDS = ["size", "crop_size", "resample", "do_center_crop"]
MODEL_FIELDS = [
    name
    for name in JemConfig.__annotations__
    if not name.startswith("attribute") and name not in ("model_type", "novel_combinations")
]


@dataclass
class Recipe:
    """
    All that makes a checkpoint.

    Args:
        name (`str`): What `jem-hf train` knows it by.
        dataset (`dict`): Arguments of `load_attribute_dataset`.
        image_processor (`dict`): Arguments of `JemImageProcessor`.
        model (`dict`): Fields of `JemConfig`; the attributes come from the data.
        training (`dict`): Fields of `JemTrainingArguments`.
        card (`dict`): What the model card says of it, see `cards.write_card`.
    """

    name: str
    dataset: dict = field(default_factory=dict)
    image_processor: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    card: dict = field(default_factory=dict)

    def override(self, name: str, value) -> None:
        """Set one field, wherever it belongs. Raises `ValueError` for a name that no section has."""
        sections = _sections()
        for section, names in sections.items():
            if name in names:
                getattr(self, section)[name] = value
                return
        raise ValueError(
            f"unknown field {name!r}{nearest_name(name, [n for names in sections.values() for n in names])}"
        )


def _sections() -> dict[str, list[str]]:
    return {
        "dataset": DATASET_FIELDS,
        "image_processor": PROCESSOR_FIELDS,
        "model": MODEL_FIELDS,
        "training": [f.name for f in dataclasses.fields(JemTrainingArguments)],
        "card": CARD_FIELDS,
    }


def load_recipe(name_or_path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """
    Read a recipe: a YAML file, or the name of one in `training/recipes`.

    Args:
        overrides: fields to set on top, as text that is read as YAML: "1e-3" is a number and "[a, b]" a list.

    Raises:
        ValueError: no such file, not YAML, or an unknown section or field.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        raise ValueError(f"no recipe {str(name_or_path)!r}; give a YAML file or one of {', '.join(names)}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: it has no sections {', '.join(_sections())}")
    recipe = Recipe(path.stem)
    for section, fields in content.items():
        if section not in _sections():
            raise ValueError(f"{path}: unknown section {section!r}{nearest_name(str(section), list(_sections()))}")
        for name, value in (fields or {}).items():
            if name not in _sections()[section]:
                raise ValueError(
                    f"{path}: unknown field {name!r} in {section}{nearest_name(name, _sections()[section])}"
                )
            getattr(recipe, section)[name] = _number(value)
    for name, value in (overrides or {}).items():
        recipe.override(name, _parse(name, value))
    return recipe


def _parse(name: str, text: str):
    """The value of a field that was given as text."""
    return text if name in PATHS else _number(yaml.safe_load(text))


def _number(value):
    """YAML reads 1e-3 as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def load_splits(dataset: dict, processor: JemImageProcessor, attributes=None, values=None) -> tuple[dict, dict]:
    """
    Splits of a dataset as tensors in memory, and the values of its attributes that are not binary.

    Args:
        dataset: the section of that name of a recipe. A dataset of one split, which is not "test", is divided by
            `DEFAULT_SPLIT` if no `split` is given. With `streaming` the train split is an `AttributeStream`.
        attributes: names of the label columns, in order; default: what the section says.
        values: `attribute_values` of a model's config: labels are numbered in their order.

    Raises:
        ValueError: as `load_attribute_dataset`, and for an attribute whose values are not those of the model.
    """
    dataset = dict(dataset)
    name_or_path = dataset.pop("name_or_path", "avatars")
    on_error, shuffle_buffer = dataset.pop("on_error", "raise"), dataset.pop("shuffle_buffer", 1000)
    streaming = dataset.get("streaming", False)
    if not (streaming or dataset.get("split") or dataset.get("split_file")):
        dataset["split"] = DEFAULT_SPLIT
    if attributes:
        dataset = {name: value for name, value in dataset.items() if name not in ("min_frequency", "max_frequency")}
        dataset |= {"attributes": attributes, "values": {**(dataset.get("values") or {}), **(values or {})}}
    splits = load_attribute_dataset(name_or_path, **dataset)
    names, found = attribute_values(features_of(next(iter(splits.values()))))
    for name in names if values is not None else ():
        if found.get(name) != values.get(name):
            raise ValueError(
                f"attribute {name!r} has the values {found.get(name, BINARY)} in {name_or_path!r} and "
                f"{values.get(name, BINARY)} in the model: rename the values of the data"
            )
    if not streaming:
        encoded = {split: encode_dataset(rows, processor, names, on_error=on_error) for split, rows in splits.items()}
        return encoded, found
    encoded = {}
    for split, rows in splits.items():
        buffer = shuffle_buffer if split == "train" else 0
        stream = AttributeStream(rows, processor, names, shuffle_buffer=buffer, on_error=on_error)
        encoded[split] = stream if split == "train" else stream.to_tensors()
    return encoded, found


def load_evaluation_splits(
    name_or_path: str, processor: JemImageProcessor, config: JemConfig, overrides: dict[str, str] | None = None
) -> dict:
    """
    Splits as `load_splits` gives them, as a model wants them: its attributes, and its novel combinations apart.

    Args:
        overrides: further fields of the section "dataset" of a recipe, as text.

    Raises:
        ValueError: a field that the section does not have.
    """
    dataset = {"name_or_path": name_or_path}
    if config.novel_combinations:
        dataset["novel"] = config.novel_combinations
    for name, value in (overrides or {}).items():
        if name not in DATASET_FIELDS:
            raise ValueError(f"unknown field {name!r}{nearest_name(name, DATASET_FIELDS)}")
        dataset[name] = _parse(name, value)
    return load_splits(dataset, processor, config.attributes, config.attribute_values)[0]


def train(recipe: Recipe, resume: bool = False):
    """
    Make a checkpoint in the recipe's `output_dir`: weights (their moving average), config, image processor.

    Args:
        resume: go on from the last checkpoint in `output_dir`, where there is one.

    Returns:
        The trainer and the splits (`dict` of `AttributeTensors`).
    """
    from transformers.trainer_utils import get_last_checkpoint

    processor = JemImageProcessor(**recipe.image_processor)
    splits, values = load_splits(recipe.dataset, processor)
    trainer = make_trainer(recipe, splits, values, processor)
    folder = trainer.args.output_dir
    last = get_last_checkpoint(folder) if resume and Path(folder).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    trainer.save_state()
    return trainer, splits


def make_trainer(recipe: Recipe, splits: dict, values: dict, processor: JemImageProcessor | None = None):
    """The `JemTrainer` of a recipe with a new model, for splits and values as `load_splits` gives them."""
    from .trainer import JemTrainer

    training = {"use_cpu": not torch.cuda.is_available(), **_resolved(recipe.training)}
    _check_types(training)
    args = JemTrainingArguments(**training)
    attributes = splits["train"].attributes
    config = JemConfig(
        attributes=attributes,
        attribute_values={name: values[name] for name in attributes if name in values},
        novel_combinations=_novel_combinations(recipe.dataset.get("novel"), splits, attributes),
        **{"image_size": next(iter(splits["train"]))["pixel_values"].shape[-1], **recipe.model},
    )
    torch.manual_seed(args.seed)
    trainer = JemTrainer(
        model=JemModel(config),
        args=args,
        train_dataset=splits["train"],
        eval_dataset=next((splits[name] for name in EVALUATION_SPLITS if name in splits), None),
        processing_class=processor,
    )
    trainer.card = {"recipe": recipe.name, "dataset": recipe.dataset.get("name_or_path", "avatars")}
    return trainer


def _novel_combinations(novel, splits, attributes) -> list[dict]:
    """What was held out, as the config has it: without combinations of attributes that are too rare to be kept."""
    if isinstance(novel, str):
        labels = torch.cat([split.labels for split in splits.values()])
        candidates = [c for c in ZERO_SHOT_CANDIDATES[novel] if set(c) <= set(attributes)]
        novel = zero_shot_combinations(labels, attributes, candidates)
    return [combination for combination in novel or [] if set(combination) <= set(attributes)]


def _check_types(training: dict) -> None:
    """Numbers and switches must be such: `TrainingArguments` itself takes anything."""
    for f in dataclasses.fields(JemTrainingArguments):
        kind, value = type(f.default), training.get(f.name)
        if f.name not in training or kind not in (bool, int, float):
            continue
        allowed = (int, float) if "float" in str(f.type) else kind
        if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{f.name} is of type {kind.__name__}, such as {f.default}, not {value!r}")


def _resolved(training: dict) -> dict:
    """`bf16: auto` becomes true where the hardware computes it; `no`, which YAML reads as false, a strategy again."""
    training = {n: "no" if n.endswith("_strategy") and v is False else v for n, v in training.items()}
    if training.get("bf16") == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return training | {"bf16": has_native_bfloat16(device)}
    return training
