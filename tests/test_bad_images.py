"""Images of every mode, size and depth, and files that are none."""

import hashlib
import io
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from jem_hf import JemImageProcessor, JemModel, encode_dataset
from jem_hf.cli import app
from jem_hf.models.image_processing_jem import MAX_ASPECT_RATIO, read_image, to_rgb

PROCESSOR = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
]

quick = settings(max_examples=150, derandomize=True, deadline=None, database=None)


def refused(call):
    """What a call returns, or None where it raises `ValueError` with a message."""
    try:
        return call()
    except ValueError as error:
        assert str(error).strip()


def png(width, height, depth=8, colour=0):
    """A PNG whose header says so many pixels, and which has none."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(image, format="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return buffer.getvalue()


@settings(quick, max_examples=300)
@given(st.sampled_from(MODES), st.integers(0, 40) | st.integers(0, 900), st.integers(0, 40))
def test_every_mode_and_size_gives_pixels_or_an_error(mode, width, height):
    pixels = refused(lambda: PROCESSOR(Image.new(mode, (width, height)), return_tensors="pt")["pixel_values"])
    shorter, longer = sorted((width, height))
    assert (pixels is None) == (shorter == 0 or longer >= MAX_ASPECT_RATIO * shorter)
    if pixels is not None:
        assert pixels.shape == (1, 3, 8, 8) and pixels.abs().max() <= 1


arrays = st.builds(
    lambda shape, dtype, low, high, seed: (low + (high - low) * np.random.default_rng(seed).random(shape)).astype(
        dtype
    ),
    st.sampled_from([(8, 8), (3, 9, 8), (9, 8, 3), (9, 8, 4), (1, 8, 8), (0, 8, 3), (2, 2), (5, 9, 8), (2, 3, 9, 8)]),
    st.sampled_from(["uint8", "uint16", "int16", "int64", "float16", "float32", "float64", "complex64"]),
    st.sampled_from([0, 0, -300]),
    st.sampled_from([1, 255, 255, 60_000, np.nan]),
    st.integers(0, 99),
)


@pytest.mark.filterwarnings("ignore")
@quick
@given(arrays, st.booleans())
def test_every_array_gives_pixels_or_an_error(array, as_tensor):
    image = torch.from_numpy(array) if as_tensor else array
    pixels = refused(lambda: PROCESSOR(image, return_tensors="pt")["pixel_values"])
    if pixels is not None:
        assert pixels.shape[1:] == (3, 8, 8) and pixels.isfinite().all() and pixels.abs().max() < 2


@settings(quick, max_examples=400)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data, tmp_path_factory):
    image = Image.radial_gradient("L").resize((24, 20)).convert("RGB")
    content = bytearray(encoded(image, data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    found = refused(lambda: read_image(path))
    assert found is None or found.mode == "RGB"


def test_16_bits_keep_their_grey_levels(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "16.png")
    assert Image.open(tmp_path / "16.png").mode.startswith("I")
    found = np.asarray(read_image(tmp_path / "16.png"))
    assert (found == levels[..., None]).all()
    rows = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / "16.png")], "Hat": [True]},
        features=datasets.Features({"image": datasets.Image(), "Hat": datasets.Value("bool")}),
    )
    processor = JemImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    assert (encode_dataset(rows, processor, ["Hat"]).images == torch.tensor(levels.astype(np.uint8))).all()
    x = processor(Image.open(tmp_path / "16.png"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(x[0, 0], torch.tensor(levels.astype(np.float32)) / 127.5 - 1)


def test_transparency_is_on_white_and_photographs_are_upright():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]
    palette = image.convert("RGB").quantize(2)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("RGB", (30, 20))
    turned.getexif()[274] = 6
    assert to_rgb(Image.open(io.BytesIO(encoded(turned, "JPEG", exif=turned.getexif())))).size == (20, 30)


@pytest.mark.parametrize("mode, value", [("I", -1), ("I", 1 << 16), ("F", float("nan")), ("F", 300.0)])
def test_32_bits_beyond_an_image_are_refused(mode, value):
    with pytest.raises(ValueError, match="8 bits a channel"):
        to_rgb(Image.new(mode, (4, 4), value))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from jem_hf import JemConfig

    folder = tmp_path_factory.mktemp("model")
    config = JemConfig(attributes=["Hat"], image_size=8, backbone_kwargs={"width": 4, "hidden_size": 8})
    JemModel(config).save_pretrained(folder, code=False)
    PROCESSOR.save_pretrained(folder, code=False)
    return folder


FILES = {
    "nothing": b"",
    "text": b"I am no image",
    "half": encoded(Image.radial_gradient("L"))[:300],
    "header only": png(8, 8),
    "bomb": png(60_000, 60_000),
    "half a bomb": png(10_000, 10_000),
    "a line": encoded(Image.new("RGB", (2000, 1))),
    "pickle": b"\x80\x04\x95.",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", FILES)
def test_commands_refuse_what_is_no_image(checkpoint, tmp_path, name):
    path = tmp_path / "image.png"
    path.write_bytes(FILES[name])
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    before = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()}
    for command in (
        ["predict", checkpoint, path, tmp_path / "good.png"],
        ["edit", checkpoint, path, "Hat", "--output", tmp_path / "out.png"],
        ["edit", checkpoint, tmp_path / "good.png", "Hat", "--mask", path, "--output", tmp_path / "out.png"],
    ):
        run = CliRunner().invoke(app, [str(each) for each in command])
        assert run.exit_code == 2 and not run.stdout
        assert (
            len(run.stderr.splitlines()) == 1 and "cannot read the image" in run.stderr and "image.png" in run.stderr
        )
    assert before == {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_datasets_name_or_leave_out_what_is_no_image(tmp_path):
    images = [encoded(Image.new("RGB", (9, 9), (10 * i, 0, 0))) for i in range(3)]
    cells = [images[0], *FILES.values(), images[1], images[2]]
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(cells)], "Hat": [True] * len(cells)},
        features=datasets.Features({"image": datasets.Image(), "Hat": datasets.Value("bool")}),
    )
    kept = encode_dataset(rows, PROCESSOR, ["Hat"], on_error="skip")
    assert kept.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    for i in range(1, len(FILES) + 1):
        with pytest.raises(ValueError, match=f"row 0 .*{i}.png.* cannot be read .*on_error='skip'"):
            encode_dataset(rows.select([i]), PROCESSOR, ["Hat"])
