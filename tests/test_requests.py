import random
from itertools import product

import numpy as np
import pytest
import torch

from jem_hf import JemConfig
from jem_hf.models.label_distributions_jem import ProductDistribution
from jem_hf.models.requests_jem import MAX_ALTERNATIVES, crossed, format_request, parse_composition, parse_request

VALUES = {"Hair": ["black", "blond", "red"], "Heel (height)": ["1in...2in", "3in & over", "flat", "it's high"]}


@pytest.fixture
def many():
    """Three binary attributes and two of three and four values, some with operators in their names."""
    return JemConfig(
        attributes=["Smiling", "Hair", "5_o'Clock | later", "Heel (height)", "Hat"], attribute_values=VALUES
    )


@pytest.mark.parametrize(
    "request_, labels",
    [
        ("", [-1, -1, -1]),
        ("  ", [-1, -1, -1]),
        ({}, [-1, -1, -1]),
        ("Smiling", [1, -1, -1]),
        ("Smiling & ~Hat", [1, -1, 0]),
        ("~~Smiling&Hair=red", [1, 2, -1]),
        ("Smiling & Smiling", [1, -1, -1]),
        ("Smiling=False & 'Hat'", [0, -1, 1]),
        ("(Smiling & (Hair = red))", [1, 2, -1]),
        ({"Smiling": False, "Hair": "blond", "Hat": None}, [0, 1, -1]),
        ({"Hair": 2, "Hat": 1}, [-1, 2, 1]),
        ({"Hat": "True"}, [-1, -1, 1]),
        ({"Hat": np.True_, "Smiling": np.bool_(False)}, [0, -1, 1]),
        ({"Hat": np.int64(1), "Hair": np.uint8(2)}, [-1, 2, 1]),
        ({"Hat": np.float32(-1), "Hair": np.str_("red")}, [-1, 2, 0]),
        ("~(Smiling | Hat)", [0, -1, 0]),
        ("~Hair=red & ~Hair=black", [-1, 1, -1]),
        ("Smiling | ~Smiling", [-1, -1, -1]),
        ("Smiling & Hat | Smiling & ~Hat", [1, -1, -1]),
        ("Hair=red | Hair=black | Hair=blond", [-1, -1, -1]),
    ],
)
def test_requests(config, request_, labels):
    assert parse_request(request_, config) == labels
    assert parse_request(format_request(labels, config), config) == labels


@pytest.mark.parametrize(
    "request_, alternatives",
    [
        ("Smiling | Hat", [[0, -1, 1], [1, -1, -1]]),
        ("Hat | Smiling", [[0, -1, 1], [1, -1, -1]]),
        ("~(~Hat & ~Smiling)", [[0, -1, 1], [1, -1, -1]]),
        ("Smiling | Hat & Hair=red", [[0, 2, 1], [1, -1, -1]]),  # "&" before "|"
        ("(Smiling | Hat) & Hair=red", [[0, 2, 1], [1, 2, -1]]),
        ("~Smiling & Hat | Smiling & ~Hat", [[0, -1, 1], [1, -1, 0]]),
        ("~Hair=red", [[-1, 0, -1], [-1, 1, -1]]),
        ("Hair=red | Hat", [[-1, 2, 0], [-1, -1, 1]]),  # few values first: 2 alternatives where Hair first makes 3
        ({"Hat": 3.0, "Hair": "red"}, [[-1, 2, 1]]),
        ("Hair in (red, 'black')", [[-1, 0, -1], [-1, 2, -1]]),
        ("Smiling & 'Hair' in(black,blond,) & Hat", [[1, 0, 1], [1, 1, 1]]),
        ("~Hair in (red, black)", [[-1, 1, -1]]),
        ("Hair in (red, blond, black)", [[-1, -1, -1]]),
        ("Hat in (True, False)", [[-1, -1, -1]]),
    ],
)
def test_alternatives(config, request_, alternatives):
    assert parse_composition(request_, config).alternatives == alternatives


def random_tree(rng, config, depth):
    """An attribute and a label, ("~", tree), or ("&" or "|", tree, tree)."""
    if depth == 0 or rng.random() < 0.15:
        k = rng.randrange(len(config.attributes))
        return (k, rng.randrange(config.num_values[k]))
    operator = rng.choice("~&|&|")
    return (operator, *(random_tree(rng, config, depth - 1) for _ in range(1 if operator == "~" else 2)))


def write(tree, config, outside="|"):
    """The tree as a string, in brackets only where `~` before `&` before `|` demands them."""
    operator, *parts = tree
    if operator == "~":
        return "~" + write(parts[0], config, "~")
    if operator in ("&", "|"):
        text = f" {operator} ".join(write(part, config, operator) for part in parts)
        return f"({text})" if "|&~".index(outside) > "|&~".index(operator) else text
    return format_request([parts[0] if k == operator else -1 for k in range(len(config.attributes))], config)


def is_met(tree, labels):
    operator, *parts = tree
    if operator == "~":
        return not is_met(parts[0], labels)
    if operator in ("&", "|"):
        return (all if operator == "&" else any)(is_met(part, labels) for part in parts)
    return labels[operator] == parts[0]


