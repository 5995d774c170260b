"""What the page does, without a page: drawings, links, chains that stop, tags and edits."""

import base64
import io
import re
import threading
import time
import urllib.request
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from jem_hf import JemImageProcessor
from jem_hf.demo.actions import (
    WHOLE,
    Actions,
    asked,
    compare,
    enlarged,
    open_image,
    results,
    shared_labels,
    wanted,
)
from jem_hf.demo.chain import MAX_IMAGES, MAX_SEED, Drawing, watch
from jem_hf.demo.html import bars, energy_among, is_unusual, percent, png_url, share_below
from jem_hf.evaluation.outliers import energy_quantiles


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "tiny")
    model.image_processor().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def actions(folder):
    return Actions(str(folder))


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def last(chain):
    *_, end = chain
    return end


def shown(x, energies):
    return x, energies


def test_a_link_holds_all_of_a_drawing():
    drawing = Drawing("mine", 'Hat & ~"A & B=c"', 7, 3, 12, 2.5)
    query = dict(part.split("=") for part in drawing.query()[1:].split("&"))
    query = {name: urllib.parse.unquote_plus(value) for name, value in query.items()}
    assert query["request"] == 'Hat & ~"A & B=c"'
    assert Drawing.from_query(query, Drawing("mine")) == drawing
    assert Drawing.from_query({"seed": "5"}, drawing) == replace(drawing, seed=5)


@pytest.mark.parametrize(
    "query, message",
    [
        ({"model": "yours"}, "of 'yours', and this page draws with 'mine'"),
        ({"seed": "one"}, "seed in the link is not a number: 'one'"),
        ({"seed": str(MAX_SEED + 1)}, "seed is a number from 0"),
        ({"num_images": str(MAX_IMAGES + 1)}, "num images is a number from 1 to 16, not 17"),
        ({"num_images": "0"}, "num images"),
        ({"num_inference_steps": "100000"}, "num inference steps"),
        ({"guidance_scale": "nan"}, "guidance scale"),
    ],
)
def test_a_link_beyond_the_limits_is_refused(query, message):
    with pytest.raises(ValueError, match=message):
        Drawing.from_query(query, Drawing("mine"))


def test_images_are_those_of_the_pipeline_and_hold_their_settings(actions):
    drawing = replace(actions.default, request="Smiling & Hair=red", seed=3, num_images=2, num_inference_steps=5)
    frames = list(actions.make(drawing, threading.Event()))
    expected = actions.pipeline("Smiling & Hair=red", seed=3, num_images=2, num_inference_steps=5)
    page, image = frames[-1]
    assert image.tobytes() == expected[0]["image"].tobytes()
    files = [Image.open(io.BytesIO(content)) for content in downloads(page)]
    assert [file.tobytes() for file in files] == [item["image"].tobytes() for item in expected]
    assert files[1].text == {name: str(v) for name, v in asdict(drawing).items()} | {
        "image": "1",
        "energy": str(expected[1]["energy"]),
    }
    assert "Hair: red" in page and percent(expected[0]["probabilities"]["Hair"]["red"]) in page
    assert "Hat" not in page.split("Link to these images")[0]
    assert drawing.query().replace("&", "&amp;") in page
    assert "Energy after 5 of 5 steps" in page


def downloads(page):
    return [content_of(url) for url in re.findall(r'<a href="([^"]*)" download', page)]


def content_of(url):
    return base64.b64decode(url.removeprefix("data:image/png;base64,"))


def test_make_tells_mistakes(actions):
    with pytest.raises(ValueError, match="did you mean 'Smiling'"):
        next(actions.make(replace(actions.default, request="Smilng"), threading.Event()))


def test_a_chain_stops_before_its_next_step(actions):
    stop, steps = threading.Event(), []

    def run(callback):
        def three(x, info):
            steps.append(info.step)
            if info.step == 3:
                stop.set()
            return callback(x, info)

        return actions.pipeline("Hat", num_inference_steps=50, callback=three, seed=0)

    chain = watch(run, stop, shown)
    with pytest.raises(StopIteration) as end:
        while True:
            next(chain)
    drawn, steps_done, energies = end.value.value
    assert (len(drawn), steps_done, len(energies), steps) == (1, 3, 4, [0, 1, 2, 3])


