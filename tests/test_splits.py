import json

import pytest
import torch

from jem_hf.data.splits import (
    ZERO_SHOT_CANDIDATES,
    balanced_split,
    make_split,
    read_splits,
    write_splits,
    zero_shot_combinations,
)


def test_random_split_uses_every_row_once_and_depends_on_the_seed_alone():
    labels, shares = torch.empty(103, 0, dtype=torch.int64), {"validation": 0.2, "test": 0.1}
    splits = balanced_split(labels, shares, seed=3)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 72, "validation": 21, "test": 10}
    assert sorted(row for rows in splits.values() for row in rows) == list(range(103))
    assert all(rows == sorted(rows) for rows in splits.values())
    assert splits == balanced_split(labels, shares, seed=3) == make_split({"seed": 3, **shares}, labels)
    assert splits["test"] != balanced_split(labels, shares, seed=4)["test"]


def test_balanced_split_divides_rare_positives_in_proportion():
    """Ten positives in 1,000 rows: a random tenth of the rows holds exactly one of them in 39% of the cases only."""
    labels = torch.zeros(1000, 3, dtype=torch.int64)
    labels[::100, 0] = 1
    labels[5:105:5, 1] = 1  # 20 positives: not below 2%
    labels[7:17, 2], labels[500:, 2] = 1, -1
    for seed in range(10):
        splits = balanced_split(labels, {"validation": 0.2, "test": 0.1}, seed)
        assert {name: len(rows) for name, rows in splits.items()} == {"train": 700, "validation": 200, "test": 100}
        assert sorted(row for rows in splits.values() for row in rows) == list(range(1000))
        for attribute in (0, 2):
            positives = {name: int((labels[rows, attribute] == 1).sum()) for name, rows in splits.items()}
            assert positives == {"train": 7, "validation": 2, "test": 1}
    assert any((labels[balanced_split(labels, {"test": 0.1}, seed)["test"], 1] == 1).sum() != 2 for seed in range(10))
    random = [int(labels[balanced_split(labels[:, :0], {"test": 0.1}, seed)["test"], 0].sum()) for seed in range(10)]
    assert any(positives != 1 for positives in random)


def test_a_split_has_its_usual_name_whatever_it_is_called():
    splits = make_split({"dev": 0.2, "testing": 0.1}, torch.zeros(10, 1, dtype=torch.int64))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 7, "validation": 2, "test": 1}


def test_candidates_of_the_paper():
    candidates = ZERO_SHOT_CANDIDATES["celeba-zero-shot"]
    assert len(candidates) == 60 - 2 + 36  # 15 pairs of six attributes, less women with and without beard; 18 of hair
    assert all(len(candidate) == 2 for candidate in candidates)
    assert {"Young": False, "Blond_Hair": True} in candidates and {"Male": True, "No_Beard": False} in candidates
    assert {"Male": False, "No_Beard": True} not in candidates
    assert not any({"Black_Hair", "Brown_Hair"} <= candidate.keys() for candidate in candidates)
    assert all(value for candidate in candidates for name, value in candidate.items() if name.endswith("_Hair"))


def test_combinations_of_the_right_frequency_are_held_out():
    labels = torch.zeros(1000, 2, dtype=torch.int64)
    labels[:500, 0] = 1
    labels[:5, 1] = 1  # (1, 1): .5%
    labels[500:550, 1] = 1  # (0, 1): 5%
    labels[990:, 1] = -1  # matches nothing
    pairs = [{"a": a, "b": b} for a in (False, True) for b in (False, True)]
    assert zero_shot_combinations(labels, ["a", "b"], pairs) == [{"a": True, "b": True}]
    assert zero_shot_combinations(labels, ["a", "b"], pairs, max_frequency=0.051) == [
        {"a": False, "b": True},
        {"a": True, "b": True},
    ]
    assert zero_shot_combinations(labels, ["a", "b"], [{"a": False, "b": True}], 0.05, 0.06) == [
        {"a": False, "b": True}
    ]


def test_splits_survive_their_file(tmp_path):
    splits = make_split({"test": 0.25, "seed": 1}, torch.empty(20, 0, dtype=torch.int64))
    write_splits(tmp_path / "splits.json", splits, 20, seed=1)
    assert read_splits(tmp_path / "splits.json", 20) == splits
    assert json.loads((tmp_path / "splits.json").read_text()) == {"seed": 1, "num_rows": 20, "splits": splits}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"num_rows": 30, "splits": {"train": [0]}}, "divides 30 rows and the dataset has 20"),
        ({"splits": {"train": [0, 20]}}, "row 20 of split 'train' is not among 20 rows"),
        ({"splits": {"train": [0, 1], "test": [1]}}, "row 1 of split 'test' is in two places"),
        ({"train": [0]}, "no file of splits"),
        ([], "no file of splits"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_splits(tmp_path / "splits.json", 20)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "sorted", "test": 0.1}, "unknown kind of split 'sorted'; choose from random, balanced"),
        ({"kind": "random"}, "names no share"),
        ({"test": 1.5}, "share of split 'test' is a number between 0 and 1, not 1.5"),
        ({"test": 0.6, "validation": 0.5}, "split 'train' gets none of 10 rows"),
        ({"test": 0.01}, "split 'test' gets none of 10 rows"),
        ({"train": 0.9}, "'train' is the rest"),
        ("train", "a split is a dict"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_split(settings, torch.zeros(10, 1, dtype=torch.int64))
