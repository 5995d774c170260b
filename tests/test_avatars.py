import numpy as np
import pytest

from jem_hf.data.avatars import ATTRIBUTES, NOVEL_COMBINATIONS, load_avatars, render
from jem_hf.data.loading import load_attribute_dataset


@pytest.fixture(scope="module")
def avatars(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return load_attribute_dataset(
        "avatars", num_train=30, num_test=10, num_novel=20, size=32, num_proc=1, cache_dir=cache
    )


def test_render_is_deterministic_and_depends_on_index_and_seed():
    image, labels = render(3, seed=1, size=32)
    again, labels_again = render(3, seed=1, size=32)
    assert image.mode == "RGB" and image.size == (32, 32)
    assert np.array_equal(image, again) and labels == labels_again and list(labels) == ATTRIBUTES
    assert not np.array_equal(image, render(4, seed=1, size=32)[0])
    assert not np.array_equal(image, render(3, seed=2, size=32)[0])


def test_background_and_clothes_have_the_color_of_their_labels():
    """The top left corner is background (hats and hair aside), the middle of the last row clothing (beards aside)."""
    for index in range(60):
        image, labels = render(index, size=32)
        red, green, blue = (int(value) for value in np.asarray(image)[31, 16])
        if not labels["Beard"]:
            assert labels["Red_Clothes"] == (red > 2 * blue)
        if not (labels["Hat"] or labels["Afro"] or labels["Long_Hair"]):
            red, green, blue = (int(value) for value in np.asarray(image)[0, 0])
            assert labels["Blue_Background"] == (blue > green + 30)
            assert labels["Green_Background"] == (green > red + 30 and green > blue + 30)


def test_hair_has_a_color_only_where_there_is_hair_and_groups_exclude_each_other(avatars):
    for split in avatars.values():
        for row in split.remove_columns("image"):
            top = [row["Hat"], row["Bald"], row["Long_Hair"], row["Afro"]]
            hair = [row["Black_Hair"], row["Blond_Hair"], row["Red_Hair"], row["Gray_Hair"]]
            assert sum(top) <= 1 and sum(hair) == (0 if row["Hat"] or row["Bald"] else 1)
            assert row["Eyeglasses"] + row["Sunglasses"] <= 1 and row["Beard"] + row["Moustache"] <= 1
            assert row["Eyes_Closed"] + row["Wide_Eyes"] + row["Heart_Eyes"] + row["Sunglasses"] <= 1


def test_novel_combinations_occur_in_split_novel_only(avatars):
    def matches(row):
        return [combination.items() <= row.items() for combination in NOVEL_COMBINATIONS]

    assert {split: len(rows) for split, rows in avatars.items()} == {"train": 30, "test": 10, "novel": 20}
    assert all("Pablo Stanley" in rows.info.description for rows in avatars.values())
    for split, rows in avatars.items():
        assert all(any(matches(row)) == (split == "novel") for row in rows.remove_columns("image"))


def test_avatars_are_cached_and_splits_are_prefixes_of_larger_ones(tmp_path, avatars, monkeypatch):
    arguments = {"num_test": 5, "num_novel": 5, "size": 32, "num_proc": 1, "cache_dir": str(tmp_path)}
    small = load_avatars(num_train=5, **arguments)
    for split in small:
        assert small[split][:]["image"] == avatars[split].select(range(5))[:]["image"]
    monkeypatch.setattr("jem_hf.data.avatars.render", None)  # a second rendering would fail
    assert load_avatars(num_train=5, **arguments)["train"][:]["image"] == small["train"][:]["image"]


def test_two_processes_render_the_same_avatars(tmp_path, avatars):
    parallel = load_avatars(30, 10, 20, size=32, num_proc=2, cache_dir=str(tmp_path))
    assert parallel["train"][:] == avatars["train"][:]
