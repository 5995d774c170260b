"""Which columns of a dataset are attributes, and which label a cell stands for."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from transformers.utils import logging

from ..models.values_jem import BINARY, nearest_name

logger = logging.get_logger(__name__)

MAX_VALUES = 50
WORDS: dict[str, int] = {word: False for word in "false f no n 0 -1".split()}
WORDS |= {word: True for word in "true t yes y 1".split()}
BINARY_WORDS = ("no n yes y", "false f true t", "-1 1", "0 no false 1 yes true")  # those that may share a column
WHOLE = re.compile(r"([+-]?[0-9]+)(\.0*)?")
NUMBER = re.compile(r"[+-]?[0-9]*[.,]?[0-9]+(e[+-]?[0-9]+)?", re.IGNORECASE)


class Column(NamedTuple):
    """Where an attribute comes from: a column, the feature that holds it and what turns a cell into a label."""

    source: str
    feature: Any
    read: Callable | None = None  # None: cells are labels already


class _NoAttributeError(Exception):
    """Why a column is no attribute."""


def find_columns(
    features: dict,
    cells: Callable | None,
    names: list[str] | None = None,
    values: dict[str, list] | None = None,
    other_values: str = "raise",
) -> tuple[dict[str, Column], dict[str, str]]:
    """
    The attributes among the columns of a dataset.

    Bool and `ClassLabel` columns are attributes as they are. Columns of strings and whole numbers are binary where
    their words are of one group of `BINARY_WORDS`, else have up to `MAX_VALUES` values; case and spaces tell none
    apart, and the commonest spelling names each. Lists of tags, and strings with commas or semicolons whose parts
    recur, are one binary attribute a tag. What counts as one value is said in one warning.

    Args:
        features (`dict`): Of the dataset, without the image.
        cells (`Callable`, *optional*):
            From the name of a column to its cells in all splits; None on a stream, where columns of numbers and
            strings are attributes only if named, and then binary unless `values` has them.
        names (`list[str]`, *optional*): Attributes that are wanted; default: all that there are.
        values (`dict[str, list]`, *optional*): The values of some attributes, in the order of their labels.
        other_values (`str`, *optional*, defaults to `"raise"`): Or "missing": what a cell is that holds none of these.

    Returns:
        Columns by name of attribute, in column order, and the reasons why others are none.

    Raises:
        ValueError: a column that mixes True and False with words that are not binary.
    """
    found, reasons, notes = {}, {}, []
    for source, feature in features.items():
        is_wanted = source in names if names else cells is not None
        try:
            columns, note = _read_column(source, feature, cells, (values or {}).get(source), is_wanted, other_values)
        except _NoAttributeError as reason:
            reasons[source] = str(reason)
            continue
        for name, column in columns.items():
            is_taken = name != source and (name in features or name in found)
            found[f"{source}.{name}" if is_taken else name] = column
        if note and (not names or columns.keys() & set(names)):
            notes.append(f"{source!r} has {note}")
    if notes:
        logger.warning(f"how columns are read: {'; '.join(notes)}")
    return found, reasons


def text_of(cell: Any) -> str | None:
    """A cell as text, whole numbers without a point; None where it is missing."""
    if cell is None or cell != cell:
        return None
    text = unicodedata.normalize("NFC", " ".join(str(cell).split()))
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text or None


def fold(cell: Any) -> str:
    """What all spellings of a cell share."""
    return str(text_of(cell)).casefold()


def reader(
    name: str, values: list | None = None, names: list[str] | None = None, other_values: str = "raise"
) -> Callable[[Any], Any]:
    """
    What turns a cell into a label: None where it is missing, else a bool or, of an attribute with `values`, an index.

    Args:
        names (`list[str]`, *optional*): What the cells stand for if they are those of a `ClassLabel`.
        other_values (`str`, *optional*, defaults to `"raise"`): As of [`find_columns`].
    """
    labels = WORDS
    if values is not None:
        folded = {fold(value): i for i, value in enumerate(values)}
        truths = {WORDS[word]: i for word, i in folded.items() if word in WORDS}
        aliases = {word: truths[truth] for word, truth in WORDS.items()} if len(truths) == len(values) == 2 else {}
        labels = aliases | folded | {str(value): i for i, value in enumerate(values)}

    def read(cell):
        if names is not None and cell is not None:
            cell = names[cell] if cell >= 0 else None
        text = text_of(cell)
        if text is None:
            return None
        label = labels.get(text, labels.get(text.casefold()))
        if label is None and other_values == "raise":
            nearest = nearest_name(text, list(map(str, values or BINARY)))
            remedy = "" if values else f"; or list all, values={{{name!r}: [...]}}"
            raise ValueError(f"attribute {name!r} has no value {text!r}{nearest}{remedy}")
        return label

    return read


def _read_column(source, feature, cells, values, is_wanted, other_values) -> tuple[dict[str, Column], str]:
    """The attributes of a column, and what in it counts as one value."""
    import datasets

    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if values is not None:
        label = datasets.ClassLabel(names=list(map(str, values)))
        read = reader(source, values, names, other_values)
        is_counted = cells is not None and other_values == "missing"
        return {source: Column(source, label, read)}, _others(source, cells(source), read, names) if is_counted else ""
    if names or feature == datasets.Value("bool"):
        return {source: Column(source, feature)}, ""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return {name: _tag(source, str(i)) for i, name in enumerate(inner.names)}, ""
    kind = getattr(inner or feature, "dtype", "")
    if not re.fullmatch("(large_)?string" if inner else "u?int[0-9]+|float[0-9]+|(large_)?string", kind):
        raise _NoAttributeError(f"it is of type {kind or feature}: cast it to bool or ClassLabel")
    if cells is None:
        if is_wanted and not inner:
            return {source: Column(source, datasets.Value("bool"), reader(source))}, ""
        raise _NoAttributeError("the values of a stream cannot be counted: name it in attributes or values")
    if inner:
        return _tags(source, [cell for cell in cells(source) if cell])
    return _read_texts(source, Counter(text for text in map(text_of, cells(source)) if text), is_wanted)


def _others(source, cells, read, names) -> str:
    """Which words among the cells are read as missing."""
    present = [cell for cell in cells if text_of(cell) is not None and not (names and cell < 0)]
    words = {str(names[cell] if names else text_of(cell)) for cell in present if read(cell) is None}
    if present and all(read(cell) is None for cell in present):
        raise ValueError(
            f"column {source!r} has none of the values of that attribute: it has {', '.join(sorted(words))}"
        )
    return f"{', '.join(map(repr, sorted(words)))}, which count as missing" if words else ""


def _read_texts(source, count: Counter, is_wanted) -> tuple[dict[str, Column], str]:
    """As `_read_column`, of a column of texts, which are counted."""
    import datasets

    spellings = _spellings(count, str.casefold)
    words, is_whole = spellings.keys(), all(map(WHOLE.fullmatch, count))
    if words and any(words <= set(group.split()) for group in BINARY_WORDS):
        merged = _note(_spellings(count, lambda text: WORDS[text.casefold()])) if len(count) > 2 else ""
        return {source: Column(source, datasets.Value("bool"), reader(source))}, merged
    if {"true", "false"} & words and is_wanted:
        other = min(text for text in count if text.casefold() not in ("true", "false"))
        raise ValueError(f"column {source!r} mixes True and False with {other!r}: write one kind of value, or nothing")
    if all(map(NUMBER.fullmatch, count)) and not is_whole:
        raise _NoAttributeError("it holds numbers that are not whole: cast it to bool or ClassLabel")
    if len(words) < 2:
        raise _NoAttributeError(f"all its values are {min(count)!r}" if count else "it has no values")
    if _is_tagged(count):
        columns, note = _tags(source, list(count.elements()))
        return columns, f"{note} (all missing in an empty cell)"
    if len(words) > MAX_VALUES or len(words) == count.total():
        different = f"{len(words)} different values in {count.total()} rows"
        raise _NoAttributeError(f"it has {different}, more than {MAX_VALUES} or one a row: cast it to ClassLabel")
    values = sorted((texts[0] for texts in spellings.values()), key=int if is_whole else None)
    return {source: Column(source, datasets.ClassLabel(names=values), reader(source, values))}, _note(spellings)


def _spellings(count: Counter, key: Callable) -> dict[Any, list[str]]:
    """The texts that share a key, the commonest first."""
    spellings: dict[Any, list[str]] = {}
    for text in sorted(count, key=lambda text: (-count[text], text)):
        spellings.setdefault(key(text), []).append(text)
    return spellings


def _note(spellings: dict[Any, list[str]]) -> str:
    return ", ".join(" = ".join(map(repr, texts)) for texts in spellings.values() if len(texts) > 1)


def _is_tagged(texts: Counter) -> bool:
    """Whether texts are words that recur, with commas or semicolons between, and no decimal commas."""
    tags = Counter(tag.casefold() for text in texts.elements() for tag in _split(text))
    has_several = any(len(_split(text)) > 1 for text in texts) and not any(map(NUMBER.fullmatch, texts))
    return has_several and len(tags) <= MAX_VALUES and tags.total() >= 2 * len(tags)


def _tags(source, cells) -> tuple[dict[str, Column], str]:
    """A binary attribute a tag."""
    tags = _spellings(Counter(tag for cell in cells for tag in _split(cell)), str.casefold)
    if len(tags) > MAX_VALUES:
        raise _NoAttributeError(f"it has {len(tags)} different tags, more than {MAX_VALUES}: cast it to ClassLabel")
    columns = {texts[0]: _tag(source, tag) for tag, texts in sorted(tags.items(), key=lambda item: item[1])}
    return columns, f"the tags {', '.join(columns)}"


def _tag(source: str, tag: str) -> Column:
    import datasets

    def read(cell):
        if cell is None or cell == "":
            return None
        return tag in _folded(cell if isinstance(cell, str) else tuple(cell))

    return Column(source, datasets.Value("bool"), read)


def _split(cell: str | Iterable) -> list[str]:
    parts = re.split("[,;]", cell) if isinstance(cell, str) else cell
    return [text for text in map(text_of, parts) if text]


@lru_cache(10_000)  # each tag of a column reads the same cells
def _folded(cell: str | tuple) -> set[str]:
    return {tag.casefold() for tag in _split(cell)}
