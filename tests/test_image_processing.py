import numpy as np
import torch
from PIL import Image

from jem_hf import JemImageProcessor
from jem_hf.training.buffer import dequantise, quantise


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
