"""Recipes: YAML files that say which data, model and training make a checkpoint."""

import dataclasses
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
import yaml

from ..data.columns import attribute_values, features_of
from ..data.loading import load_attribute_dataset
from ..data.sources import is_local
from ..data.splits import ZERO_SHOT_CANDIDATES, zero_shot_combinations
from ..data.tensors import AttributeStream, encode_dataset
from ..models.configuration_jem import BINARY, JemConfig, nearest_name
from ..models.image_processing_jem import JemImageProcessor
from ..models.modeling_jem import JemModel
from .arguments import JemTrainingArguments
from .fine_tuning import load_resized, unite_attributes
from .precision import has_native_bfloat16

_HERE = Path(__file__).resolve().parents[1]
RECIPES = next(
    (path for path in (_HERE / "recipes", _HERE.parent / "training" / "recipes") if path.is_dir()), _HERE / "recipes"
)
DATASET_FIELDS = {
    "name_or_path": str,
    "attributes": list[str] | None,
    "values": dict[str, list] | None,
    "min_frequency": float,
    "max_frequency": float,
    "novel": list[dict] | str | None,
    "split": dict | None,
    "split_file": str | None,
    "image_column": str | None,
    "streaming": bool,
    "shuffle_buffer": int,
    "on_error": str,
    "cache_dir": str | None,
    "binarised": bool,
    "num_train": int,
    "num_test": int,
    "num_novel": int,
}
EVALUATION_SPLITS = ("validation", "valid", "test")
DEFAULT_SPLIT = {"kind": "random", "seed": 0, "test": 0.1}
YAML_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)  # PyYAML's own
PATHS = ("output_dir", "name_or_path", "cache_dir", "split_file", "from_pretrained", "teacher")
CARD_FIELDS = (
    "name repo_id revision dataset dataset_name evaluation license license_name license_link data limits"
).split()
CARD_FIELDS = {name: str | None for name in CARD_FIELDS} | {"requests": list[str]}
PROCESSOR_FIELDS = {
    "size": int | dict[str, int],
    "crop_size": int | dict[str, int],
    "resample": int,
    "do_center_crop": bool,
}
MODEL_FIELDS = {
    name: kind
    for name, kind in JemConfig.__annotations__.items()
    if not name.startswith("attribute") and name not in ("model_type", "novel_combinations")
}
NETWORK_FIELDS = ("backbone", "backbone_kwargs", "image_size", "num_channels", "head")


