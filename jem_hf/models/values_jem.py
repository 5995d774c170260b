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


def as_python(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; everything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def as_int(name: str, value: Any, smallest: int = 1, largest: float = LARGEST) -> int:
    """
    A whole number in a range, of Python, numpy or torch; 2.0 is one.

    Raises:
        ValueError: no number, a fraction, NaN or infinity, or a number out of the range.
    """
    number = as_python(value)
    if not _is_number(number, smallest, largest) or number % 1:
        raise ValueError(f"{name} is a whole number{_range(smallest, largest)}, not {shown(value)}")
    return int(number)


def as_float(name: str, value: Any, smallest: float = -LARGEST, largest: float = LARGEST) -> float:
    """
    A finite number in a range, of Python, numpy or torch.

    Raises:
        ValueError: no number, NaN or infinity, or a number out of the range.
    """
    number = as_python(value)
    if not _is_number(number, smallest, largest):
        raise ValueError(f"{name} is a finite number{_range(smallest, largest)}, not {shown(value)}")
    return float(number)


def _is_number(value: Any, smallest: float, largest: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(smallest <= value <= largest)  # type: ignore[operator]


def _range(smallest: float, largest: float) -> str:
    if largest < LARGEST:
        return f" from {smallest} to {largest}"
    return f" from {smallest} on" if smallest > -LARGEST else ""


def shown(value: Any) -> str:
    """A value in an error message: on one line, and a short one."""
    return " ".join(repr(value).split())[:80]