def test_a_stopped_drawing_says_so_and_has_no_link(actions):
    drawing = replace(actions.default, request="Hat", num_images=1)
    drawn = actions.pipeline("Hat", seed=0)
    whole = results(drawn, drawing, drawing.num_inference_steps, actions.config)
    page = results(drawn, drawing, 2, actions.config)
    assert "Link to these images" in whole and "Stopped" not in whole
    assert "Link to these images" not in page and "Stopped after 2 of 4 steps" in page
    (content,) = downloads(page)
    assert Image.open(io.BytesIO(content)).text["stopped_after_steps"] == "2"


def test_a_chain_ends_with_its_visitor(actions):
    seen = []

    def run(callback):
        def slowly(x, info):
            seen.append(info.step)
            time.sleep(0.01)
            return callback(x, info)

        return actions.pipeline("Hat", num_inference_steps=100_000, callback=slowly)

    chain = watch(run, threading.Event(), shown)
    next(chain)
    chain.close()  # waits for the thread
    assert len(seen) < 100_000
    length = len(seen)
    time.sleep(0.1)
    assert len(seen) == length


def test_errors_of_a_chain_come_through():
    def run(callback):
        raise ValueError("as the chain says")

    with pytest.raises(ValueError, match="as the chain says"):
        list(watch(run, threading.Event(), shown))


@pytest.mark.slow
def test_a_visitor_stops_no_other_ones_chain(actions):
    from jem_hf.demo.page import _drawing

    draw, halt, _ = _drawing(actions)
    first, second = SimpleNamespace(session_hash="first"), SimpleNamespace(session_hash="second")
    halt(first)  # nothing runs

    def pages(halted):
        chain = draw("Hat", 0, 1, 150, 2.0, first)
        next(chain)
        halt(halted)
        return last(chain)[0]

    assert "Link to these images" in pages(second)
    assert "Stopped after" in pages(first)


@pytest.mark.parametrize("request_", ["", "Smiling", "~Smiling & Hair=blond", "Hair=black & Hat"])
def test_switches_and_requests_say_the_same(actions, request_):
    assert actions.request_of(actions.values_of(request_)) == request_


def test_switches_are_open_where_a_request_says_more(actions):
    assert actions.values_of("Smiling | Hat") == ["", "", ""]
    assert actions.values_of("Smiling:2") == ["", "", ""]
    assert actions.values_of("Smiling & ~Hat") == ["True", "", "False"]


def test_a_surprise_is_drawn_from_the_model_of_the_labels(actions):
    prior = actions.pipeline.model.label_prior
    prior.bias.copy_(torch.tensor([-50.0, 50, -50, -50, 50, 50, -50]))  # Smiling, Hair=red, no Hat
    assert {actions.surprise()[0] for _ in range(3)} == {"Smiling & Hair=red"}
    prior.bias.copy_(torch.tensor([50.0, -50, 50, -50, -50, 50, -50]))
    assert actions.surprise()[0] == "~Smiling & Hair=black & ~Hat"


def test_presets_are_those_that_the_model_knows(actions):
    assert actions.presets == {}
    assert Actions("jem-avatars").presets["Red afro"] == "Afro & Red_Hair"
    assert "Smiling man" in Actions("jem-celeba").presets and "Red afro" not in Actions("jem-celeba").presets


def test_tags_are_sorted_and_are_those_of_the_model(actions, picture):
    page = actions.tag(picture)
    with torch.no_grad():
        output = actions.pipeline.model(actions.pipeline._pixels(Image.open(picture)))
    scores = dict(zip(["Smiling", "Hair=black", "Hair=blond", "Hair=red", "Hat"], output.logits[0].sigmoid().tolist()))
    places = [page.index(f"<span>{name}</span><span>{percent(p)}</span>") for name, p in scores.items()]
    assert [place for _, place in sorted(zip(scores.values(), places), reverse=True)] == sorted(places)
    assert f"Energy {output.energy.item():.2f}" in page
    assert "usual" not in page.lower()  # nothing is known of the energies of this model


