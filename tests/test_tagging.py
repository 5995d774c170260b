"""Tags of many images: what they are, and that none is lost or stands twice whatever happens."""

import json
import os
import pickle
import shutil
from pathlib import Path

import datasets
import fresh_process
import numpy as np
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import pytest
import torch
from datasets.fingerprint import Hasher
from PIL import Image
from typer.testing import CliRunner

from jem_hf import JemImageProcessor, Tagger
from jem_hf.cli import app
from jem_hf.curation import table as tables
from jem_hf.curation.pictures import find_pictures
from jem_hf.curation.table import Table
from jem_hf.curation.tagging import tag_pictures
from jem_hf.metrics.thresholds import NEVER, choose_thresholds, parse_rule
from jem_hf.models.image_processing_jem import open_image

PROCESSOR = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture
def folder(model, tmp_path):
    """A model that does not know what it sees, on disk."""
    model.save_pretrained(tmp_path / "tiny")
    PROCESSOR.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def photos(tmp_path):
    """30 pictures in two folders, one of them broken, and a file that is none."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(30, 20, 24, 3), dtype=np.uint8)
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "photos" / ("more" if i % 2 else "") / f"{i:02}.png")
    (tmp_path / "photos" / "17.png").write_bytes(b"\x89PNG nonsense")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_columns_are_what_the_model_says(folder, model, photos):
    images = [Image.open(photos / name) for name in ("00.png", "02.png", "more/01.png")]
    tagger = Tagger(folder, thresholds={"Hat": 0.3})
    tags = tagger({"image": images})
    assert {name: type(values[0]) for name, values in tags.items()} == tagger.columns
    x = PROCESSOR(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        p, log_p = model.predict_proba(x), model.log_marginal(x)
    assert tags["p_Hat"] == pytest.approx(p[:, 2, 1].tolist(), abs=1e-6)
    assert tags["p_Hair=red"] == pytest.approx(p[:, 1, 2].tolist(), abs=1e-6)
    assert tags["predicted_Hat"] == (p[:, 2, 1] >= 0.3).tolist()
    assert tags["predicted_Hair"] == [["black", "blond", "red"][v] for v in p[:, 1].argmax(-1)]
    assert tags["energy"] == pytest.approx((-log_p).tolist(), abs=1e-4)


def test_what_is_known_is_taken_as_known(folder, model, photos):
    tags = Tagger(folder, given="Hair=red")({"image": [photos / "00.png"]})
    assert tags["p_Hair=red"] == [1.0] and tags["predicted_Hair"] == ["red"]
    x = PROCESSOR(Image.open(photos / "00.png"), return_tensors="pt")["pixel_values"]
    assert tags["energy"] == pytest.approx([-model.log_joint(x, torch.tensor([[-1, 2, -1]])).item()], abs=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"thresholds": {"Hut": 0.5}}, "unknown binary attribute 'Hut'; did you mean 'Hat'"),
        ({"thresholds": {"Hair": 0.5}}, "unknown binary attribute 'Hair'"),
        ({"outlier_score": True}, "has no outlier score"),
        ({"given": "Hat & ~Hat"}, "contradicts itself"),
    ],
)
def test_what_no_tagger_can_do(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        Tagger(folder, **arguments)


@pytest.mark.slow
def test_a_data_set_is_mapped_by_several_processes(folder, photos):
    files = sorted(map(str, photos.glob("more/*.png")))
    rows = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    tagger = Tagger(folder)
    alone, together = (rows.map(tagger, batched=True, batch_size=4, num_proc=n) for n in (None, 2))
    for name in tagger.columns:
        assert alone[name] == together[name]
    assert list(alone["p_Hat"]) == pytest.approx(tagger({"image": files})["p_Hat"], abs=1e-6)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_a_table_has_every_picture_once(folder, photos, tmp_path, ending):
    path = tmp_path / f"tags{ending}"
    tagger = Tagger(folder)
    columns = {"image": str} | tagger.columns | {"error": str}
    some = find_pictures([photos / "more", photos / "0*.png"], PROCESSOR)
    assert len(some) == 15 + 5
    assert tag_pictures(tagger, some, Table(path, columns), num_proc=0) == {"tagged": 20, "broken": 0, "there": 0}
    everything = find_pictures([str(photos)], PROCESSOR)
    counts = tag_pictures(tagger, everything, Table(path, columns), batch_size=4, num_proc=2)
    assert counts == {"tagged": 10, "broken": 1, "there": 20}
    rows = read(path)
    assert (
        sorted(rows["image"]) == sorted(map(str, photos.rglob("*.png")))
        and not (tmp_path / f"tags{ending}.parts").exists()
    )
    (broken,) = [i for i, error in enumerate(rows["error"]) if error]
    assert rows["image"][broken].endswith("17.png") and rows["p_Hat"][broken] is None
    i = rows["image"].index(str(photos / "more" / "03.png"))
    expected = tagger({"image": [photos / "more" / "03.png"]})
    assert rows["p_Hat"][i] == pytest.approx(expected["p_Hat"][0], abs=1e-6)
    assert rows["predicted_Hair"][i] == expected["predicted_Hair"][0]
    assert rows["predicted_Hat"][i] is expected["predicted_Hat"][0]


def read(path):
    reader = {".parquet": pyarrow.parquet.read_table, ".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}
    return reader[path.suffix](path).to_pydict()


def test_a_broken_picture_can_end_it_and_loses_nothing(folder, photos, tmp_path):
    tagger = Tagger(folder)
    columns = {"image": str} | tagger.columns | {"error": str}
    pictures = find_pictures([photos], PROCESSOR)
    settings = dict(batch_size=8, num_proc=0, on_error="raise")
    with pytest.raises(ValueError, match=r"cannot read the image .*17\.png"):
        tag_pictures(tagger, pictures, Table(tmp_path / "tags.parquet", columns), **settings)
    before = pictures.names.index(str(photos / "17.png"))
    assert Table(tmp_path / "tags.parquet", columns).names() == set(pictures.names[:before])
    with pytest.raises(ValueError, match=r"17\.png"):
        tag_pictures(tagger, pictures, Table(tmp_path / "tags.parquet", columns), **settings)
    Image.new("RGB", (9, 9)).save(photos / "17.png")
    counts = tag_pictures(tagger, pictures, Table(tmp_path / "tags.parquet", columns), **settings)
    assert counts == {"tagged": len(pictures) - before, "broken": 0, "there": before}
    assert sorted(read(tmp_path / "tags.parquet")["image"]) == sorted(pictures.names)


KILLED = """
import os, sys
from jem_hf import JemImageProcessor, Tagger
from jem_hf.curation import table as tables
from jem_hf.curation.pictures import find_pictures
from jem_hf.curation.tagging import tag_pictures
tables.ROWS_A_PART = 8
tagger = Tagger(sys.argv[1])
table = tables.Table("tags.parquet", {"image": str} | tagger.columns | {"error": str})
progress = lambda done, total: os.kill(os.getpid(), 9) if done >= 20 else None
tag_pictures(tagger, find_pictures(["photos"], tagger.processor), table, batch_size=4, num_proc=0, progress=progress)
"""


@pytest.mark.slow
def test_killed_and_called_again(folder, photos, tmp_path):
    run = fresh_process.run(KILLED, str(folder), cwd=tmp_path)
    assert run.returncode == -9 and not (tmp_path / "tags.parquet").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(app, ["predict", folder, "photos", "-o", "tags.parquet", "--json"])
    assert result.exit_code == 2 and "was made with another data set, given, model, thresholds" in result.stderr
    code = KILLED.replace("done >= 20", "False")
    assert fresh_process.run(code, str(folder), cwd=tmp_path).returncode == 0
    images = read(tmp_path / "tags.parquet")["image"]
    assert len(images) == len(set(images)) == 31


def test_tables_of_something_else_are_left_alone(tmp_path):
    table = Table(tmp_path / "a.csv", {"image": str, "p": float}, {"model": "one"})
    table.add({"image": ["x"], "p": [0.5]})
    table.keep()
    for _ in range(2):
        with pytest.raises(ValueError, match="was made with another model"):
            Table(tmp_path / "a.csv", {"image": str, "p": float}, {"model": "two"})
        table.finish()
    with pytest.raises(ValueError, match=r"has other columns \(p, q\)"):
        Table(tmp_path / "a.csv", {"image": str, "q": float}, {"model": "one"})
    (tmp_path / "a.csv").unlink()
    assert Table(tmp_path / "a.csv", {"image": str}, {"model": "two"}).names() == set()
    with pytest.raises(ValueError, match=r"let it end in \.parquet, \.csv, \.jsonl"):
        Table(tmp_path / "a.xlsx", {"image": str})


def test_what_failed_is_tried_again_and_stands_once(tmp_path):
    columns = {"image": str, "p": float, "error": str}
    for ending in tables.FORMATS:
        path = tmp_path / f"table{ending}"
        table = Table(path, columns)
        table.add({"image": ["a", "b"], "p": [0.5, None], "error": [None, "broken"]})
        table.finish()
        table = Table(path, columns)
        assert table.names() == {"a"}
        table.add({"image": ["b", "c"], "p": [0.25, 1.0], "error": [None, None]})
        table.keep()
        shutil.copytree(table.parts, tmp_path / "kept")
        table.finish()
        shutil.copytree(tmp_path / "kept", table.parts)  # as if it was killed before it took them away
        shutil.rmtree(tmp_path / "kept")
        Table(path, columns).finish()
        assert read(path) == {"image": ["a", "b", "c"], "p": [0.5, 0.25, 1.0], "error": [None] * 3}


def test_data_sets_beside_each_other_and_rows_without_an_image(folder, photos, tmp_path):
    files = sorted(map(str, photos.glob("more/*.png")))
    for name, some in (("a", files[:3]), ("b", [files[3], None])):
        rows = datasets.Dataset.from_dict({name: some}, features=datasets.Features({name: datasets.Image()}))
        rows.to_parquet(tmp_path / name / "train.parquet")
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "preview.png")
    pictures = find_pictures([tmp_path / "a", tmp_path / "b"], PROCESSOR)
    assert len(pictures) == 5
    tagger = Tagger(folder)
    table = Table(tmp_path / "tags.parquet", {"image": str} | tagger.columns | {"error": str})
    assert tag_pictures(tagger, pictures, table, num_proc=0) == {"tagged": 4, "broken": 1, "there": 0}
    assert [error for error in read(tmp_path / "tags.parquet")["error"] if error] == [
        f"{tmp_path / 'b'}/train/1 has no image"
    ]
    spelt = [photos, f"{photos}/../photos/more", f"{photos}/./*.png"]
    assert len(find_pictures(spelt, PROCESSOR)) == 31


def test_caches_know_when_a_model_changes(folder, model):
    before = Hasher.hash(Tagger(folder))
    assert Hasher.hash(Tagger(folder)) == before
    with torch.no_grad():
        model.head.linear.bias.add_(1)
    model.save_pretrained(folder)
    assert Hasher.hash(Tagger(folder)) != before


def test_a_copy_in_the_same_process_leaves_its_threads(folder, photos):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pickle.loads(pickle.dumps(Tagger(folder)))({"image": [photos / "00.png"]})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_texts_of_all_kinds_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_A_PART", 2)
    names = ['with "quotes", and commas', "a\nline", "", "null", "Ünïcode", "1"]
    for ending in tables.FORMATS:
        path = tmp_path / f"table{ending}"
        for part in (names[:3], names[3:]):
            table = Table(path, {"image": str, "n": int, "is": bool, "p": float})
            table.add({"image": part, "n": [1] * 3, "is": [True, None, False], "p": [0.1, None, 1e-9]})
            table.finish()
        assert Table(path, {"image": str, "n": int, "is": bool, "p": float}).names() == set(names)
        assert read(path)["p"] == [0.1, None, 1e-9] * 2


def test_rows_of_a_data_set_are_pictures(folder, photos, tmp_path):
    rows = datasets.Dataset.from_dict({"photo": sorted(map(str, photos.glob("more/*.png"))), "n": range(15)})
    rows.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "data" / "test.parquet")
    pictures = find_pictures([tmp_path / "data"], PROCESSOR)
    assert pictures.names == [f"{tmp_path / 'data'}/test/{i}" for i in range(15)]
    names = [name for batch in pictures.batches(4, num_proc=2) for name in batch.names]
    assert names == pictures.names
    found = torch.cat([batch.pixel_values for batch in pictures.batches(4, num_proc=0)])
    expected = PROCESSOR([Image.open(each) for each in sorted(photos.glob("more/*.png"))], return_tensors="pt")
    torch.testing.assert_close(found, expected["pixel_values"])


@pytest.mark.parametrize(
    "source, message", [("*.jpg", "no image file fits the pattern"), ("a.jpg", "no image file 'a.jpg'")]
)
def test_sources_without_pictures(source, message):
    with pytest.raises(ValueError, match=message):
        find_pictures([source], PROCESSOR)


def test_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path):
    noise = Image.effect_noise((80, 60), 90).resize((1600, 1200), Image.Resampling.BICUBIC).convert("RGB")
    noise.save(tmp_path / "a.jpg", quality=95)
    assert open_image(tmp_path / "a.jpg", min_size=150).size == (200, 150)
    assert open_image((tmp_path / "a.jpg").read_bytes(), min_size=151).size == (400, 300)
    processor = JemImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 60, "width": 60})
    (batch,) = find_pictures([tmp_path / "a.jpg"], processor).batches(1)
    whole = processor(Image.open(tmp_path / "a.jpg"), return_tensors="pt")["pixel_values"]
    assert (batch.pixel_values - whole).abs().mean() < 0.02  # of 2


def test_thresholds_do_what_their_rule_says():
    rng = np.random.default_rng(0)
    p = rng.random((400, 2))
    labels = (rng.random((400, 2)) < p**2).astype(int)
    labels[::7, 0] = -1
    best = choose_thresholds(p, labels, ["a", "b"], "f1")
    for k, name in enumerate("ab"):
        present = labels[:, k] >= 0
        y, q = labels[present, k] == 1, p[present, k]

        def f1(threshold, y=y, q=q):
            return 2 * (y & (q >= threshold)).sum() / (y.sum() + (q >= threshold).sum())

        assert f1(best[name]) == max(map(f1, q))
        precise = choose_thresholds(p, labels, ["a", "b"], "precision=0.8")[name]
        assert y[q >= precise].mean() >= 0.8
        assert all(y[q >= threshold].mean() < 0.8 for threshold in q if threshold < precise)
    assert choose_thresholds(p, 1 - (p > 0.999), ["a", "b"], "precision=0.9")["a"] == p[:, 0].min()
    assert choose_thresholds(p, (p < 0.01).astype(int), ["a", "b"], "precision=0.9") == {"a": NEVER, "b": NEVER}
    assert choose_thresholds(p, labels, ["a", "b"], "0.3") == {"a": 0.3, "b": 0.3}
    assert choose_thresholds(p, labels * [[0, 1]], ["a", "b"], "f1") == {"b": best["b"]}


@pytest.mark.parametrize("rule", ["f2", "precision", "precision=2", "recall=0.5", "0", "1.5", "", "nan"])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match=r"a threshold is f1, precision=0\.9 or a number"):
        parse_rule(rule)


def test_the_command_chooses_thresholds_by_labelled_images(folder, photos, tmp_path):
    lines = [f"{i:02}.png,{('train', 'validation')[i > 3]},{i % 4 // 2},{i % 3 // 2},red" for i in range(0, 30, 2)]
    lines = ["file_name,split,Smiling,Hat,Hair", *lines]
    (photos / "metadata.csv").write_text("\n".join(lines))
    arguments = ["predict", folder, str(photos), "-o", str(tmp_path / "tags.jsonl"), "--json"]
    rule = ["--threshold", "f1", "--dataset", str(photos)]
    result = CliRunner().invoke(app, [*arguments, *rule])
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["tagged"] == 30 and summary["broken"] == 1
    rows = read(tmp_path / "tags.jsonl")
    for p, predicted in zip(rows["p_Hat"], rows["predicted_Hat"]):
        assert predicted is (None if p is None else p >= summary["thresholds"]["Hat"])
    result = CliRunner().invoke(app, [*arguments[:-3], str(tmp_path / "b.csv"), "--threshold", "f1"])
    assert result.exit_code == 2 and "name them with --dataset" in result.stderr


def test_a_table_among_the_photographs_is_no_data_set(folder, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    for there in (0, 30):  # the broken one is tried again
        result = CliRunner().invoke(app, ["predict", folder, "photos", "-o", "photos/tags.parquet", "--num-proc", "0"])
        assert result.exit_code == 0, result.stderr
        assert f"{there} there before" in result.stderr + result.stdout
    names = read(photos / "tags.parquet")["image"]
    assert len(names) == 31
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(photos / "02.png")}]})
    rows.cast_column("image", datasets.Image()).to_parquet(photos.parent / "data" / "b.parquet")
    result = CliRunner().invoke(app, ["predict", folder, "data", "-o", "data/tags.parquet"])
    assert result.exit_code == 2 and "'data/tags.parquet' would be part of the data set 'data'" in result.stderr


def test_names_that_are_not_utf8_are_rows_as_well(folder, photos, monkeypatch):
    """Two that differ in what is not, one of a broken picture, alone and in their folder."""
    monkeypatch.chdir(photos.parent)
    for old, new in (("00.png", b"caf\xe9.png"), ("02.png", b"caf\xe8.png"), ("17.png", b"b\xff.png")):
        os.rename(photos / old, os.path.join(b"photos", new))
    for source in ("photos", os.fsdecode(b"photos/caf\xe9.png"), os.fsdecode(b"photos/b\xff.png")):
        result = CliRunner().invoke(app, ["predict", folder, source, "-o", "tags.csv", "--num-proc", "0"])
        assert result.exit_code == 0, result.stderr
    rows = read(photos.parent / "tags.csv")
    assert len(rows["image"]) == 31
    assert {r"photos/caf\udce9.png", r"photos/caf\udce8.png", r"photos/b\udcff.png"} <= set(rows["image"])
    (error,) = filter(None, rows["error"])
    assert r"photos/b\udcff.png" in error


def test_rows_of_a_data_set_that_grew_are_not_taken_for_those_before(folder, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    files = sorted(map(str, photos.glob("more/*.png")))
    for name, some in (("b", files[:3]), ("a", files[3:5])):
        rows = datasets.Dataset.from_dict({"image": some}, features=datasets.Features(image=datasets.Image()))
        rows.to_parquet(photos.parent / "data" / f"{name}.parquet")
        result = CliRunner().invoke(app, ["predict", folder, "data", "-o", "tags.csv", "--num-proc", "0"])
        assert result.exit_code == (0 if name == "b" else 2), result.stderr
    assert "'tags.csv' was made with another data set: name another file" in result.stderr


def test_rows_of_other_files_are_not_taken_for_those_before(folder, photos, monkeypatch):
    """As many in a file of another name or of another size; the same file is gone on with."""
    monkeypatch.chdir(photos.parent)
    files = sorted(map(str, photos.glob("more/*.png")))

    def predict(name, some):
        shutil.rmtree("data", ignore_errors=True)
        images = [{"bytes": Path(each).read_bytes(), "path": None} for each in some]
        rows = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
        rows.to_parquet(photos.parent / "data" / name)
        return CliRunner().invoke(app, ["predict", folder, "data", "-o", "tags.csv", "--num-proc", "0"])

    for name, some, code in (("a.parquet", files[:3], 0), ("a.parquet", files[:3], 0), ("b.parquet", files[:3], 2)):
        assert predict(name, some).exit_code == code
    Image.new("RGB", (200, 200)).save(files[4])
    result = predict("a.parquet", files[3:6])
    assert result.exit_code == 2
    assert "'tags.csv' was made with another data set: name another file" in result.stderr