@dataclass
class Recipe:
    """
    All that makes a checkpoint.

    Args:
        name (`str`): What `jem-hf train` knows it by.
        dataset (`dict`): Arguments of `load_attribute_dataset`.
        image_processor (`dict`): Arguments of `JemImageProcessor`.
        model (`dict`): Fields of `JemConfig`; the attributes come from the data. `from_pretrained` (zoo name, Hub id
            or folder) goes on from a trained model, which keeps its attributes, network and image processor,
            whatever the recipe says of these; it is the `teacher` of labels that the data lacks, unless `training`
            has another one, or "".
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


def _sections() -> dict[str, dict[str, type]]:
    """The types of the fields of each section."""
    training = get_type_hints(JemTrainingArguments)
    return {
        "dataset": DATASET_FIELDS,
        "image_processor": PROCESSOR_FIELDS,
        "model": {**MODEL_FIELDS, "from_pretrained": str},
        "training": {f.name: training[f.name] for f in dataclasses.fields(JemTrainingArguments)},
        "card": CARD_FIELDS,
    }


def load_recipe(name_or_path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """
    Read a recipe: a YAML file, or the name of one in `training/recipes`.

    Args:
        overrides: fields to set on top, as text that is read as YAML: "1e-3" is a number and "[a, b]" a list.

    Raises:
        ValueError: no such file, not YAML, an unknown section or field, or a field of another type.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        raise ValueError(f"no recipe {str(name_or_path)!r}; give a YAML file or one of {', '.join(names)}")
    content = read_yaml(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: it has no sections {', '.join(_sections())}")
    recipe = Recipe(path.stem)
    for section, fields in content.items():
        known = _sections().get(section) if isinstance(section, str) else None
        if known is None:
            raise ValueError(f"{path}: unknown section {section!r}{nearest_name(str(section), list(_sections()))}")
        if not isinstance(fields, dict | None):
            raise ValueError(f"{path}: the section {section} has lines such as 'field: value', it is not {fields!r}")
        for name, value in (fields or {}).items():
            if name not in known:
                raise ValueError(f"{path}: unknown field {name!r} in {section}{nearest_name(str(name), known)}")
            getattr(recipe, section)[name] = _number(value, known[name])
    for name, value in (overrides or {}).items():
        recipe.override(name, _parse(name, value))
    for section in _sections():
        fields = getattr(recipe, section)
        _check_types(section, _resolved(fields) if section == "training" else fields)
    return recipe


def read_yaml(text: str | bytes, source: str):
    """What YAML says. Raises `ValueError` that names the source of a text that is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, *YAML_ERRORS) as error:
        raise ValueError(f"{source} is not YAML: {error}") from error


def _parse(name: str, text: str):
    """The value of a field that was given as text."""
    kinds = {name: kind for fields in _sections().values() for name, kind in fields.items()}
    return text if name in PATHS else _number(read_yaml(text, f"--{name}"), kinds.get(name, str))


def _number(value, kind):
    """YAML reads 1e-3 as a string."""
    try:
        return float(value) if isinstance(value, str) and not _is_of(value, kind) else value
    except ValueError:
        return value


def _check_types(section: str, fields: dict) -> None:
    """Raise `ValueError` for a field of the wrong type: `TrainingArguments` itself takes anything."""
    kinds = _sections()[section]
    for name, value in fields.items():
        if not _is_of(value, kinds[name]):
            kind = getattr(kinds[name], "__name__", None) if not get_args(kinds[name]) else kinds[name]
            raise ValueError(f"{name} is of type {kind}, not {value!r}")


def _is_of(value, kind) -> bool:
    """Whether a value out of YAML is of a type; types that YAML does not know take everything."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer in (Union, UnionType):
        return any(_is_of(value, each) for each in inner)
    if outer in (int, float):
        number = isinstance(value, int | outer) and not isinstance(value, bool)
        return number and (isinstance(value, int) or isfinite(value))
    if outer is list and inner and isinstance(value, list):
        return all(_is_of(each, inner[0]) for each in value)
    if outer is dict and inner and isinstance(value, dict):
        return all(_is_of(each, inner[1]) for each in value.values())
    return outer is Any or not isinstance(outer, type) or isinstance(value, outer)


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
    if not (dataset.get("split") or dataset.get("split_file")) and (is_local(name_or_path) or not streaming):
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

    pretrained = recipe.model.get("from_pretrained")
    if pretrained:
        processor = JemImageProcessor.from_pretrained(pretrained)
    else:
        processor = JemImageProcessor(**recipe.image_processor)
    _training_arguments(recipe)  # a mistake is told before any data is loaded
    splits, values = load_splits(recipe.dataset, processor)
    if pretrained:
        splits, values = unite_attributes(splits, values, JemConfig.from_pretrained(pretrained))
    trainer = make_trainer(recipe, splits, values, processor)
    folder = trainer.args.output_dir
    last = get_last_checkpoint(folder) if resume and Path(folder).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    trainer.save_state()
    return trainer, splits


def make_trainer(recipe: Recipe, splits: dict, values: dict, processor: JemImageProcessor | None = None):
    """The `JemTrainer` of a recipe with its model, for splits and values as `load_splits` gives them."""
    from .trainer import JemTrainer

    settings = dict(recipe.model)
    pretrained = settings.pop("from_pretrained", "")
    teacher = pretrained if pretrained and (splits["train"].labels < 0).any() else ""
    args = _training_arguments(recipe, teacher=teacher)
    attributes = splits["train"].attributes
    values = {name: values[name] for name in attributes if name in values}
    novel = _novel_combinations(recipe.dataset.get("novel"), splits, attributes)
    torch.manual_seed(args.seed)
    if pretrained:
        settings = {name: value for name, value in settings.items() if name not in NETWORK_FIELDS}
        model = load_resized(pretrained, splits["train"], values, novel, **settings)
    else:
        image_size = next(iter(splits["train"]))["pixel_values"].shape[-1]
        settings = {"image_size": image_size, **settings}
        config = JemConfig(attributes=attributes, attribute_values=values, novel_combinations=novel, **settings)
        model = JemModel(config)
    trainer = JemTrainer(
        model=model,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=next((splits[name] for name in EVALUATION_SPLITS if name in splits), None),
        processing_class=processor,
    )
    dataset = recipe.dataset.get("name_or_path", "avatars")
    trainer.card = {"recipe": recipe.name, "dataset": dataset, "base_model": pretrained or None}
    return trainer


def _training_arguments(recipe: Recipe, **defaults) -> JemTrainingArguments:
    training = {"use_cpu": not torch.cuda.is_available(), **defaults, **_resolved(recipe.training)}
    _check_types("training", training)
    return JemTrainingArguments(**training)


def _novel_combinations(novel, splits, attributes) -> list[dict]:
    """What was held out, as the config has it: without combinations of attributes that are too rare to be kept."""
    if isinstance(novel, str):
        labels = torch.cat([split.labels for split in splits.values()])
        candidates = [c for c in ZERO_SHOT_CANDIDATES[novel] if set(c) <= set(attributes)]
        novel = zero_shot_combinations(labels, attributes, candidates)
    return [combination for combination in novel or [] if set(combination) <= set(attributes)]


def _resolved(training: dict) -> dict:
    """`bf16: auto` becomes true where the hardware computes it; `no`, which YAML reads as false, a strategy again."""
    training = {n: "no" if n.endswith("_strategy") and v is False else v for n, v in training.items()}
    if training.get("bf16") == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return training | {"bf16": has_native_bfloat16(device)}
    return training
