"""The fields of a recipe: which there are, of what type, and how YAML becomes their values."""

import os
import re
from dataclasses import fields
from inspect import Parameter, signature
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ..data.avatars import load_avatars
from ..data.layouts import load_ut_zap50k
from ..data.loading import load_attribute_dataset
from ..data.tensors import AttributeStream
from ..hub.cards import write_card
from ..models.configuration_jem import JemConfig
from ..models.values_jem import nearest_name
from .arguments import JemTrainingArguments


def _types(function, names: str = "") -> dict:
    """Parameters of a function and their types; by default all that have one."""
    types = {name: each.annotation for name, each in signature(function).parameters.items()}
    return {name: types[name] for name in names.split() or types if types[name] is not Parameter.empty}


_TRAINING_TYPES = get_type_hints(JemTrainingArguments)
SECTIONS = {
    "dataset": {
        **_types(load_attribute_dataset),
        **_types(AttributeStream, "shuffle_buffer on_error"),
        **_types(load_ut_zap50k, "binarised"),
        **_types(load_avatars, "num_train num_test num_novel"),
    },
    "image_processor": dict.fromkeys(("size", "crop_size"), int | dict[str, int])
    | {"resample": int, "do_center_crop": bool, "do_trim": bool},
    "model": {
        "from_pretrained": str,
        **{
            name: kind
            for name, kind in JemConfig.__annotations__.items()
            if not name.startswith("attribute") and name not in ("model_type", "novel_combinations")
        },
    },
    "training": {each.name: _TRAINING_TYPES[each.name] for each in fields(JemTrainingArguments)},
    "card": _types(
        write_card,
        "name repo_id revision dataset dataset_name evaluation license license_name license_link data limits requests",
    )
    | {"grid": dict[str, str]},
}
PATHS = (
    "name_or_path split_file cache_dir from_pretrained teacher output_dir logging_dir resume_from_checkpoint"
).split()


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
        return CoreLoader(text).get_single_data()
    except (yaml.YAMLError, *PYYAML_ERRORS) as error:
        raise ValueError(f"{source} is not YAML: {error}") from error


def section_of(name: str) -> str:
    """The section of a recipe that has a field. Raises `ValueError` for a name that none has."""
    for section, types in SECTIONS.items():
        if name in types:
            return section
    raise ValueError(
        f"unknown field {name!r}{nearest_name(name, [name for types in SECTIONS.values() for name in types])}"
    )


def field_value(section: str, name: str, text: str) -> Any:
    """The value of a field that was given as text: text as it is where the field takes nothing else, else YAML."""
    kind = SECTIONS[section][name]
    is_text = set(get_args(kind) or [kind]) <= {str, os.PathLike, NoneType}
    return expand_home(name, text if is_text and text != "null" else read_yaml(text, f"--{name}"))


def expand_home(name: str, value: Any) -> Any:
    """The value of a field, with `~` as the home folder where it is a path."""
    return os.path.expanduser(value) if name in PATHS and isinstance(value, str) else value


def check_types(section: str, values: dict) -> None:
    """Raise `ValueError` for a field of the wrong type: `TrainingArguments` itself takes anything."""
    for name, value in values.items():
        kind = SECTIONS[section][name]
        if not is_of_type(value, kind):
            raise ValueError(f"{name} is of type {kind if get_args(kind) else kind.__name__}, not {value!r}")


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value out of YAML is of a type; types that YAML does not know take everything."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer in (Union, UnionType):
        return any(is_of_type(value, each) for each in inner)
    if outer in (int, float):
        number = isinstance(value, int | outer) and not isinstance(value, bool)
        return number and (isinstance(value, int) or isfinite(value))
    if outer is Any or not isinstance(outer, type):
        return True
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, outer) and (not inner or all(is_of_type(each, inner[-1]) for each in members))
