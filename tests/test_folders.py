"""Folders as people fill them: names, links, tables of every program, classes, splits, and what is left out."""

import json
import os
import unicodedata

import pytest
from dataset_folders import load, write_image
from datasets import Dataset
from PIL import Image

from jem_hf.data.columns import attribute_values

SMILING = ["yes", "no", "no", "yes", "yes", "no"]


def write(folder, table, name="metadata.csv", images=None, encoding="utf-8"):
    """Images whose grey level is their number, and a table."""
    for i, image in enumerate(images or [f"{i}.png" for i in range(6)]):
        write_image(folder / image, 10 * i)
    if table is not None:
        (folder / name).write_bytes(table.encode(encoding))
    return folder


def table(header="file_name,Smiling", rows=None, separator=","):
    rows = rows or [[f"{i}.png", word] for i, word in enumerate(SMILING)]
    return "\n".join([header, *(separator.join(row) for row in rows)]) + "\n"


def numbers(rows):
    return [round(image.getpixel((0, 0))[0] / 10) for image in rows[:]["image"]]


def warnings(caplog):
    return " ".join(record.message for record in caplog.records)


@pytest.mark.parametrize(
    "name", ["test shot.png", "from the train.PNG", "val (2) [a]*?#%.webp", "Übung.BMP", "b.tiff"]
)
def test_no_name_of_a_file_has_a_meaning(tmp_path, name):
    images = [name, *(f"{i}.png" for i in range(1, 6))]
    folder = write(tmp_path / "train [2024]*?#%ü", table(rows=list(map(list, zip(images, SMILING)))), images=images)
    dataset = load(folder)
    assert sorted(numbers(dataset["train"])) == list(range(6)) and list(dataset) == ["train"]


def test_hidden_files_are_passed_over_and_links_followed(tmp_path):
    write(tmp_path / "elsewhere" / "deep", None)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat").symlink_to(tmp_path / "elsewhere" / "deep")
    (folder / "dog").mkdir()
    (folder / "dog" / "a.png").symlink_to(tmp_path / "elsewhere" / "deep" / "0.png")
    (folder / "dog" / "loop").symlink_to(folder)
    for name in (".DS_Store", "._a.png", "Thumbs.db", "__MACOSX/._a.png", ".hidden/a.png"):
        (folder / "dog" / name).parent.mkdir(exist_ok=True)
        (folder / "dog" / name).write_bytes(b"\0")
    rows = load(folder)["train"]
    assert rows.features["label"].names == ["cat", "dog"] and rows["label"][:] == [0] * 6 + [1]


@pytest.mark.parametrize(
    "separator, encoding, name",
    [
        (";", "cp1252", "metadata.csv"),
        ("\t", "utf-16", "metadata.tsv"),
        (", ", "utf-8-sig", "Metadata.CSV"),
        (" ;", "utf-8", "metadata.csv"),
    ],
)
def test_tables_as_programs_write_them(tmp_path, separator, encoding, name):
    rows = [["", f"{i}.png", word, "a, b" if ";" in separator else "a", ""] for i, word in enumerate(SMILING)]
    text = table(separator.join(["", "file_name", "Hüt", "Note", ""]), rows, separator) + separator * 4 + "\r\n"
    rows = load(write(tmp_path / "data", text.replace("\n", "\r\n"), name, encoding=encoding))["train"]
    assert rows["Hüt"][:] == [word == "yes" for word in SMILING] and rows.column_names == ["image", "Hüt"]


