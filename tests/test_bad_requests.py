"""Requests, labels and configs of every kind: each is understood exactly, or refused by one `ValueError`."""

from itertools import product

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st

from jem_hf import AttributeTensors, JemConfig, JemModel
from jem_hf.models.requests_jem import MAX_DEPTH, MAX_LENGTH, format_request, parse_composition, parse_request

NETWORK = {"backbone_kwargs": {"width": 4, "hidden_size": 8}, "image_size": 8}
CONFIG = JemConfig(
    attributes=["Smiling", "Hair", "5_o'Clock | later", "Hat"],
    attribute_values={"Hair": ["black", "blond", 'it\'s "red"']},
    **NETWORK,
)
VECTORS = list(product(*(range(v) for v in CONFIG.num_values)))
MODEL = JemModel(CONFIG).eval()

quick = settings(max_examples=200, derandomize=True, deadline=None, database=None)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3)
)


def refused(call, *errors):
    """What a call returns, or None and one line that is not empty where it raises one of the errors."""
    try:
        return call()
    except (ValueError, *errors) as error:
        assert str(error).strip() and (errors or "\n" not in str(error))


@settings(quick, max_examples=1000)
@given(
    st.text()
    | st.text("&|~()=: '\"ab")
    | st.lists(st.sampled_from([*"&|~()=:'\" ", "Hat", "Hair", "black", "2"])).map("".join)
)
def test_any_text_is_understood_or_refused(text):
    composition = refused(lambda: parse_composition(text, CONFIG))
    if composition is not None:
        assert composition.alternatives and all(weight > 0 for weight in composition.weights)


@quick
@given(anything | st.dictionaries(st.sampled_from(CONFIG.attributes), scalars))
def test_any_object_is_understood_or_refused(request_):
    composition = refused(lambda: parse_composition(request_, CONFIG))
    if composition is not None and not isinstance(request_, str):
        (labels,) = composition.alternatives
        assert all(-1 <= label < v for label, v in zip(labels, CONFIG.num_values))


names = st.text(min_size=1, max_size=8)


@quick
@given(st.data())
def test_names_and_values_of_any_kind_return(data):
    attributes = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
    values = {attributes[0]: data.draw(st.lists(st.text(max_size=8), min_size=2, max_size=4, unique=True))}
    config = refused(lambda: JemConfig(attributes=attributes, attribute_values=values))
    if config is None:  # "a=b" and "a" with the value "b"
        return
    labels = [data.draw(st.integers(-1, v - 1)) for v in config.num_values]
    assert parse_request(format_request(labels, config), config) == labels


leaves = st.integers(0, 3).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, CONFIG.num_values[k] - 1)))
trees = st.recursive(
    leaves,
    lambda inner: st.tuples(st.just("~"), inner) | st.tuples(st.sampled_from("&|"), inner, inner),
    max_leaves=12,
)


def write(tree):
    """In brackets throughout; binding is tested by the parser's own tests."""
    operator, *parts = tree
    if operator == "~":
        return f"~({write(parts[0])})"
    if operator in ("&", "|"):
        return f"({write(parts[0])} {operator} {write(parts[1])})"
    return format_request([parts[0] if k == operator else -1 for k in range(4)], CONFIG)


def is_met(tree, labels):
    operator, *parts = tree
    if operator == "~":
        return not is_met(parts[0], labels)
    if operator in ("&", "|"):
        return (all if operator == "&" else any)(is_met(part, labels) for part in parts)
    return labels[operator] == parts[0]


@settings(quick, max_examples=300)
@given(trees)
def test_alternatives_are_those_found_by_trying_every_label_vector(tree):
    allowed = [is_met(tree, labels) for labels in VECTORS]
    composition = refused(lambda: parse_composition(write(tree), CONFIG))
    assert (composition is None) == (not any(allowed))
    if composition is not None:
        met = [
            sum(all(a in (-1, y) for a, y in zip(alternative, labels)) for alternative in composition.alternatives)
            for labels in VECTORS
        ]
        assert met == list(map(int, allowed))


@pytest.mark.parametrize(
    "text, message",
    [
        ("(" * 10_000, f"more than {MAX_DEPTH} brackets"),
        ("~" * 10_000 + "Hat", f"at most {MAX_LENGTH}"),
        ("~" * 9_000 + "Hat", f"more than {MAX_DEPTH} brackets"),
        ("(" * 60 + "Hat" + ")" * 60, f"more than {MAX_DEPTH} brackets"),
        ("Hat" * 10_000, f"at most {MAX_LENGTH}"),
    ],
)
def test_deep_and_long_requests_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_composition(text, CONFIG)