def test_a_part_of_an_image_is_seen_as_one_that_was_cut_before(actions, picture, tmp_path):
    part, cut = (0.4, 0.6, 0.5), str(tmp_path / "cut.png")
    Image.open(picture).crop((7, 7, 17, 17)).save(cut)  # of 30x20 pixels
    assert actions.tag(picture, *part) == actions.tag(cut) != actions.tag(picture)
    (before, after), page = actions.edit(picture, ["Smiling"], [], 0.5, 0, *part)
    (other_before, other_after), other_page = actions.edit(cut, ["Smiling"], [], 0.5, 0)
    assert before == other_before and after == other_after and page == other_page


def test_an_image_is_cut_as_the_processor_of_the_model_has_it(folder, picture):
    processor = JemImageProcessor.from_pretrained(folder)
    processor.crop_to = [0.4, 0.6, 0.5]
    processor.save_pretrained(folder)
    actions = Actions(str(folder))
    assert torch.equal(actions.part(picture, *WHOLE), actions.part(picture, 0.4, 0.6, 0.5))
    generated = actions.pipeline("Smiling", image=picture, seed=0, strength=0.5)[0]
    (_, after), _ = actions.edit(picture, ["Smiling"], [], 0.5, 0)
    assert enlarged(generated["image"]) == after


def test_an_energy_is_unusual_beyond_the_test_images(model, actions, picture, tensors):
    pixels = tensors.images / 127.5 - 1
    quantiles = energy_quantiles(model, tensors.images)
    with torch.no_grad():
        energies = model(pixels).energy.numpy()
    assert len(quantiles) == 101
    np.testing.assert_allclose(
        [quantiles[0], quantiles[50], quantiles[100]], np.quantile(energies, [0, 0.5, 1]), rtol=1e-5
    )
    assert share_below(quantiles[30], quantiles) == pytest.approx(0.3)
    assert not is_unusual(quantiles[50], quantiles)
    assert is_unusual(quantiles[100] + 1, quantiles) and is_unusual(quantiles[0] - 1, quantiles)
    assert not is_unusual(quantiles[99] - 1e-6, quantiles) and is_unusual(quantiles[99] + 1e-3, quantiles)
    assert "Unusual for this model" in energy_among(quantiles[100] + 1, quantiles)
    actions.report = {"test_energy_quantiles": quantiles}
    assert "for this model" in actions.tag(picture)


@pytest.mark.parametrize("name", ["jem-avatars", "jem-celeba"])
def test_models_of_the_zoo_know_the_energies_of_their_test_images(name):
    quantiles = Actions(name).report["test_energy_quantiles"]
    assert len(quantiles) == 101 and quantiles == sorted(quantiles)


def test_reference_energies_of_avatars_are_those_of_new_avatars():
    from jem_hf.data.avatars import _split_indices, render

    actions = Actions("jem-avatars")
    faces = [render(index)[0] for index in _split_indices("test", 24, seed=0)]
    with torch.no_grad():
        energies = actions.pipeline.model(torch.cat([actions.pipeline._pixels(face) for face in faces])).energy
    quantiles = actions.report["test_energy_quantiles"]
    shares = sorted(share_below(energy, quantiles) for energy in energies.tolist())
    assert 0.25 < np.median(shares) < 0.75 and 0 <= shares[0] < 0.25 and 0.75 < shares[-1] <= 1
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert is_unusual(actions.pipeline.model(noise).energy.item(), quantiles)


