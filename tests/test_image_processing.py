import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from jem_hf import JemImageProcessor
from jem_hf.models.image_processing_jem import open_image, read_image
from jem_hf.training.augmentation import dequantise, quantise


def test_pixels_are_scaled_to_plus_minus_one_and_back():
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    x = JemImageProcessor()(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    assert x.shape == (1, 3, 32, 32)
    torch.testing.assert_close(x[0], torch.tensor(array).permute(2, 0, 1) / 127.5 - 1, atol=1e-6, rtol=0)
    assert (np.asarray(JemImageProcessor.to_pil(x)[0]) == array).all()


def test_larger_shortest_edge_zooms_in(tmp_path):
    image = Image.new("RGB", (80, 100), "white")
    image.paste("black", (16, 20, 64, 80))
    JemImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    x = JemImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    assert x.shape == (1, 3, 32, 32)
    assert (x < -0.9).all()  # the crop lies inside the black rectangle


def test_grayscale_becomes_rgb():
    x = JemImageProcessor()(Image.new("L", (40, 40), 128), return_tensors="pt")["pixel_values"]
    assert x.shape == (1, 3, 32, 32)


def test_dequantisation_is_undone_by_quantisation():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    x = dequantise(images, torch.Generator().manual_seed(0))
    assert x.min() >= -1 and x.max() < 1
    assert torch.equal(quantise(x), images)


LAYOUTS = {
    "channels last": lambda x: x,
    "channels first": lambda x: x.transpose(2, 0, 1),
    "mirrored twice": lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
    "with alpha": lambda x: np.concatenate([x, np.full_like(x[..., :1], x.max())], -1),
    "one in a batch": lambda x: x[None],
    "a batch": lambda x: np.stack([x, x]),
    "a list": lambda x: [x, x],
}
KINDS = {
    "uint8": lambda x: x,
    "int64": lambda x: x.astype(np.int64),
    "uint16": lambda x: x.astype(np.uint16) * 257,
    "floats to 255": lambda x: x.astype(np.float32),
    "floats to 1": lambda x: x / 255.0,
    "halves to 1": lambda x: (x / 255).astype(np.float16),
    "tensor": lambda x: torch.tensor(x.copy()),
    "tensor to 1": lambda x: torch.tensor(x.copy()) / 255,
    "bfloat16 to 255": lambda x: torch.tensor(x.copy()).bfloat16(),
}


@pytest.fixture
def photograph():
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    array[0, 0] = 255
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_and_tensors_are_taken_as_what_they_are(photograph, kind, layout):
    expected = JemImageProcessor()(Image.fromarray(photograph), return_tensors="pt")["pixel_values"]
    source = LAYOUTS[layout](photograph)
    source = [KINDS[kind](each) for each in source] if isinstance(source, list) else KINDS[kind](source)
    found = JemImageProcessor()(source, return_tensors="pt")["pixel_values"]
    tolerance = 1 / 64 if "16 " in kind or "halves" in kind else 1e-6
    torch.testing.assert_close(found, expected.expand_as(found), atol=tolerance, rtol=0)
    assert len(found) == (2 if layout in ("a batch", "a list") else 1)


def test_grey_and_binary_arrays():
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    expected = JemImageProcessor()(Image.fromarray(grey), return_tensors="pt")["pixel_values"]
    for source in (
        grey,
        grey / 255,
        grey[None],
        grey[..., None],
        [grey],
        torch.tensor(grey),
        Image.fromarray(grey / 255),
    ):
        assert torch.allclose(JemImageProcessor()(source, return_tensors="pt")["pixel_values"], expected, atol=1e-6)
    white = JemImageProcessor()(grey > -1, return_tensors="pt")["pixel_values"]
    assert (white == 1).all()


@pytest.mark.parametrize(
    "array, message",
    [
        (np.linspace(-1, 1, 3 * 32 * 32).reshape(3, 32, 32), r"\[-1, 1\] as \(x \+ 1\) / 2"),
        (np.linspace(0, 1.1, 3 * 32 * 32).reshape(3, 32, 32), "clip or scale"),
        (np.linspace(0, 70_000, 32 * 32 * 3).reshape(32, 32, 3), "from 0 to 255 or floats from 0 to 1"),
        (np.full((32, 32, 3), np.nan), "not these of float64"),
        (np.zeros((32, 32, 3), complex), "not these of complex128"),
        (np.zeros((5, 32, 32)), "is no image"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(ValueError, match=message):
        JemImageProcessor()(array, return_tensors="pt")
    with pytest.raises(ValueError, match=message):
        open_image(torch.tensor(array))


def strokes(mode, ground, stroke):
    """A mask whose upper half is painted."""
    image = Image.new(mode, (8, 8), ground)
    image.paste(stroke, (0, 0, 8, 4))
    return image


MASKS = {
    "1": strokes("1", 0, 1),
    "L": strokes("L", 0, 255),
    "L of 0 and 1": strokes("L", 0, 1),
    "soft": strokes("L", 100, 140),
    "P": strokes("L", 0, 255).convert("P"),
    "RGB": strokes("RGB", "black", "white"),
    "LA": strokes("LA", (0, 0), (255, 255)),
    "RGBA": strokes("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)),
    "white, but seen only where opaque": strokes("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)),
    "opaque RGBA": strokes("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)),
    "red strokes": strokes("RGBA", (0, 0, 0, 0), (200, 0, 0, 255)),
    "black strokes": strokes("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),
    "I;16": Image.fromarray(np.repeat(np.uint16([65535, 0]), 32).reshape(8, 8)),
    "F": Image.fromarray(np.repeat(np.float32([1, 0]), 32).reshape(8, 8)),
    "bools": np.repeat([True, False], 32).reshape(8, 8),
    "integers": np.repeat([1, 0], 32).reshape(8, 8),
    "floats": torch.tensor([1.0, 0.0]).repeat_interleave(32).reshape(8, 8),
    "tensor": torch.tensor([255, 0]).repeat_interleave(32).reshape(1, 8, 8),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind(name, model, tmp_path):
    pipe = pipeline("attribute-conditional-generation", model=model)
    sources = [MASKS[name]]
    if isinstance(MASKS[name], Image.Image) and MASKS[name].mode != "F":
        MASKS[name].save(tmp_path / "mask.png")
        sources += [tmp_path / "mask.png", str(tmp_path / "mask.png")]
    for source in sources:
        mask = pipe._mask(source, Image.new("RGB", (8, 8)))
        assert mask.shape == (1, 1, 8, 8) and mask[..., :4, :].all() and not mask[..., 4:, :].any()


def test_a_mask_is_cut_as_its_photograph(model):
    pipe = pipeline("attribute-conditional-generation", model=model)
    wide = strokes("L", 0, 255).resize((32, 16), Image.Resampling.NEAREST)
    mask = pipe._mask(wide, Image.new("RGB", (32, 16)))
    assert mask[0, 0, :4].all() and not mask[0, 0, 4:].any()


def test_a_mask_is_trimmed_as_its_photograph(model, tmp_path):
    model.save_pretrained(tmp_path)
    JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_trim=True).save_pretrained(
        tmp_path
    )
    pipe = pipeline("attribute-conditional-generation", model=str(tmp_path))
    photograph = catalogue((80, 60), (40, 10, 80, 50))
    right_half = Image.new("L", (80, 60))
    right_half.paste(255, (60, 0, 80, 60))
    mask = pipe._mask(right_half, photograph)
    assert mask[0, 0, :, 4:].all() and not mask[0, 0, :, :4].any()
    with pytest.raises(ValueError, match="the mask has 8x8 pixels and its image 32x16"):
        pipe("Hat", image=Image.new("RGB", (32, 16)), mask=MASKS["L"])
    with pytest.raises(ValueError, match="nothing white: paint"):
        pipe("Hat", image=Image.new("RGB", (8, 8)), mask=Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    edge = Image.new("L", (32, 16))
    edge.paste(255, (0, 0, 4, 16))
    with pytest.raises(ValueError, match="nothing white in the part"):
        pipe("Hat", image=Image.new("RGB", (32, 16)), mask=edge)


@pytest.mark.parametrize("saved", [False, True])
def test_what_is_edited_is_the_square_that_is_named(model, tmp_path, saved):
    crop_to = [0.75, 0.5, 0.5]
    processor = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor.crop_to = crop_to if saved else None
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("attribute-conditional-generation", model=str(tmp_path))
    photograph = Image.effect_noise((64, 32), 60).convert("RGB")
    mask = Image.new("L", (64, 32))
    mask.paste(255, (40, 8, 48, 16))
    square = (40, 8, 56, 24)
    arguments = {"return_tensors": True, "seed": 0}
    cut = pipe("Hat", image=photograph, mask=mask, **arguments, **({} if saved else {"crop_to": crop_to}))
    whole = {"crop_to": [0.5, 0.5, 1]} if saved else {}
    expected = pipe("Hat", image=photograph.crop(square), mask=mask.crop(square), **arguments, **whole)
    assert torch.equal(cut[0]["pixel_values"], expected[0]["pixel_values"])
    small = photograph.resize((8, 8))  # of the model's size: it has been cut
    taken = [pipe("Hat", image=small, **arguments, **crop) for crop in ({}, {"crop_to": [0.5, 0.5, 1]})]
    assert torch.equal(taken[0][0]["pixel_values"], taken[1][0]["pixel_values"])
    with pytest.raises(ValueError, match="three shares of an image"):
        pipe("Hat", image=photograph, crop_to=0.5)


def test_edits_of_arrays_are_those_of_the_image(model):
    pipe = pipeline("attribute-conditional-generation", model=model)
    array = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    call = dict(seed=0, num_inference_steps=2, return_tensors=True)
    expected = pipe("Hat", image=Image.fromarray(array), **call)[0]["pixel_values"]
    for source in (array, array / 255, torch.tensor(array).permute(2, 0, 1)[None] / 255):
        torch.testing.assert_close(pipe("Hat", image=source, **call)[0]["pixel_values"], expected)


def test_images_of_an_address():
    buffer = io.BytesIO()
    MASKS["RGBA"].save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert open_image(address).mode == "RGBA" and read_image(address).getpixel((0, 7)) == (255, 255, 255)
    with pytest.raises(ValueError, match="cannot read the image 'data:image/png;base64,AAAA'"):
        open_image("data:image/png;base64,AAAA")


def catalogue(size, box, ground="white"):
    """A red thing on a ground."""
    image = Image.new("RGB", size, ground)
    image.paste("red", box)
    return image


TRIMMING = JemImageProcessor(size={"shortest_edge": 54}, crop_size={"height": 54, "width": 54}, do_trim=True)


@pytest.mark.parametrize(
    "size, box", [((60, 80), (5, 10, 55, 40)), ((200, 50), (160, 0, 200, 24)), ((60, 80), (0, 0, 25, 15))]
)
def test_what_stands_on_a_plain_ground_is_cut_out(size, box):
    """In whole, in the middle, with 4% of ground on each side; one corner may be covered."""
    (x,) = TRIMMING(catalogue(size, box, (240, 240, 250)), return_tensors="pt")["pixel_values"]
    is_red = x[1] < 0
    rows, columns = is_red.any(1).nonzero()[:, 0], is_red.any(0).nonzero()[:, 0]
    width, height = box[2] - box[0], box[3] - box[1]
    unit = 50 / max(width, height)
    assert len(columns) == pytest.approx(width * unit, abs=2) and len(rows) == pytest.approx(height * unit, abs=2)
    for places in (rows, columns):
        assert places.float().mean() == pytest.approx(26.5, abs=1.5)
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([240, 240, 250]) / 127.5 - 1, atol=0.01, rtol=0)


def test_pictures_without_a_plain_ground_are_not_trimmed(tmp_path):
    TRIMMING.save_pretrained(tmp_path)
    loaded, plain = (
        JemImageProcessor.from_pretrained(tmp_path),
        JemImageProcessor(size=TRIMMING.size, crop_size=TRIMMING.crop_size),
    )
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    half = catalogue((80, 60), (0, 0, 40, 60))
    for image in (noise, half, Image.new("RGB", (80, 60), "white")):
        trimmed, whole = (each(image, return_tensors="pt")["pixel_values"] for each in (loaded, plain))
        assert torch.equal(trimmed, whole)
    image = catalogue((80, 60), (10, 10, 30, 30))
    assert torch.equal(
        loaded(image, do_trim=False, return_tensors="pt")["pixel_values"],
        plain(image, return_tensors="pt")["pixel_values"],
    )
    assert not torch.equal(
        loaded(image, return_tensors="pt")["pixel_values"], plain(image, return_tensors="pt")["pixel_values"]
    )
