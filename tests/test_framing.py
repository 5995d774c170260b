"""Cutting pictures to what a model knows."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jem_hf import JemImageProcessor, Tagger, find_crop
from jem_hf.cli import app
from jem_hf.curation.pictures import find_pictures
from jem_hf.data.avatars import render

SIZE, PLACE = (240, 200), (120, 60)  # of a photograph, and of the face in it, 120 pixels wide


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Avatars as parts of larger pictures, and a broken file."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(256, size=(8, 6, 6, 3), dtype=np.uint8)
    for i, ground in enumerate(noise):
        photo = Image.fromarray(ground).resize(SIZE, Image.Resampling.BICUBIC)
        photo.paste(render(i, seed=5)[0].resize((120, 120), Image.Resampling.BICUBIC), PLACE)
        photo.save(folder / f"{i}.png")
    (folder / "8.png").write_bytes(b"no picture")
    return folder


def test_a_square_is_cut_out_and_moved_inside():
    pixels = np.arange(6 * 10 * 3, dtype=np.uint8).reshape(6, 10, 3)
    settings = dict(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)
    for crop_to, rows, columns in (
        ([0.5, 0.5, 1], slice(0, 6), slice(2, 8)),
        ([0.8, 0.5, 0.5], slice(2, 5), slice(6, 9)),
        ([1, 0, 0.5], slice(0, 3), slice(7, 10)),  # beyond the corner
    ):
        x = JemImageProcessor(crop_to=crop_to, **settings)(Image.fromarray(pixels), return_tensors="pt")
        assert torch.equal(x["pixel_values"][0], torch.tensor(pixels[rows, columns]).permute(2, 0, 1))


def test_a_processor_keeps_its_crop(tmp_path):
    processor = JemImageProcessor(crop_to=[0.25, 0.5, 0.5])
    processor.save_pretrained(tmp_path)
    image = Image.effect_noise((80, 60), 50).convert("RGB")
    there, back = (
        each(image, return_tensors="pt")["pixel_values"]
        for each in (processor, JemImageProcessor.from_pretrained(tmp_path))
    )
    assert torch.equal(there, back)
    expected = JemImageProcessor()(image.crop((5, 15, 35, 45)), return_tensors="pt")["pixel_values"]
    assert torch.equal(there, expected)


@pytest.mark.parametrize(
    "crop_to", [[0.5, 0.5], [0.5, 0.5, 0], [0.5, -0.1, 1], [0.5, 0.5, 1.5], [0.5, float("nan"), 1]]
)
def test_what_no_crop_can_be(crop_to):
    with pytest.raises(ValueError, match="three shares of an image from 0 to 1"):
        JemImageProcessor(crop_to=crop_to)(Image.new("RGB", (40, 40)), return_tensors="pt")


def test_a_crop_is_found_by_images_and_an_outlier_score(model):
    with pytest.raises(ValueError, match="no images to find a crop by"):
        find_crop(model, [], JemImageProcessor())
    with pytest.raises(ValueError, match="no outlier score"):
        find_crop(model, [Image.new("RGB", (9, 9))], JemImageProcessor())


def test_large_pictures_are_read_large_enough_for_the_crop(tmp_path):
    Image.effect_noise((1600, 1200), 50).save(tmp_path / "large.png")
    processor = JemImageProcessor(crop_to=[0.5, 0.5, 0.125])
    (picture,) = find_pictures([tmp_path], processor).places
    assert min(find_pictures([tmp_path], processor).read(picture).size) * 0.125 >= 64


@pytest.mark.slow
def test_a_command_finds_what_the_model_knows_and_cuts_it_out(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jem_hf = CliRunner().invoke
    arguments = ["predict", "jem-avatars", str(photos), "-o", "tags.jsonl", "--num-proc", "0", "--crop"]
    result = jem_hf(app, [*arguments, "auto"])
    assert result.exit_code == 0 and "8 images, 1 broken" in result.stderr
    crop, before, after = re.search(r"--crop (\S+): .* from (\S+) to (\S+)", result.stderr).groups()
    assert [float(share) for share in crop.split(",")] == pytest.approx([0.75, 0.6, 0.6], abs=0.02)
    assert float(after) < float(before) / 2
    (tmp_path / "tags.jsonl").unlink()
    assert jem_hf(app, [*arguments, "0.75,0.6,0.6"]).exit_code == 0
    faces = [Image.open(photos / f"{i}.png").crop((*PLACE, PLACE[0] + 120, PLACE[1] + 120)) for i in range(8)]
    expected = Tagger("jem-avatars")({"image": faces})
    table = [line for line in map(json.loads, (tmp_path / "tags.jsonl").read_text().splitlines()) if not line["error"]]
    for name in ("energy", "p_Smiling"):
        assert [row[name] for row in table] == pytest.approx(expected[name], rel=1e-3, abs=1e-3)
    other = jem_hf(app, [*arguments, "0.5,0.5,0.5"])
    assert other.exit_code == 2 and "tags.jsonl" in other.stderr  # a table of other settings
    wrong = jem_hf(app, [*arguments, "tight"])
    assert wrong.exit_code == 2 and "auto or x,y,side" in wrong.stderr


@pytest.mark.parametrize("command", ["evaluate", "audit"])
def test_data_sets_are_cut_alike(command, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("tiny")
    JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained("tiny")
    pixels = np.random.default_rng(1).integers(256, size=(24, 20, 20, 3), dtype=np.uint8)
    for folder, part in (("whole", pixels), ("cut", pixels[:, 10:, :10])):
        (tmp_path / folder).mkdir()
        lines = ["file_name,Smiling,Hair,Hat"]
        for i, each in enumerate(part):
            Image.fromarray(each).save(tmp_path / folder / f"{i}.png")
            lines.append(f"{i}.png,{i % 2},{('black', 'blond', 'red')[i % 3]},{i // 12}")
        (tmp_path / folder / "metadata.csv").write_text("\n".join(lines))
    rest = {"evaluate": ["--prediction-only", "--no-baselines"], "audit": ["--no-outliers", "-o", "found"]}[command]
    results = []
    for cut in (["whole", "--crop", "0.25,0.75,0.5"], ["cut"], ["whole"]):
        arguments = [command, "tiny", "--dataset", *cut, "--json", *rest]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        if command == "evaluate":
            results.append(report["prediction"]["nll"])
        else:
            results.append(pd.read_parquet("found/suspects.parquet")["score"].tolist())
    there, expected, other = results
    assert there == expected != other