def matches(alternative, labels):
    return all(wanted in (-1, label) for wanted, label in zip(alternative, labels))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_alternatives_are_disjoint_and_exact(many, depth):
    rng = random.Random(depth)
    vectors = list(product(*(range(v) for v in many.num_values)))
    by_meaning = {}
    for _ in range(60):
        tree = random_tree(rng, many, depth)
        text = write(tree, many)
        allowed = tuple(is_met(tree, labels) for labels in vectors)
        if not any(allowed):
            with pytest.raises(ValueError, match="contradicts itself"):
                parse_composition(text, many)
            continue
        alternatives = parse_composition(text, many).alternatives
        covered = [sum(matches(alternative, labels) for alternative in alternatives) for labels in vectors]
        assert covered == list(map(int, allowed)), text
        assert by_meaning.setdefault(allowed, alternatives) == alternatives, text


def test_log_joint_of_a_composition_is_exact(many):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    for k, num_values in enumerate(many.num_values):
        logits[k, num_values:] = -torch.inf
    vectors = torch.tensor(list(product(*(range(v) for v in many.num_values))))
    allowed = ((vectors[:, 0] == 1) & (vectors[:, 1] != 2)) | (vectors[:, 4] == 1)
    exact = ProductDistribution(logits.expand(len(vectors), -1, -1)).log_joint(vectors)[allowed].logsumexp(0)
    alternatives = torch.tensor(parse_composition("Smiling & ~Hair=red | Hat", many).alternatives)
    found = ProductDistribution(logits.expand(len(alternatives), -1, -1)).log_joint(alternatives).logsumexp(0)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(
    "request_, weights",
    [
        ("Smiling & Hat", [1, 1, 1]),
        ("Smiling:2 & Hat", [2, 1, 1]),
        ("(~Smiling : 2.5) | Hair=red:.5", [2.5, 0.5, 1]),
        ("Smiling:2 & Hat | ~Smiling & ~Hat", [2, 1, 1]),
        ("Smiling:2 & Hat | ~Smiling:2.0", [2, 1, 1]),
        ({"Smiling": 2.0, "Hat": 1}, [2, 1, 1]),
        ({"Smiling": -2.0, "Hat": True}, [2, 1, 1]),
    ],
)
def test_weights(config, request_, weights):
    assert parse_composition(request_, config).weights == weights


def test_floats_are_weights_and_their_sign_is_the_value(config):
    assert parse_composition({"Smiling": 2.0, "Hat": -0.5}, config).alternatives == [[1, -1, 0]]
    assert parse_request({"Smiling": 1.0, "Hat": -1.0}, config) == [1, -1, 0]
    assert parse_request({"Smiling": 0, "Hat": 1}, config) == [0, -1, 1]


def test_names_of_any_kind_return_in_quotes():
    names = ['say "hi" & go', "'90s", " padded ", "5_o'Clock/Shadow-2", "Sub.Category=Shoes", "rating:safe", "a b"]
    config = JemConfig(attributes=names, attribute_values={"a b": ["", "~x", "3.5 in. / 9 cm"]})
    for labels in ([1, 0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 2]):
        assert parse_request(format_request(labels, config), config) == labels
    assert format_request([-1, -1, -1, 1, -1, -1, 2], config) == "5_o'Clock/Shadow-2 & a b=3.5 in. / 9 cm"
    assert parse_request("""'say "hi" & go' & '''90s'""", config) == [1, 1, -1, -1, -1, -1, -1]


def test_number_of_alternatives_is_limited():
    config = JemConfig(attributes=[f"A{i}" for i in range(18)])
    pairs = [f"A{i} & A{i + 1}" for i in range(0, 18, 2)]
    assert len(parse_composition(" | ".join(pairs[:8]), config).alternatives) == 255
    with pytest.raises(ValueError, match=f"more than {MAX_ALTERNATIVES} alternatives"):
        parse_composition(" | ".join(pairs), config)


