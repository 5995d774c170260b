"""Values, names and numbers as users write them: what each means, and one error where it means nothing."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from typing import Any

BINARY = ["False", "True"]
LARGEST = sys.float_info.max


def label_of(name: str, value: Any, values: list[str]) -> int:
    """
    The label of a value of attribute `name`, which has these `values`, in the order of their labels.

    It is True or False, the name of a value, or its index where no value has that number as its name. Raises
    `ValueError` for all else.
    """
    value = as_python(value)
    if isinstance(value, str | bool | int | float) and str(value) in values:
        return values.index(str(value))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(values):
        return value
    if isinstance(value, str):
        raise ValueError(f"attribute {name!r} has no value {value!r}{nearest_name(value, values)}")
    known = f"{', '.join(values)}, or None where it is open"
    raise ValueError(f"{shown(value)} is not a value of attribute {name!r}; choose from {known}")


def value_of(label: int, values: list[str] | None) -> bool | str | None:
    """A label as users write it: True or False (`values` None), the name of a value, or None where it is open."""
    if label < 0:
        return None
    return bool(label) if values is None else values[label]


def nearest_name(name: Any, names: Iterable[str]) -> str:
    """The end of an error message about an unknown name: `"; did you mean 'Smiling'?"`, or what there is."""
    names = list(names)
    match = get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; choose from {', '.join(names)}"


def as_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the choices. Raises `ValueError` for anything else, with the nearest of them."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}{nearest_name(value, choices)}")
    return value


def as_python(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; everything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def as_int(name: str, value: Any, smallest: int = 1, largest: float = LARGEST) -> int:
    """A whole number in a range, of Python, numpy or torch; 2.0 is one. Raises `ValueError` for anything else."""
    return int(_number(name, "whole", value, smallest, largest))


def as_float(name: str, value: Any, smallest: float = -LARGEST, largest: float = LARGEST) -> float:
    """A finite number in a range, of Python, numpy or torch. Raises `ValueError` for anything else."""
    return float(_number(name, "finite", value, smallest, largest))


def _number(name: str, kind: str, value: Any, smallest: float, largest: float) -> Any:
    number = as_python(value)
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if is_number and smallest <= number <= largest and not (kind == "whole" and number % 1):
        return number
    limits = f" from {smallest} to {largest}" if largest < LARGEST else f" from {smallest} on"
    raise ValueError(f"{name} is a {kind} number{limits if smallest > -LARGEST else ''}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value in an error message: on one line, and a short one."""
    return " ".join(repr(value).split())[:80]
