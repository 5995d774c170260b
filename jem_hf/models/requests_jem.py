"""
What users ask for: `"Smiling & (Hat | ~Hair=red)"` or `{"Smiling": True, "Hair": "red"}`.

    request     = conjunction ("|" conjunction)*
    conjunction = term ("&" term)*
    term        = "~" term | "(" request ")" | attribute ["=" value | "in" "(" value ("," value)* ")"] [":" weight]

Names and values are all text up to the next operator. Those that hold one of `& | ~ ( ) = :` or start with a quote
stand in single or double quotes, in which a doubled quote is one: `"Shirt (red)"`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

from .configuration_jem import JemConfig
from .values_jem import BINARY, as_choice, as_python, label_of, shown

Request = str | Mapping[str, Any]

MAX_ALTERNATIVES = 256
MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 50  # of brackets and "~" inside each other
MAX_WORK = 10_000_000  # characters of a request times its evaluations, until its alternatives are known
UNKNOWN = 0.5  # of Kleene's logic: 0 is false, 1 true, "and" is min, "or" is max and "not v" is 1 - v
Predicate = Callable[[list[int]], float]  # truth of K labels, UNKNOWN where it depends on those that are open

_QUOTED = r"""(?:"(?:[^"]|"")*"|'(?:[^']|'')*')"""
_LIST = (
    r"""in\s*\((?:[^()"']|"[^"]*"|'[^']*')*\)"""  # a doubled quote is two strings here, or it takes exponential time
)
_BARE = re.compile(rf"""[^\s"'&|~()=:](?:(?!\s{_LIST})[^&|~()=:])*""")
_TOKEN = re.compile(
    rf"""(?P<operator>[&|~()=:])|(?P<quoted>{_QUOTED})|(?P<listed>{_LIST})|(?P<bare>{_BARE.pattern})|(?P<unclosed>["'])"""
)


@dataclass(frozen=True)
class Composition:
    """
    The label vectors that a request allows.

    Args:
        alternatives (`list[list[int]]`):
            M partial label vectors of K labels each, -1 where open. They are disjoint and together hold exactly the
            label vectors allowed, so that `log p~(x, request) = logsumexp_m log p~(x, alternatives[m])`. Requests
            that mean the same have the same alternatives.
        weights (`list[float]`): The factor of `log p(y_k|x)` for each of the K attributes, 1.0 unless said otherwise.

    Source: Du, Li and Mordatch, "Compositional Visual Generation with Energy Based Models", NeurIPS 2020
    (arXiv 2004.06030). As labels exclude one another, "or" and "not" are exact here.
    """

    alternatives: list[list[int]]
    weights: list[float]


def parse_composition(request: Request, config: JemConfig) -> Composition:
    """
    What a request means.

    Args:
        request (`str` or `dict`):
            A string such as `"Smiling:2 & ~(Hat | Hair=red)"`, in which `~` binds tightest, then `&`, then `|`, and
            `:2` makes an attribute count twice; or a dict (or row of a data frame) of attribute to True, False, the
            name or index of a value, None for open, or, if binary, a float: -2.0 is False with weight 2.

    Raises:
        ValueError: an unknown attribute or value, a malformed string, two weights of one attribute, a contradiction,
            more than `MAX_ALTERNATIVES` alternatives, a request that is too long or too intricate, or no request.
    """
    if isinstance(request, str):
        return _Parser(request, config).composition()
    if not hasattr(request, "keys"):
        raise ValueError(f"a request is a string such as 'A & ~B' or a dict as {{'A': True}}, not {shown(request)}")
    names = list(config.named_values)
    labels, weights = [-1] * len(names), [1.0] * len(names)
    for name, value in dict(request).items():
        k, value = names.index(as_choice("attribute", name, names)), as_python(value)
        if isinstance(value, float) and config.values(name) == BINARY:
            weights[k], value = _weight(name, abs(value)), value > 0
        if value is not None:
            labels[k] = label_of(name, value, config.values(name))
    return Composition([labels], weights)


def parse_request(request: Request, config: JemConfig) -> list[int]:
    """The K labels of a request, see [`parse_composition`]. Raises `ValueError` for alternatives and weights, too."""
    composition = parse_composition(request, config)
    if len(composition.alternatives) > 1:
        raise ValueError(f"the request {request!r} has several alternatives: name one value an attribute, 'A & ~B'")
    if any(weight != 1 for weight in composition.weights):
        raise ValueError(f"the request {request!r} has weights: leave them out")
    return composition.alternatives[0]