def test_the_first_line_of_excel_names_the_separator(tmp_path):
    text = "sep=;\n" + table("file_name;Smiling, really", separator=";")
    assert load(write(tmp_path / "data", text))["train"].column_names == ["image", "Smiling, really"]
    with pytest.raises(ValueError, match="line 3 has 1 cells and the header 2"):
        load(write(tmp_path / "data", text.replace("0.png;yes", "0.png")))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "metadata.csv has no rows"),
        ("file_name,Smiling\n", "metadata.csv has no rows"),
        ("file_name,Hat,Hat\n0.png,1,0\n", "metadata.csv line 1 has the column 'Hat' twice: rename one"),
        ("file_name,image\n0.png,1\n", "metadata.csv line 1: .*'image'.* rename"),
        ("file_name,Hat\n0.png,1\n1.png\n", "line 3 has 1 cells and the header 2"),
        ('file_name,Hat\n0.png,"1\n1.png,0\n', "metadata.csv line 3: unexpected end"),
        ("file_name,Hat\n,1\n1.png,0\n", "metadata.csv line 2 names ''"),
        ("name,Hat\nx.png,1\n", "none of the columns name, Hat names the images: call it file_name"),
        ("file_name,Hat\n0.png,1\n1.png,0\n./0.png,0\n", "csv line 2 and .*csv line 4 contradict each other about"),
        (
            "file_name,split,Hat\n0.png,train,1\n1.png,,0\n",
            "line 3: split 'nothing' is none of train, .*: write one in each",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "data", text))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_only_an_empty_cell_is_missing(tmp_path, name):
    words = ["None", "NA", "nan", "null", None, "None", "NA", "nan", "null", "None"]
    rows = [{"file_name": f"{i}.png", "Hat": word, "Size": i % 3} for i, word in enumerate(words)]
    folder = write(tmp_path / "data", None, images=[row["file_name"] for row in rows])
    if name.endswith("parquet"):
        Dataset.from_list(rows).to_parquet(folder / name)
    elif name.endswith("jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        (folder / name).write_text(table("file_name,Hat,Size", [[str(v or "") for v in r.values()] for r in rows[1:]]))
    loaded = load(folder)["train"]
    assert loaded.features["Hat"].names == ["NA", "None", "nan", "null"]
    assert loaded["Hat"][-6:] == [None, 1, 0, 2, 3, 1]


def test_spellings_of_a_value_are_one_value(tmp_path, caplog):
    rows = zip(
        ["Yes", "Y", "no", "N", "yes", ""],
        ["Black", " black", "Blond", "Black", "", "blond"],
        ["1", "0", "1.0", "0", "", "1"],
    )
    text = table("file_name, Beard, Hair, Hat", [[f"{i}.png", *row] for i, row in enumerate(rows)], ", ")
    loaded = load(write(tmp_path / "data", text))["train"]
    assert attribute_values(loaded.features)[1] == {"Hair": ["Black", "Blond"]}
    assert loaded["Beard"][:] == [True, True, False, False, True, None]
    assert loaded["Hair"][:] == [0, 0, 1, 0, None, 1]
    assert "'N' = 'no', 'Y' = 'Yes' = 'yes'; 'Hair' has 'Black' = 'black'" in warnings(caplog)


def test_words_for_no_and_off_are_words(tmp_path):
    rows = list(zip([f"{i}.png" for i in range(6)], ["on", "off", "dim"] * 2, ["no", "short", "long"] * 2, "ynynyn"))
    folder = write(tmp_path / "data", table("file_name,Lamp,Beard,Hat", rows))
    loaded = load(folder, values={"Lamp": ["off", "dim", "on"], "Hat": [False, True]})["train"]
    assert loaded["Lamp"][:] == [2, 0, 1] * 2 and loaded["Hat"][:] == [1, 0] * 3
    assert loaded.features["Beard"].names == ["long", "no", "short"]
    for value in (True, "True", "yes", "Y", 1):
        assert numbers(load(folder, novel=[{"Hat": value, "Beard": "No"}])["novel"]) == [0]


def test_a_column_of_numbers_in_any_notation(tmp_path):
    rows = list(zip([f"{i}.png" for i in range(6)], ["1.0", "0", "1", "", "0.0", "1"], ["18,5"] * 3 + ["19,5"] * 3))
    loaded = load(write(tmp_path / "data", table("file_name;Hat;Age", rows, ";")))["train"]
    assert loaded.column_names == ["image", "Hat"]
    assert loaded["Hat"][:] == [True, False, True, None, False, True]


def test_tags_in_one_cell_are_attributes(tmp_path, caplog):
    cells = ["Hat, smiling", "Smiling", "", "Hat; Smiling", "Hat", "Smiling"]
    rows = [[f"{i}.png", f'"{cell}"'] for i, cell in enumerate(cells)]
    loaded = load(write(tmp_path / "data", table("file_name,tags", rows)))["train"]
    assert loaded["Smiling"][:] == [True, True, None, True, False, True] and "'tags' has the tags Hat" in warnings(
        caplog
    )
    assert loaded["Hat"][:] == [True, False, None, True, True, False]


def test_text_with_commas_is_no_column_of_tags(tmp_path):
    rows = [[f"{i}.png", f'"a {i}th picture, of {i} men"', word] for i, word in enumerate(SMILING)]
    assert load(write(tmp_path / "data", table("file_name,Note,Smiling", rows)))["train"].column_names[1:] == [
        "Smiling"
    ]


def test_classes_are_folders_and_splits_are_folders(tmp_path, caplog):
    images = [f"{split}/{label}/{i}.png" for split in ("train", "Val", "testing") for label in "ab" for i in (1, 2)]
    dataset = load(write(tmp_path / "data", None, images=images))
    assert {split: rows["label"][:] for split, rows in dataset.items()} == {
        "train": [0, 0, 1, 1],
        "validation": [0, 0, 1, 1],
        "test": [0, 0, 1, 1],
    }
    assert "'Val' is 'validation', 'testing' is 'test'" in warnings(caplog)
    images = [f"classes/{label}/{i}.png" for label in ("bus", "train", "train station") for i in range(2)]
    folder = write(tmp_path / "nested", None, images=[*images, "classes/readme.png"])
    (folder / "classes" / "bus" / "2.heic").write_bytes(b"\0")
    rows = load(folder)["train"]
    assert rows.features["label"].names == ["bus", "train", "train station"] and len(rows) == 6
    assert "left out 2 of 8 files (no image in the folder of a class), the first " in warnings(caplog)
    with pytest.raises(ValueError, match=r"no labels: put a table metadata.csv beside them \(is it a.csv\?"):
        load(write(tmp_path / "unlabelled", table(), "a.csv"))
    with pytest.raises(ValueError, match="folder 'more' stands beside the splits test, train"):
        load(write(tmp_path / "mixed", None, images=["train/a/1.png", "test/a/1.png", "more/a/1.png"]))


def test_tables_in_split_folders_have_one_meaning(tmp_path, caplog):
    """The test split alone would make Size a column of three numbers, and Color one of one value."""
    for split, cells in (("train", ["red,1", "blue,2", "Red,x"]), ("test", ["red,3", "red,1", "red,2"])):
        rows = [[f"{i}.png", cell] for i, cell in enumerate(cells)]
        header = "file_name,Color,Size" + ",Hat" * (split == "train")
        rows = [[*row, "yes"] if split == "train" else row for row in rows]
        write(tmp_path / "data" / split, table(header, rows), images=["0.png", "1.png", "2.png"])
    dataset = load(tmp_path / "data")
    assert dataset["train"].features == dataset["test"].features
    assert dataset["train"].features["Size"].names == ["1", "2", "3", "x"] and dataset["test"]["Color"][:] == [1, 1, 1]
    assert dataset["test"]["Hat"][:] == [None] * 3
    assert f"{tmp_path / 'data' / 'test' / 'metadata.csv'} has no column 'Hat'" in warnings(caplog)


def test_a_column_may_say_the_split(tmp_path):
    rows = list(zip([f"{i}.png" for i in range(6)], ["training", "Train", "dev", "val", "test", "test"], SMILING))
    dataset = load(write(tmp_path / "data", table("file_name,Split,Smiling", rows)))
    assert {split: numbers(rows) for split, rows in dataset.items()} == {
        "train": [0, 1],
        "validation": [2, 3],
        "test": [4, 5],
    }
    rows = [[name, {"train": "yes"}.get(split.lower(), "no"), word] for name, split, word in rows]
    assert "split" in load(write(tmp_path / "hair", table("file_name,split,Smiling", rows)))["train"].column_names


def test_repeated_rows_and_images_without_one_are_counted(tmp_path, caplog):
    rows = [["0.png", "yes"], ["1.png", "no"], [".\\0.png", "Yes"], ["0.png", "yes"]]
    assert numbers(load(write(tmp_path / "data", table(rows=rows)))["train"]) == [0, 1]
    assert "2 rows repeat another one" in warnings(caplog)
    assert "left out 4 of 6 files (no table has a row), the first " in warnings(caplog)


def test_cells_that_name_images(tmp_path, caplog):
    images = ["a/0.png", "b/1.png", unicodedata.normalize("NFD", "Müller.png"), "3.png", "4.png", "a/b/5.png"]
    names = ["a\\0.png", "1.png", "Müller.png", str(tmp_path / "data" / "3.png"), "data/4.png", "./a//b/5.png"]
    text = table("Smiling,Bild", list(map(list, zip(SMILING, names))))
    rows = load(write(tmp_path / "data", text, images=images))["train"]
    assert sorted(zip(numbers(rows), rows["Smiling"][:])) == [(i, word == "yes") for i, word in enumerate(SMILING)]
    assert "column 'Bild' names the images" in warnings(caplog)


def test_rows_are_in_the_order_of_their_files(tmp_path):
    """On which the split of a seed depends."""
    rows = [[f"{i}.png", "yes" if i % 2 else "no"] for i in range(11, -1, -1)]
    folder = write(tmp_path / "data", table(rows=rows), images=[f"{i}.png" for i in range(12)])
    assert numbers(load(folder)["train"]) == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_named_attributes_are_kept_however_rare_and_others_said(tmp_path, caplog):
    rows = [[f"{i}.png", word, "yes" if i == 3 else "no", f"{i}.5"] for i, word in enumerate(SMILING)]
    folder = write(tmp_path / "data", table("file_name,Smiling,Scar,Age", rows))
    named = load(folder, attributes=["Smiling", "Scar"], min_frequency=0.4)["train"]
    assert named.column_names == ["image", "Smiling", "Scar"] and not caplog.records
    assert load(folder, min_frequency=0.4)["train"].column_names == ["image", "Smiling"]
    (record,) = caplog.records
    assert "'Age', for it holds numbers that are not whole" in record.message
    assert "'Scar', for 16.7% are positive, not 0.4 to 1.0" in record.message
    with pytest.raises(ValueError, match=r"no attribute is positive in 0.9 to 1.0"):
        load(folder, min_frequency=0.9)


def test_parquet_files_are_split_by_their_whole_names(tmp_path):
    rows = Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 4, "Hat": [True, False, True, False]})
    for name in ("my test [1].parquet", "data/val-00000-of-00001.parquet", "data/extra_a-00000-of-00001.parquet"):
        (tmp_path / "a [b]" / name).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / "a [b]" / name)
    assert list(load(tmp_path / "a [b]")) == ["train", "validation", "extra_a"]


