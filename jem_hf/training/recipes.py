"""Recipes: YAML files that say which data, model and training make a checkpoint."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from ..data.attributes import reader
from ..data.splits import ZERO_SHOT_CANDIDATES, zero_shot_combinations
from ..data.tensors import AttributeTensors
from ..models.configuration_jem import JemConfig
from ..models.image_processing_jem import JemImageProcessor
from ..models.modeling_jem import JemModel
from ..models.values_jem import nearest_name
from .arguments import JemTrainingArguments
from .autoencoder import train_autoencoder
from .calibration import calibrate
from .fields import SECTIONS, check_types, expand_home, field_value, read_yaml, section_of
from .fine_tuning import load_resized, unite_attributes
from .splits import load_splits, validation_part
from .trainer import JemTrainer

logger = logging.get_logger(__name__)
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
if not RECIPES.is_dir():  # not installed, but used where it is developed
    RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
EVALUATION_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")  # the first that the data has
METRICS = "loss accuracy f1_macro f1_micro ap auroc nll brier ece ece_equal_mass ece_positive".split()
NETWORK_FIELDS = ("autoencoder", "backbone", "backbone_kwargs", "image_size", "num_channels", "head")


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

    def override(self, name: str, value: Any) -> None:
        """Set one field, wherever it belongs. Raises `ValueError` for a name that no section has."""
        getattr(self, section_of(name))[name] = expand_home(name, value)


def load_recipe(name_or_path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """
    Read a recipe: a YAML file, or the name of one in `training/recipes`.

    Args:
        name_or_path (`str` or `Path`): The file or the name.
        overrides (`dict[str, str]`, *optional*):
            Fields to set on top, as text that is read as YAML: "1e-3" is a number and "[a, b]" a list.

    Raises:
        ValueError: no such file, not YAML, an unknown section or field, or a field of another type.
    """
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in RECIPES.glob("*.yaml")))
        raise ValueError(f"no recipe {str(name_or_path)!r}; give a YAML file or one of {names}")
    content = read_yaml(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: it has no sections {', '.join(SECTIONS)}")
    recipe = Recipe(path.stem)
    for section, fields in content.items():
        if section not in SECTIONS:
            raise ValueError(f"{path}: unknown section {section!r}{nearest_name(str(section), list(SECTIONS))}")
        if not isinstance(fields, dict | None):
            raise ValueError(f"{path}: the section {section} has lines such as 'field: value', it is not {fields!r}")
        for name, value in (fields or {}).items():
            if name not in SECTIONS[section]:
                near = nearest_name(str(name), SECTIONS[section])
                raise ValueError(f"{path}: unknown field {name!r} in {section}{near}")
            getattr(recipe, section)[name] = expand_home(name, value)
    for name, text in (overrides or {}).items():
        recipe.override(name, field_value(section_of(name), name, text))
    for section in SECTIONS:
        check_types(section, getattr(recipe, section))
    return recipe


def train(recipe: Recipe, resume: bool = False) -> tuple[JemTrainer, dict]:
    """
    Make a checkpoint in the recipe's `output_dir`: weights (their moving average), config, image processor.

    Args:
        resume (`bool`, *optional*, defaults to `False`):
            Go on from this run's last checkpoint in `output_dir`, where there is any.

    Returns:
        The trainer and the splits (`dict` of `AttributeTensors`).

    Raises:
        ValueError: a mistake in the recipe or its data, or all checkpoints in `output_dir` are of other runs.
    """
    if pretrained := recipe.model.get("from_pretrained"):
        processor = JemImageProcessor.from_pretrained(pretrained)
    else:
        processor = JemImageProcessor(**recipe.image_processor)
    _training_arguments(recipe.training)  # a mistake is found before any data is loaded
    splits, values = load_splits(recipe.dataset, processor)
    calibrated = recipe.model.get("calibrated")
    if pretrained:
        config = JemConfig.from_pretrained(pretrained)
        splits, values = unite_attributes(splits, values, config)
        calibrated = config.calibrated if calibrated is None else calibrated
    if calibrated and "train" in splits:
        splits["train"], validation = validation_part(splits)
    trainer = make_trainer(recipe, splits, values, processor)
    checkpoint = trainer.newest_checkpoint() if resume else None
    if checkpoint is None:
        train_autoencoder(trainer, resume)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.model.config.outlier_score:
        trainer.ema.module.fit_outlier_score(_some_images(splits["train"]))
    if trainer.model.config.calibrated:
        calibrate(trainer.ema.module, validation)
        splits["validation"] = validation
    trainer.save_model()
    trainer.save_state()
    return trainer, splits


def _some_images(train: Dataset, num: int = 2000) -> torch.Tensor:
    """Images (N, C, H, W) of a training split; the first of a stream."""
    if isinstance(train, AttributeTensors):
        return train.sample(num).images
    return torch.stack([row["pixel_values"] for row in islice(train, num)])


def make_trainer(recipe: Recipe, splits: dict, values: dict, processor: JemImageProcessor | None = None) -> JemTrainer:
    """The `JemTrainer` of a recipe with its model, for splits and values as `load_splits` gives them."""
    name_or_path = recipe.dataset.get("name_or_path", "avatars")
    if "train" not in splits:
        raise ValueError(f"{name_or_path!r} has no split 'train' to train on; it has {', '.join(splits)}")
    settings = dict(recipe.model)
    pretrained = settings.pop("from_pretrained", "")
    teacher = pretrained if pretrained and (splits["train"].labels < 0).any() else ""
    evaluation = next((splits[name] for name in EVALUATION_SPLITS if name in splits), None)
    training = recipe.training if evaluation is not None else _without_evaluation(recipe.training, splits)
    args = _training_arguments({"teacher": teacher, **training})
    attributes = splits["train"].attributes
    values = {name: values[name] for name in attributes if name in values}
    novel = _novel_combinations(recipe.dataset.get("novel"), splits, attributes, values)
    torch.manual_seed(args.seed)
    if pretrained:
        has_score, is_calibrated = (settings.pop(name, None) for name in ("outlier_score", "calibrated"))
        settings = {name: value for name, value in settings.items() if name not in NETWORK_FIELDS}
        settings["split"] = recipe.dataset.get("split")
        model = load_resized(pretrained, splits["train"], values, novel, **settings)
        if has_score is not None:
            model.expect_outlier_score(has_score)
        if is_calibrated is not None:
            model.expect_calibration(is_calibrated)
    else:
        image_size = next(iter(splits["train"]))["pixel_values"].shape[-1]
        settings = {"image_size": image_size, "split": recipe.dataset.get("split"), **settings}
        config = JemConfig(attributes=attributes, attribute_values=values, novel_combinations=novel, **settings)
        model = JemModel(config)
    data = dict(train_dataset=splits["train"], eval_dataset=evaluation)
    trainer = JemTrainer(model=model, args=args, processing_class=processor, **data)
    trainer.card = {"recipe": recipe.name, "dataset": name_or_path, "base_model": pretrained or None}
    return trainer


def _training_arguments(training: dict) -> JemTrainingArguments:
    training = {"use_cpu": not torch.cuda.is_available(), **training}
    check_types("training", training)
    metric = (training.get("metric_for_best_model") or "loss").removeprefix("eval_")
    if metric not in METRICS:
        raise ValueError(f"unknown metric_for_best_model {metric!r}; choose from {', '.join(METRICS)}")
    return JemTrainingArguments(**training)


def _without_evaluation(training: dict, splits: dict) -> dict:
    """The section of a recipe for data without a split to evaluate on."""
    lacking = f"the data has no split to evaluate on, {' or '.join(EVALUATION_SPLITS)}; it has {', '.join(splits)}"
    if training.get("load_best_model_at_end") or training.get("save_strategy") == "best":
        raise ValueError(f"{lacking}: without one there is no best model to save or load")
    if training.get("eval_strategy", "no") != "no":
        logger.warning(f"{lacking}: training goes without evaluation")
    return training | {"eval_strategy": "no", "eval_on_start": False}


def _novel_combinations(novel, splits, attributes, values) -> list[dict]:
    """What was held out, as the config has it: without combinations of attributes that are too rare to be kept."""
    if isinstance(novel, str):
        if not all(isinstance(split, AttributeTensors) for split in splits.values()):
            raise ValueError(f"a stream is not counted: list the combinations instead of novel={novel!r}")
        labels = torch.cat([split.labels for split in splits.values()])
        candidates = [c for c in ZERO_SHOT_CANDIDATES[novel] if set(c) <= set(attributes)]
        novel = zero_shot_combinations(labels, attributes, candidates)
    labels = [
        {name: reader(name, values.get(name))(str(word)) for name, word in combination.items()}
        for combination in novel or []
        if set(combination) <= set(attributes)
    ]
    return [{name: values[name][i] if name in values else i for name, i in each.items()} for each in labels]