def format_request(labels: Iterable[int], config: JemConfig) -> str:
    """The request that `parse_request` turns into `labels` (K,), as a string."""
    terms = []
    for name, label in zip(config.named_values, labels):
        values = config.values(name)
        if label >= 0 and values == BINARY:
            terms.append(_quoted(name) if label else f"~{_quoted(name)}")
        elif label >= 0:
            terms.append(f"{_quoted(name)}={_quoted(values[label])}")
    return " & ".join(terms)


def crossed(rows: str, columns: str, request: str, config: JemConfig) -> tuple[list[str], list[str], list[str]]:
    """
    The requests of a grid, row by row, each of one value of `rows`, one of `columns` and all that `request` says.

    Args:
        rows, columns (`str`): An attribute, of which all values are taken, or a request that names some of one
            attribute, such as `"Hair in (red, black)"`.
        request (`str`): What all images show, `""` for nothing.

    Returns:
        Requests, and what rows and columns show.

    Raises:
        ValueError: as [`parse_composition`], and for an axis of several attributes or the same one twice.
    """
    (row_name, row_terms), (column_name, column_terms) = (_axis(text, config) for text in (rows, columns))
    if row_name == column_name:
        raise ValueError(f"rows and columns are both of {row_name!r}: name two attributes")
    always = [f"({request})"] if request.strip() else []
    requests = [" & ".join([*always, a, b]) for a in row_terms.values() for b in column_terms.values()]
    for each in requests:
        parse_composition(each, config)
    return requests, list(row_terms), list(column_terms)


def _axis(text: str, config: JemConfig) -> tuple[str, dict[str, str]]:
    """An attribute, and the terms of its values by what they are called."""
    names = list(config.named_values)
    if (name := _unquoted(text.strip())) in names:
        k, allowed = names.index(name), {-1}
    else:
        parser = _Parser(text, config)
        alternatives = parser.composition().alternatives
        if len(set(parser.mentioned)) != 1 or parser.weights:
            raise ValueError(
                f"{text!r} is no axis of a grid: name one attribute, or some of its values, 'A in (b, c)'"
            )
        k = parser.mentioned[0]
        allowed = {each[k] for each in alternatives}
    name, is_binary = names[k], config.values(names[k]) == BINARY
    labels = [label for label in range(len(config.values(name))) if {label, -1} & allowed]
    rows = [[label if i == k else -1 for i in range(len(names))] for label in labels]
    terms = [format_request(row, config) for row in rows]
    return name, {term if is_binary else config.values(name)[label]: term for term, label in zip(terms, labels)}


