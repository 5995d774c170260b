"""What users ask for: `"Eyeglasses & ~Beard"` or `{"Eyeglasses": True, "Beard": False}`."""

from .configuration_jem import JemConfig, nearest_name

Request = str | dict[str, bool | int | str | None]


def parse_request(request: Request, config: JemConfig) -> list[int]:
    """
    The K labels of a request, -1 for attributes that it leaves open.

    Args:
        request: A dict of attribute to True, False, a value, or None for open; or a string of terms joined by `&`,
            each `Attribute`, `~Attribute` or `Attribute=value`.
        config: Whose attributes are meant.

    Raises:
        ValueError: an unknown attribute or value (with the nearest known one), a contradiction, or not a request.
    """
    if isinstance(request, str):
        terms = [_parse_term(term, request) for term in request.split("&")] if request.strip() else []
    elif isinstance(request, dict):
        terms = list(request.items())
    else:
        raise ValueError(f"a request is a string such as 'A & ~B' or a dict such as {{'A': True}}, not {request!r}")
    labels = [-1] * len(config.attributes)
    for name, value in terms:
        if name not in config.attributes:
            raise ValueError(f"unknown attribute {name!r}{nearest_name(str(name), config.attributes)}")
        if value is None:
            continue
        k = config.attributes.index(name)
        label = _label(name, value, config.values(name))
        if labels[k] not in (-1, label):
            raise ValueError(f"the request contradicts itself: {name!r} cannot have two values")
        labels[k] = label
    return labels


def format_request(labels, config: JemConfig) -> str:
    """The request that `parse_request` turns into `labels` (K,), as a string."""
    terms = []
    for name, label in zip(config.attributes, labels):
        if label < 0:
            continue
        if name in config.attribute_values:
            terms.append(f"{name}={config.values(name)[label]}")
        else:
            terms.append(name if label else f"~{name}")
    return " & ".join(terms)


def _parse_term(term: str, request: str) -> tuple[str, bool | str]:
    name = term.strip()
    positive = True
    while name.startswith("~"):
        name, positive = name[1:].strip(), not positive
    if not name:
        raise ValueError(f"an attribute is missing in the request {request!r}: write 'A & ~B'")
    if "=" in name:
        if not positive:
            raise ValueError(f"cannot negate {name!r}: name the value that is wanted")
        name, value = (part.strip() for part in name.split("=", 1))
        return name, value
    return name, positive


def _label(name: str, value, values: list[str]) -> int:
    if isinstance(value, str) or (isinstance(value, bool) and values == ["False", "True"]):
        value = str(value)
        if value not in values:
            raise ValueError(f"attribute {name!r} has no value {value!r}{nearest_name(value, values)}")
        return values.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(values):
        return value
    raise ValueError(f"{value!r} is not a value of attribute {name!r}; choose from {', '.join(values)}")