@pytest.mark.parametrize(
    "request_, message",
    [
        ("Smilng", "unknown attribute 'Smilng'; did you mean 'Smiling'"),
        ({"Het": True}, "did you mean 'Hat'"),
        ("Smiling & ~Smiling", "contradicts itself: 'Smiling'"),
        ("Hair=red & Hair=black", "contradicts itself: 'Hair'"),
        ("Hat & Smiling & Hair=red & ~Smiling", "contradicts itself: 'Smiling' cannot"),
        ("(Smiling | Hat) & ~Smiling & ~Hat", "contradicts itself: 'Smiling' and 'Hat' cannot"),
        ("Hair=rad", "no value 'rad'; did you mean 'red'"),
        ("Hair", "True is not a value of attribute 'Hair'"),
        ({"Smiling": 2}, "2 is not a value"),
        ({"Hair": 2.0}, "2.0 is not a value of attribute 'Hair'"),
        ({"Smiling": 0.0}, "0.0 is not a weight of attribute 'Smiling'"),
        ({"Smiling": float("-inf")}, "inf is not a weight"),
        ("Smiling:0", "'0' is not a weight"),
        ("Smiling:-2", "'-2' is not a weight"),
        ("Smiling:nan", "'nan' is not a weight"),
        ("Smiling:much & Hat", "'much' is not a weight"),
        ("Smiling:2 | Smiling:3", "'Smiling' has two weights, 2.0 and 3.0"),
        ("Smiling &", "an attribute is missing at the end of the request 'Smiling &'"),
        ("& Smiling", "an attribute is missing at character 1"),
        ("Smiling & | Hat", "an attribute is missing at character 11"),
        ("Smiling & ()", r"an attribute is missing at character 12"),
        ("Hat & ~", "an attribute is missing at the end"),
        ("Hair= & Hat", "a value is missing at character 7"),
        ("Smiling: | Hat", "a weight is missing at character 10"),
        ("(Smiling | Hat", r"'\)' is missing at the end"),
        ("Smiling | Hat)", r"'\)' is out of place at character 14"),
        ("Smiling ~Hat", "'~' is out of place at character 9"),
        ("Smiling 'Hat'", "unknown attribute \"Smiling 'Hat'\""),
        ("(Smiling) Hat", "'Hat' is out of place at character 11"),
        ("(Smiling & Hat):2", "':' is out of place at character 16"),
        ("Smiling & 'Hat", "a quote is not closed at character 11"),
        ("Hair=red=black", "'=' is out of place at character 9"),
        ({"Hat": -1}, "-1 is not a value of attribute 'Hat'; choose from False, True, or None where it is open"),
        ({"Hat": np.int64(2)}, "2 is not a value"),
        ({"Hat": float("nan")}, "nan is not a weight of attribute 'Hat'"),
        ({"Hat": [True]}, r"\[True\] is not a value"),
        ({"Hair": np.nan}, "nan is not a value of attribute 'Hair'"),
        ({3: True}, "unknown attribute 3"),
        (["Smiling"], "a request is a string"),
        (3, "a request is a string"),
    ],
)
def test_wrong_requests(config, request_, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_composition(request_, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "request_, message",
    [
        ("Smiling | Hat", "'Smiling | Hat' has several alternatives"),
        ("~Hair=red", "has several alternatives"),
        ("Smiling:2", "has weights"),
        ({"Smiling": 0.5}, "has weights"),
    ],
)
def test_labels_of_a_composition(config, request_, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        parse_request(request_, config)


@pytest.mark.parametrize(
    "request_, message",
    [
        ("Hair in red", "unknown attribute 'Hair in red'; did you mean 'Hair'"),
        ("Hair in ()", "the list of values is empty at character 6"),
        ("Hair in (red, blak)", "no value 'blak'; did you mean 'black'"),
        ("Hair in (red", "unknown attribute 'Hair in'; did you mean 'Hair'"),
        ("Hiar in (red)", "unknown attribute 'Hiar'; did you mean 'Hair'"),
        ("in (red)", "an attribute is missing at character 1"),
    ],
)
def test_lists_of_values_that_are_wrong(config, request_, message):
    with pytest.raises(ValueError, match=message):
        parse_composition(request_, config)


def test_a_grid_has_a_request_for_each_combination(many):
    requests, rows, columns = crossed("Hair", "'Heel (height)' in ('3in & over', flat)", "Smiling | Hat", many)
    assert (rows, columns) == (["black", "blond", "red"], ["3in & over", "flat"])
    assert requests[1] == '(Smiling | Hat) & Hair=black & "Heel (height)"=flat'
    met = [parse_composition(each, many).alternatives for each in requests]
    assert [(each[0][1], each[0][3]) for each in met] == [(hair, heel) for hair in range(3) for heel in (1, 2)]
    requests, rows, columns = crossed("Hat", "Smiling", "", many)
    assert (rows, columns) == (["~Hat", "Hat"], ["~Smiling", "Smiling"])
    assert requests == ["~Hat & ~Smiling", "~Hat & Smiling", "Hat & ~Smiling", "Hat & Smiling"]


@pytest.mark.parametrize(
    "axes, request_, message",
    [
        (("Hair", "Hair=red | Hair=black"), "", "both of 'Hair': name two attributes"),
        (("Hair", "Smiling | Hat"), "", "'Smiling | Hat' is no axis of a grid"),
        (("Hat:2", "Hair"), "", "'Hat:2' is no axis"),
        (("Hair in (red):2", "Hat"), "", "is no axis of a grid"),
        (("Hair", "Smiling & Hat"), "", "'Smiling & Hat' is no axis of a grid"),
        (("Hair", "Hut"), "", "unknown attribute 'Hut'; did you mean 'Hat'"),
        (("Hair", "Hat"), "Hair=red", "contradicts itself: 'Hair'"),
    ],
)
def test_what_is_no_grid(config, axes, request_, message):
    with pytest.raises(ValueError, match=message):
        crossed(*axes, request_, config)


def test_quotes_without_end_take_no_time(config):
    """Their number of readings doubles with each pair, for a pattern that has two ways to read one."""
    with pytest.raises(ValueError):
        parse_composition("Hair in (" + 901 * '"', config)
    assert crossed("'Hair'", "Hat", "", config)[1] == ["black", "blond", "red"]