def test_the_users_own_folder_called_avatars(tmp_path, monkeypatch):
    from jem_hf import load_attribute_dataset

    write(tmp_path / "avatars", table())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"built-in faces and a folder here: './avatars' is the folder"):
        load_attribute_dataset("avatars")
    assert len(load_attribute_dataset("./avatars")["train"]) == 6


def test_a_folder_needs_no_cache_and_others_name_it(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("not a folder")
    folder = write(tmp_path / "data", table())
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path / "home"))
    from jem_hf import load_attribute_dataset

    rows = load_attribute_dataset(folder, split={"test": 0.5})["train"]
    rows.to_parquet(tmp_path / "rows.parquet")
    for name in (tmp_path / "rows.parquet", "nobody/nothing"):
        with pytest.raises(ValueError, match=f"cannot write to the cache {tmp_path}.*--cache_dir or JEM_HF_CACHE"):
            load_attribute_dataset(name)


def test_a_name_that_is_not_utf8_is_a_class_too(tmp_path):
    for i, name in enumerate([b"Levi's\xae", b"Other"]):
        write_image(os.fsencode(tmp_path / "data") + b"/" + name + b"/0.png", i)
    assert load(tmp_path / "data")["train"].features["label"].names == ["Levi's?", "Other"]


def test_a_column_of_splits_in_a_parquet_file(tmp_path):
    image = Image.new("RGB", (4, 4))
    words = ["train", "val", "train", "testing", "train", "val"]
    content = {"image": [image] * 6, "Hat": [True, False] * 3, "Split": words}
    Dataset.from_dict(content).to_parquet(tmp_path / "faces.parquet")
    dataset = load(tmp_path / "faces.parquet")
    assert {name: len(rows) for name, rows in dataset.items()} == {"train": 3, "validation": 2, "test": 1}
    assert dataset["train"].column_names == ["image", "Hat"]
    Dataset.from_dict(content | {"Split": [*words[:5], "else"]}).to_parquet(tmp_path / "faces.parquet")
    with pytest.raises(ValueError, match="row 5: Split 'else' is no split"):
        load(tmp_path / "faces.parquet")
    Dataset.from_dict(content | {"Split": ["banana", "lit"] * 3}).to_parquet(tmp_path / "faces.parquet")
    assert load(tmp_path / "faces.parquet")["train"].column_names == ["image", "Hat", "Split"]


def test_parquet_files_whose_names_hold_splits_are_pointed_out(tmp_path, caplog):
    rows = Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 4, "Hat": [True, False, True, False]})
    for name in ("faces_train", "faces_test"):
        rows.to_parquet(tmp_path / "data" / f"{name}.parquet")
    assert list(load(tmp_path / "data")) == ["train"]
    assert "faces_test.parquet and 1 more are read as one split: for splits call them train.parquet" in caplog.text


def test_lists_of_numbers_are_tags_and_objects_are_left_out(tmp_path, caplog):
    labels = [[1, 3], [3], [2, 3], [], [1, 3], [2]]
    rows = [{"file_name": f"{i}.png", "labels": each, "box": {"x": i}} for i, each in enumerate(labels)]
    folder = write(tmp_path / "data", "\n".join(map(json.dumps, rows)), "metadata.jsonl")
    loaded = load(folder)["train"]
    assert {name: loaded[name][:] for name in ("1", "3")} == {
        "1": [True, False, False, False, True, False],
        "3": [True, True, True, False, True, False],
    }
    assert set(loaded.column_names) == {"image", "1", "2", "3"} and "left out box: objects" in warnings(caplog)
