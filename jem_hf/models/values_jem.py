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
    The label of one value of an attribute.

    Args:
        name (`str`): The attribute.
        value: True or False, the name of a value, or its index where no value has that number as its name.
        values (`list[str]`): The names of the values of the attribute, in the order of their labels.

    Raises:
        ValueError: a value that the attribute does not have.
    """
    value = as_python(value)
    if isinstance(value, str | bool | int | float) and str(value) in values:
        return values.index(str(value))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(values):
        return value
    if isinstance(value, str):
        raise ValueError(f"attribute {name!r} has no value {value!r}{nearest_name(value, values)}")
    raise ValueError(f"{shown(value)} is not a value of attribute {name!r}; choose from {', '.join(values)}")


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


def as_python(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; everything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def as_number(
    name: str, value: Any, smallest: float = -LARGEST, largest: float = LARGEST, whole: bool = False
) -> int | float:
    """
    A number in a range, of Python, numpy or torch, as a `float`, or, if `whole`, as an `int`: 2.0 is 2.

    Raises:
        ValueError: no number, NaN, infinity, a fraction in place of a whole number, or one out of the range.
    """
    found = as_python(value)
    is_number = isinstance(found, Real) and not isinstance(found, bool) and smallest <= found <= largest
    if is_number and not (whole and found % 1):
        return int(found) if whole else float(found)
    what = "whole number" if whole else "number"
    if smallest == -LARGEST:
        what = "finite number"
    elif largest == LARGEST:
        what += f" from {smallest} on"
    else:
        what += f" from {smallest} to {largest}"
    raise ValueError(f"{name} is a {what}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value in an error message: on one line, and a short one."""
    return " ".join(repr(value).split())[:80]