class _Parser:
    """Recursive descent through the grammar above, one method a rule."""

    def __init__(self, text: str, config: JemConfig):
        if len(text) > MAX_LENGTH:
            raise ValueError(f"the request has {len(text)} characters: write at most {MAX_LENGTH}")
        self.text, self.depth, self.num_calls = text, 0, 0
        self.values = {name: values or BINARY for name, values in config.named_values.items()}
        self.names, self.num_values = list(self.values), config.num_values
        self.mentioned: list[int] = []
        self.weights: dict[int, float] = {}
        self.tokens = list(_TOKEN.finditer(text))

    def composition(self) -> Composition:
        num_attributes = len(self.names)
        predicate = self.request() if self.tokens else lambda labels: 1.0
        if self.tokens:
            raise self.error(f"{self.tokens[0][0].strip()!r} is out of place")
        order = sorted(set(self.mentioned), key=lambda k: (self.num_values[k], k))
        found = self.solutions(predicate, [-1] * num_attributes, order)
        if not found:
            names = [repr(self.names[k]) for k in order if self.mentioned.count(k) > 1]
            raise ValueError(f"the request contradicts itself: {' and '.join(names)} cannot meet all of it")
        labels = [[solution.get(k, -1) for k in range(num_attributes)] for solution in found]
        return Composition(labels, [self.weights.get(k, 1.0) for k in range(num_attributes)])

    def solutions(self, predicate: Predicate, labels: list[int], order: list[int]) -> list[dict]:
        """
        Disjoint partial labels {k: label} that make `predicate` true, by Shannon expansion over attributes in `order`.

        Attributes that make no difference stay open: it is a reduced ordered decision diagram (Bryant 1986). To find
        it can take exponential time.
        """
        self.num_calls += 1
        if self.num_calls * len(self.text) > MAX_WORK:
            raise ValueError("the request is too intricate: name fewer attributes, or ask for its parts one by one")
        truth = predicate(labels)
        if truth != UNKNOWN:
            return [{}] if truth else []
        k, *rest = order
        branches = []
        for label in range(self.num_values[k]):
            labels[k] = label
            branches.append(self.solutions(predicate, labels, rest))
        labels[k] = -1
        if all(branch == branches[0] for branch in branches):
            return branches[0]
        found = [{k: label} | solution for label, branch in enumerate(branches) for solution in branch]
        if len(found) > MAX_ALTERNATIVES:
            raise ValueError(f"the request has more than {MAX_ALTERNATIVES} alternatives: ask for fewer at once")
        return found

    def request(self) -> Predicate:
        return self.joined("|", max, self.conjunction)

    def conjunction(self) -> Predicate:
        return self.joined("&", min, self.term)

    def joined(self, operator: str, truth: Callable, rule: Callable[[], Predicate]) -> Predicate:
        parts = [rule()]
        while self.take(operator):
            parts.append(rule())
        return lambda labels: truth(part(labels) for part in parts)

    def term(self) -> Predicate:
        if self.take("~"):
            negated = self.inside(self.term)
            return lambda labels: 1 - negated(labels)
        if self.take("("):
            predicate = self.inside(self.request)
            if not self.take(")"):
                raise self.error("')' is missing")
            return predicate
        name = self.name("an attribute")
        k = self.names.index(as_choice("attribute", name, self.names))
        words: list[Any] = self.listed() or [self.name("a value") if self.take("=") else True]
        labels_of_name = {label_of(name, word, self.values[name]) for word in words}
        self.mentioned.append(k)
        if self.take(":"):
            weight = _weight(name, self.name("a weight"))
            if self.weights.setdefault(k, weight) != weight:
                raise ValueError(f"attribute {name!r} has two weights, {self.weights[k]} and {weight}: write one")
        return lambda labels: UNKNOWN if labels[k] < 0 else float(labels[k] in labels_of_name)

    def listed(self) -> list[str]:
        """The values of a list, if there is one."""
        if not self.tokens or self.tokens[0].lastgroup != "listed":
            return []
        inside = self.tokens[0][0].partition("(")[2][:-1]
        words = [_unquoted(word.strip()) for word in re.findall(rf"{_QUOTED}|[^,\s][^,]*", inside)]
        if not words:
            raise self.error("the list of values is empty")
        self.tokens.pop(0)
        return words

    def inside(self, rule: Callable[[], Predicate]) -> Predicate:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"there are more than {MAX_DEPTH} brackets and '~' inside each other")
        predicate = rule()
        self.depth -= 1
        return predicate

    def name(self, what: str) -> str:
        kind = self.tokens[0].lastgroup if self.tokens else None
        if kind not in ("bare", "quoted"):
            raise self.error("a quote is not closed" if kind == "unclosed" else f"{what} is missing")
        return _unquoted(self.tokens.pop(0)[0].strip())

    def take(self, operator: str) -> bool:
        is_next = bool(self.tokens) and self.tokens[0][0] == operator
        if is_next:
            self.tokens.pop(0)
        return is_next

    def error(self, problem: str) -> ValueError:
        place = f"at character {self.tokens[0].start() + 1}" if self.tokens else "at the end"
        return ValueError(
            f"{problem} {place} of the request {self.text!r}: write 'A & ~(B | C=value)', "
            f"and names with one of & | ~ ( ) = : in quotes"
        )


def _weight(name: str, value: float | str) -> float:
    with suppress(ValueError):
        if 0 < float(value) < inf:
            return float(value)
    raise ValueError(f"{value!r} is not a weight of attribute {name!r}: write a number above 0, or a value")


def _unquoted(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0]) if text[:1] in ("'", '"') else text


def _quoted(name: str) -> str:
    """A name as it stands in a request: in quotes where it needs them."""
    if _BARE.fullmatch(name) and name == name.strip():
        return name
    return '"' + name.replace('"', '""') + '"'
