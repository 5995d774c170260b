import pytest

from jem_hf.requests_jem import format_request, parse_request


@pytest.mark.parametrize(
    "request_, labels",
    [
        ("", [-1, -1, -1]),
        ({}, [-1, -1, -1]),
        ("Smiling", [1, -1, -1]),
        ("Smiling & ~Hat", [1, -1, 0]),
        ("~~Smiling&Hair=red", [1, 2, -1]),
        ("Smiling & Smiling", [1, -1, -1]),
        ({"Smiling": False, "Hair": "blond", "Hat": None}, [0, 1, -1]),
        ({"Hair": 2, "Hat": 1}, [-1, 2, 1]),
        ({"Hat": "True"}, [-1, -1, 1]),
    ],
)
def test_requests(config, request_, labels):
    assert parse_request(request_, config) == labels
    assert parse_request(format_request(labels, config), config) == labels


@pytest.mark.parametrize(
    "request_, message",
    [
        ("Smilng", "unknown attribute 'Smilng'; did you mean 'Smiling'"),
        ({"Het": True}, "did you mean 'Hat'"),
        ("Smiling & ~Smiling", "contradicts itself: 'Smiling'"),
        ("Hair=red & Hair=black", "contradicts itself: 'Hair'"),
        ("Hair=rad", "no value 'rad'; did you mean 'red'"),
        ("Hair", "True is not a value of attribute 'Hair'"),
        ({"Smiling": 2}, "2 is not a value"),
        ({"Smiling": 0.5}, "0.5 is not a value"),
        ("~Hair=red", "cannot negate"),
        ("Smiling &", "attribute is missing"),
        (["Smiling"], "a request is a string"),
        (3, "a request is a string"),
    ],
)
def test_wrong_requests(config, request_, message):
    with pytest.raises(ValueError, match=message):
        parse_request(request_, config)
