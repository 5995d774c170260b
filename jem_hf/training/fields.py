"""The fields of a recipe: which there are, of what type, and how YAML becomes their values."""

import dataclasses
import os
import re
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ..models.configuration_jem import JemConfig
from .arguments import JemTrainingArguments

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
_TRAINING_TYPES = get_type_hints(JemTrainingArguments)
_CARD_TEXTS = "name repo_id revision dataset dataset_name evaluation license license_name license_link data limits"
SECTIONS = {
    "dataset": DATASET_FIELDS,
    "image_processor": PROCESSOR_FIELDS,
    "model": {**MODEL_FIELDS, "from_pretrained": str},
    "training": {each.name: _TRAINING_TYPES[each.name] for each in dataclasses.fields(JemTrainingArguments)},
    "card": {name: str | None for name in _CARD_TEXTS.split()} | {"requests": list[str]},
}
PATHS = (
    *("name_or_path", "split_file", "cache_dir", "from_pretrained", "teacher"),
    *("output_dir", "logging_dir", "resume_from_checkpoint"),
)


class CoreLoader(yaml.SafeLoader):
    """YAML 1.2's core schema: `no`, `on`, `08:30`, `1_000` and `2024-01-01` are text, `1e-3` is a number."""

    yaml_implicit_resolvers = {}

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


# A tag, what has it, and the characters by which that may begin; of two that fit the first counts
for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", "<<", ["<"]),
):
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
CoreLoader.add_constructor("tag:yaml.org,2002:int", CoreLoader.construct_int)
PYYAML_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)  # on odd input


def read_yaml(text: str | bytes, source: str) -> Any:
    """What YAML 1.2 says. Raises `ValueError` that names the source of a text that is none."""
    try:
        return yaml.load(text, CoreLoader)
    except (yaml.YAMLError, *PYYAML_ERRORS) as error:
        raise ValueError(f"{source} is not YAML: {error}") from error


def field_value(name: str, text: str, kind: Any) -> Any:
    """The value of a field that was given as text: text as it is where the field takes nothing else, else YAML."""
    is_text = set(get_args(kind) or [kind]) <= {str, NoneType}
    return text if is_text and text != "null" else read_yaml(text, f"--{name}")


def expand_home(name: str, value: Any) -> Any:
    """The value of a field, with `~` as the home folder where it is a path."""
    return os.path.expanduser(value) if name in PATHS and isinstance(value, str) else value


def check_types(section: str, fields: dict) -> None:
    """Raise `ValueError` for a field of the wrong type: `TrainingArguments` itself takes anything."""
    kinds = SECTIONS[section]
    for name, value in fields.items():
        if not is_of_type(value, kinds[name]):
            kind = getattr(kinds[name], "__name__", None) if not get_args(kinds[name]) else kinds[name]
            raise ValueError(f"{name} is of type {kind}, not {value!r}")


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value out of YAML is of a type; types that YAML does not know take everything."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer in (Union, UnionType):
        return any(is_of_type(value, each) for each in inner)
    if outer in (int, float):
        number = isinstance(value, int | outer) and not isinstance(value, bool)
        return number and (isinstance(value, int) or isfinite(value))
    if outer is list and inner and isinstance(value, list):
        return all(is_of_type(each, inner[0]) for each in value)
    if outer is dict and inner and isinstance(value, dict):
        return all(is_of_type(each, inner[1]) for each in value.values())
    return outer is Any or not isinstance(outer, type) or isinstance(value, outer)