def test_a_grid_shares_one_noise(actions):
    grid = np.asarray(actions.grid("Hair", "Smiling", "Hat", seed=3))
    assert grid.shape[0] > 3 * 8 and grid.shape[1] > 2 * 8
    requests = [
        f"Hat & Hair={hair} & {smile}" for hair in ("black", "blond", "red") for smile in ("~Smiling", "Smiling")
    ]
    drawn = actions.pipeline(requests, seed=3)
    tiles = [np.asarray(item["image"]) for (item,) in drawn]
    corner = grid[-10 * 3 - 2 :, -10 * 2 - 2 :]  # below and right of the labels
    for i, tile in enumerate(tiles):
        top, left = 2 + 10 * (i // 2), 2 + 10 * (i % 2)
        assert (corner[top : top + 8, left : left + 8] == tile).all()
    with pytest.raises(ValueError, match="seed is a number from 0"):
        actions.grid("Hair", "Smiling", "", seed=-1)


def test_edits_are_those_of_the_pipeline(actions, picture):
    (before, after), page = actions.edit(picture, ["Hat", "Hair=red"], ["Smiling"], 0.6, 4)
    small = Image.fromarray(
        ((actions.pipeline._pixels(Image.open(picture))[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    )
    (expected,) = actions.pipeline("Hat & Hair=red & ~Smiling", image=small, strength=0.6, seed=4)
    (content,) = downloads(page)
    edited = Image.open(io.BytesIO(content))
    assert edited.tobytes() == expected["image"].tobytes()
    assert edited.text["edit"] == "~Smiling & Hair=red & Hat"
    assert before.size == after.size and before.tobytes() != after.tobytes()
    assert percent(expected["probabilities"]["Hat"]) in page


def test_what_cannot_be_edited_is_told(actions, picture):
    with pytest.raises(ValueError, match="choose at least one"):
        actions.edit(picture, [], [], 0.5, 0)
    with pytest.raises(ValueError, match="drop an image first"):
        actions.edit(None, ["Hat"], [], 0.5, 0)
    with pytest.raises(ValueError, match="switched on and off"):
        wanted(["Hat"], ["Hat"], actions.config)
    with pytest.raises(ValueError, match="has one value"):
        wanted(["Hair=red", "Hair=black"], [], actions.config)


def test_files_that_are_no_images_are_refused(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:1000])
    Image.new("L", (9, 9)).save(tmp_path / "page.pdf")
    for name in ("text.png", "cut.png", "page.pdf"):
        with pytest.raises(ValueError, match="no image that can be read: give a PNG"):
            open_image(str(tmp_path / name))
    monkeypatch.setattr("jem_hf.demo.actions.MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ValueError, match="million pixels"):
        open_image(str(whole))


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(str(tmp_path / "turned.jpg")).size == (20, 30)


def test_the_page_sees_images_as_the_pipeline_does(tmp_path):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((9, 9), 128 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(str(tmp_path / "clear.png")).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(str(tmp_path / "deep.png")).getpixel((0, 0)) == (128, 128, 128)


def test_models_are_compared_by_the_same_noise(folder, actions):
    page = compare([str(folder), str(folder)], ["Hat"], [], Drawing("", seed=2, num_images=2))
    files = downloads(page)
    expected = actions.pipeline("Hat", seed=2, num_images=2)
    assert [Image.open(io.BytesIO(file)).tobytes() for file in files] == [
        item["image"].tobytes() for item in [*expected, *expected]
    ]
    assert shared_labels([str(folder), "jem-avatars"]) == ["Smiling", "Hat"]


def test_probabilities_are_of_what_was_asked(config):
    item = {
        "attributes": {"Smiling": False, "Hair": "red", "Hat": True},
        "probabilities": {"Smiling": 0.2, "Hair": {"black": 0.1, "blond": 0.2, "red": 0.7}, "Hat": 0.9},
    }
    assert asked(item, [0, 2, -1], config) == [("no Smiling", 0.8), ("Hair: red", 0.7)]


def test_names_cannot_write_html():
    assert "<b>" not in bars([("<b>", 0.5)])
    assert Image.open(io.BytesIO(content_of(png_url(Image.new("RGB", (2, 2)), {"request": "Bärt"})))).text == {
        "request": "Bärt"
    }