def test_brackets_beside_each_other_are_not_deep():
    text = " & ".join(["(((~~Hat)))"] * 200)
    assert parse_request(text, CONFIG) == [-1, -1, -1, 1]
    assert parse_request("(" * MAX_DEPTH + "Hat" + ")" * MAX_DEPTH, CONFIG) == [-1, -1, -1, 1]


def test_a_request_of_exponential_time_is_refused():
    """Ten pigeons do not fit into nine holes: short to say, long to find out."""
    config = JemConfig(attributes=[f"{p}{h}" for p in range(10) for h in range(9)])
    housed = [f"({' | '.join(f'{p}{h}' for h in range(9))})" for p in range(10)]
    apart = [f"~({p}{h} & {q}{h})" for h in range(9) for p in range(10) for q in range(p)]
    with pytest.raises(ValueError, match="too intricate"):
        parse_composition(" & ".join(housed + apart), config)


dtypes = st.sampled_from(
    [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.complex64]
)
arrays = st.builds(
    lambda shape, dtype, seed: torch.randint(-2, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 4), max_size=3) | st.just([2, 4]),
    dtypes,
    st.integers(0, 99),
)


@quick
@given(arrays | anything)
def test_labels_are_scored_exactly_or_refused(labels):
    x = torch.zeros(2, 3, 8, 8)
    scores = refused(lambda: MODEL.log_joint(x, labels))
    if scores is None:
        return
    logits = MODEL.label_distribution(x).logits
    for b, row in enumerate(labels.tolist()):
        terms = [logits[b, k, y] if y >= 0 else logits[b, k].logsumexp(0) for k, y in enumerate(map(int, row))]
        torch.testing.assert_close(scores[b], sum(terms))


@quick
@given(arrays | anything, arrays | anything, anything)
def test_tensors_of_a_dataset_are_taken_as_they_are_or_refused(images, labels, attributes):
    tensors = refused(lambda: AttributeTensors(images, labels, attributes))
    if tensors is not None:
        assert tensors.images is images and tensors.labels is labels


fields = st.fixed_dictionaries(
    {"attributes": st.just(["Hat", "Hair"]) | anything},
    optional={
        name: anything
        for name in JemConfig.__annotations__
        if name not in ("model_type", "attributes", "has_no_defaults_at_init")
    },
)


@settings(quick, max_examples=150)
@given(fields)
def test_a_config_of_any_content_is_whole_or_refused(content):
    config = refused(lambda: JemConfig(**content), StrictDataclassError)
    if config is not None:
        again = JemConfig.from_dict(config.to_dict())
        assert again.to_dict() == config.to_dict() and min(config.num_values) >= 2


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("guidance_scale", float("nan"), "guidance_scale is a finite number, not nan"),
        ("guidance_scale", float("inf"), "guidance_scale is a finite number"),
        ("flow_time", float("nan"), "flow_time is a finite number from 0 on, not nan"),
        ("step_size", -1.0, "step_size is a finite number from 0 on"),
        ("noise_scale", float("inf"), "noise_scale is a finite number from 0 on"),
        ("image_size", 0, "image_size is a finite number from 1 on"),
        ("num_channels", -3, "num_channels is a finite number from 1 on"),
        ("num_inference_steps", 0, "num_inference_steps is a finite number from 1 on"),
        ("attributes", ["Hair", "Hair=red", "Hat"], "two labels are called 'Hair=red'"),
    ],
)
def test_numbers_and_names_of_a_config(field, value, message):
    content = {"attributes": ["Hair", "Hat"], "attribute_values": {"Hair": ["red", "black"]}, field: value}
    with pytest.raises(ValueError, match=message):
        JemConfig(**content)


@pytest.mark.parametrize("kwargs", [{"widht": 4}, {"width": "4"}, {"width": -1}, {"stem_stride": 3}])
def test_arguments_that_the_backbone_does_not_take(kwargs):
    with pytest.raises(ValueError, match=r"jem_cnn|stem_stride"):
        JemModel(JemConfig(attributes=["Hat"], image_size=8, backbone_kwargs=kwargs))


@pytest.mark.parametrize("content", [[1], "jem", {"model_type": "bert", "attributes": ["Hat"]}])
def test_configs_of_something_else(content):
    with pytest.raises(ValueError, match="not the config of a JemModel"):
        JemConfig.from_dict(content)
