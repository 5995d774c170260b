"""The page as a visitor has it: `jem-hf demo` in a process of its own, the bundled model, Debian's chromium.

Screenshots are kept in $JEM_HF_SCREENSHOTS, or else in pytest's folder of the run.
"""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jem_hf.data.avatars import render
from jem_hf.demo.actions import load_pipeline

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("there is no chromium to open the page in: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402

pytestmark = pytest.mark.slow

PATIENCE = 600_000  # milliseconds, for machines that do much else
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def address():
    """Where the page is."""
    code = "from jem_hf.cli import app; app()"
    command = [sys.executable, "-c", code, "demo", "--no-browser"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().split()[0]
        server.terminate()


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    folder = Path(os.environ.get("JEM_HF_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(chromium, address):
    """Opens the page, and sees to it that it asks no other host for anything and makes no error."""
    contexts, elsewhere, errors = [], [], []

    def visit(query="", viewport=DESKTOP):
        contexts.append(chromium.new_context(viewport=viewport))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("request", lambda request: is_local(request.url, address) or elsewhere.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + query)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert elsewhere == [] and errors == []


def is_local(url, address):
    return url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))


def made(page):
    """The files behind the links of the images, once they are there."""
    page.locator("#made .share").wait_for()
    links = page.locator("#made a[download]").evaluate_all("links => links.map(link => link.href)")
    return [base64.b64decode(link.split(",")[1]) for link in links]


def choose(page, attribute, value):
    page.get_by_role("radiogroup", name=attribute, exact=True).get_by_label(value).check()


def upload(page, tab, path):
    page.get_by_role("tab", name=tab).click()
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").set_input_files(path)


@pytest.fixture(scope="module")
def face(tmp_path_factory):
    """A cartoon face with a hat, that does not smile."""
    path = tmp_path_factory.mktemp("faces") / "face.png"
    render(face_index(), seed=1, size=96)[0].save(path)
    return path


def face_index():
    """Of the first avatar with a hat that does not smile."""
    labels = (render(index, seed=1)[1] for index in range(1000))
    return next(index for index, each in enumerate(labels) if each["Hat"] and not each["Smiling"])


def test_make(visit, screenshots):
    page = visit()
    assert len(made(page)) == 4  # the page opens with images
    page.get_by_role("spinbutton", name="Images").fill("3")
    page.get_by_label("Request").fill("")
    page.keyboard.press("Enter")
    expect(page.get_by_role("radiogroup", name="Hat", exact=True).get_by_label("either")).to_be_checked()
    choose(page, "Hat", "yes")
    expect(page.get_by_label("Request")).to_have_value("Hat")
    choose(page, "Beard", "no")
    expect(page.get_by_label("Request")).to_have_value("~Beard & Hat")
    expect(page.locator("#made figure")).to_have_count(3)
    expect(page.locator("#made .share")).to_have_attribute(
        "href", re.compile("request=~Beard\\+%26\\+Hat&.*num_images=3")
    )
    files = [Image.open(io.BytesIO(file)) for file in made(page)]
    assert [file.text["request"] for file in files] == ["~Beard & Hat"] * 3
    expected = load_pipeline("jem-avatars")("~Beard & Hat", num_images=3, seed=0)
    assert all(np.abs(np.int16(file) - np.int16(item["image"])).max() <= 1 for file, item in zip(files, expected))
    page.screenshot(path=screenshots / "demo-make.png", full_page=True)


def test_the_keyboard_is_enough(visit):
    page = visit()
    made(page)
    page.get_by_role("radiogroup", name="Afro").get_by_label("either").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radiogroup", name="Afro").get_by_label("yes")).to_be_checked()
    expect(page.get_by_label("Request")).to_have_value(re.compile("Afro"))
    page.get_by_label("Request").fill("Bald | Hat")
    page.keyboard.press("Enter")
    expect(page.locator("#made .share")).to_have_attribute("href", re.compile("request=Bald\\+%7C\\+Hat"))
    expect(page.get_by_role("radiogroup", name="Afro").get_by_label("either")).to_be_checked()


def test_mistakes_in_a_request_are_told(visit):
    page = visit()
    made(page)
    page.get_by_label("Request").fill("Smilng")
    page.get_by_role("button", name="Make").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("did you mean 'Smiling'?")


def test_surprise_and_presets(visit):
    page = visit()
    made(page)
    request = page.get_by_label("Request")
    before = request.input_value()
    page.get_by_role("button", name="Surprise me").click()
    expect(request).not_to_have_value(before)
    page.get_by_role("combobox", name="Presets").click()
    page.get_by_role("option", name="Red afro").click()
    expect(request).to_have_value("Afro & Red_Hair")
    expect(page.locator("#made .share")).to_have_attribute("href", re.compile("request=Afro"))


def test_stop(visit):
    page = visit("?request=Hat&num_images=16&num_inference_steps=200")
    stop = page.get_by_role("button", name="Stop")
    expect(page.locator("#made .curve")).to_be_visible()
    stop.click()
    note = page.get_by_text(re.compile("Stopped after [0-9]+ of 200 steps"))
    note.wait_for()
    assert int(re.search(r"after (\d+)", note.inner_text())[1]) < 200
    expect(page.locator("#made figure")).to_have_count(16)
    expect(page.locator("#made .share")).to_have_count(0)
    expect(stop).to_be_disabled()
    page.get_by_role("spinbutton", name="Images").fill("2")
    page.get_by_role("button", name="Make").click()
    expect(page.locator("#made figure")).to_have_count(2)  # what was stopped blocks nothing


def test_a_link_makes_the_same_images(visit):
    page = visit("?request=Afro+%26+Smiling&seed=12345&num_images=2&num_inference_steps=9&guidance_scale=3.5")
    files = made(page)
    settings = Image.open(io.BytesIO(files[0])).text
    assert (settings["seed"], settings["num_inference_steps"], settings["guidance_scale"]) == ("12345", "9", "3.5")
    again = visit(page.locator("#made .share").get_attribute("href"))
    assert made(again) == files
    expect(again.get_by_label("Seed").locator("visible=true")).to_have_value("12345")
    expect(again.get_by_role("radiogroup", name="Afro").get_by_label("yes")).to_be_checked()
    other = visit("?request=Afro+%26+Smiling&seed=12346&num_images=2&num_inference_steps=9&guidance_scale=3.5")
    assert made(other) != files


def test_a_link_beyond_the_limits_is_told(visit):
    page = visit("?num_images=1000")
    expect(page.get_by_test_id("toast-body")).to_contain_text("num images is a number from 1 to 16, not 1000")


def test_tag(visit, face, screenshots):
    page = visit()
    upload(page, "Tag", face)
    rows = page.locator("#tagged .bars li")
    expect(rows).to_have_count(23)
    names = rows.locator("span:first-of-type").all_inner_texts()
    present = {name.replace("_", " ") for name, value in render(face_index(), seed=1)[1].items() if value}
    assert set(names[: len(present)]) == present
    expect(page.locator("#tagged")).to_contain_text("usual: stranger than")
    page.screenshot(path=screenshots / "demo-tag.png", full_page=True)
    wide = Image.new("RGB", (192, 192), "gray")  # the face is in a corner of it
    wide.paste(Image.open(face), (96, 0))
    wide.save(face.with_name("wide.png"))
    page = visit()
    upload(page, "Tag", face.with_name("wide.png"))
    expect(page.locator("#tagged")).to_contain_text("Unusual: stranger than")
    page.get_by_role("button", name="Part of the image").locator("visible=true").click()
    for name, share in (("Centre, across", 0.75), ("Centre, down", 0.25), ("Side", 0.5)):
        page.get_by_role("spinbutton", name=name).locator("visible=true").fill(str(share))
    expect(page.locator("#tagged")).to_contain_text("Nothing unusual: stranger than")
    noise = face.with_name("noise.png")
    Image.effect_noise((64, 64), 200).save(noise)
    page = visit()
    upload(page, "Tag", noise)
    expect(page.locator("#tagged")).to_contain_text("Unusual: stranger than 100% of the training images")


def test_a_file_that_is_no_image_is_told(visit, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    page = visit()
    upload(page, "Tag", tmp_path / "text.png")
    expect(page.get_by_test_id("toast-body")).to_contain_text("this file is no image that can be read: give a PNG")
    expect(page.locator("#tagged li")).to_have_count(0)


def test_a_file_that_is_too_large_is_told(visit, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(11 * 2**20))
    page = visit()
    upload(page, "Tag", tmp_path / "large.png")
    expect(page.get_by_test_id("toast-body")).to_contain_text("size")


def test_edit(visit, face, screenshots):
    page = visit()
    made(page)
    page.get_by_role("tab", name="Edit").click()
    panel = page.get_by_role("tabpanel").locator("visible=true")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("choose at least one attribute")
    page.get_by_role("button", name="Take the first image of Make").locator("visible=true").click()
    page.get_by_label("Switch off").click()
    page.get_by_role("option", name="Sunglasses").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit", exact=True).click()
    row = page.locator("#edited tr", has_text="no Sunglasses")
    expect(row).to_be_visible()
    before, after = [float(text.rstrip("%")) for text in row.locator("td").all_inner_texts()[1:]]
    assert before < 50 < after
    expect(panel.locator("img")).to_have_count(2)
    page.screenshot(path=screenshots / "demo-edit.png", full_page=True)


def test_compare(visit, screenshots):
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("combobox", name="Yes").click()
    expect(page.get_by_role("option")).to_contain_text(["Black Hair", "Blond Hair", "Smiling"])
    page.get_by_role("option", name="Smiling", exact=False).click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#compared h3")).to_have_text(["jem-avatars", "jem-celeba"])
    expect(page.locator("#compared figure")).to_have_count(8)
    page.screenshot(path=screenshots / "demo-compare.png", full_page=True)


@pytest.mark.parametrize("tab", ["Make", "Tag", "Edit", "Compare"])
def test_a_phone_shows_the_page_at_its_width(visit, screenshots, tab):
    page = visit(viewport=PHONE)
    made(page)
    page.get_by_role("tab", name=tab).click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=screenshots / f"demo-phone-{tab.lower()}.png", full_page=True)
