import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from jem_hf.metrics.prediction import expected_calibration_error, reliability_curve
from jem_hf.plots import image_grid, reliability_diagram


def test_grid_places_enlarged_pixels():
    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    images[1, 0, 0, 1] = 255
    grid = np.asarray(image_grid(images, num_columns=2, scale=3, padding=1))
    assert grid.shape == (2 * 7 + 1, 2 * 7 + 1, 3)
    expected = np.full(grid.shape, 255)
    expected[1:7, 1:7] = expected[1:7, 8:14] = expected[8:14, 1:7] = 0
    expected[1:4, 11:14, 0] = 255
    assert (grid == expected).all()


def test_floats_bytes_and_pil_images_give_the_same_grid():
    pixels = torch.arange(0, 256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    grid = np.asarray(image_grid(pixels))
    assert (grid == np.asarray(image_grid(pixels.float() / 127.5 - 1))).all()
    assert (grid == np.asarray(image_grid([Image.fromarray(pixels[0].permute(1, 2, 0).numpy())]))).all()
    assert (grid == np.asarray(image_grid(pixels[:, :1]))).all()


def test_floats_out_of_range_are_clamped():
    grid = np.asarray(image_grid(torch.tensor([-7.0, 7.0]).view(1, 1, 1, 2), padding=0))
    assert grid[0, :, 0].tolist() == [0, 255]


def test_row_labels_stand_left_of_their_row_and_inside_it():
    images = torch.full((4, 3, 32, 32), 255, dtype=torch.uint8)
    plain = image_grid(images, num_columns=2, scale=2)
    headed = image_grid(images, num_columns=2, scale=2, column_labels=["a", "b"])
    assert headed.width == plain.width and headed.height > plain.height
    assert (np.asarray(headed)[-plain.height :] == np.asarray(plain)).all()
    with pytest.raises(ValueError, match="1 column labels for 2 columns"):
        image_grid(images, num_columns=2, column_labels=["a"])
    labelled = image_grid(images, num_columns=2, scale=2, row_labels=["", "Eyeglasses & ~Beard & Smiling"])
    margin = labelled.width - plain.width
    assert margin > 0 and labelled.height == plain.height
    ink = np.asarray(labelled.convert("L")) < 128
    rows, columns = np.nonzero(ink)
    assert rows.min() > 66 and rows.max() < labelled.height - 2
    assert columns.min() > 2 and columns.max() < margin


@pytest.mark.parametrize(
    ("images", "row_labels", "message"),
    [
        ([], None, "no images"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], None, "one size"),
        ([Image.new("RGB", (4, 4))], ["a", "b"], "2 row labels for 1 rows"),
    ],
)
def test_bad_grids_are_refused(images, row_labels, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, row_labels=row_labels)


def test_reliability_diagram_shows_the_gap_in_red_where_there_is_one(tmp_path):
    p = np.linspace(0.5, 1, 1000)
    right = np.arange(1000) % 100 < 100 * p
    probabilities = np.stack([1 - p, p], 1)[:, None]
    shares = {}
    for name, labels in {"calibrated": right, "overconfident": right & (np.arange(1000) % 2 == 0)}.items():
        curve = reliability_curve(probabilities, labels[:, None].astype(int))
        reliability_diagram({name: (curve, expected_calibration_error(curve))}, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        shares[name] = (pixels[..., 0] - pixels[..., 2] > 40).mean()
    assert shares["overconfident"] > 0.05 > 3 * shares["calibrated"]


def test_one_panel_a_model(tmp_path):
    probabilities = np.full((10, 1, 2), 0.5)
    curve = reliability_curve(probabilities, np.zeros((10, 1), dtype=int))
    for names in ("a", "ab"):
        reliability_diagram({name: (curve, 0.5) for name in names}, tmp_path / f"{names}.png")
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "ab.png") as two:
        assert one.height == two.height and two.width > 1.7 * one.width


def test_more_than_three_models_stand_in_two_rows(tmp_path):
    curve = reliability_curve(np.full((10, 1, 2), 0.5), np.zeros((10, 1), dtype=int), equal_mass=True)
    for names in ("abc", "abcde"):
        reliability_diagram({name: (curve, 0.5) for name in names}, tmp_path / f"{names}.png")
    with Image.open(tmp_path / "abc.png") as three, Image.open(tmp_path / "abcde.png") as five:
        assert five.width == three.width and five.height > 1.8 * three.height


@pytest.mark.slow
def test_matplotlib_is_imported_only_to_draw_and_never_its_global_state(tmp_path):
    code = (
        "import sys, numpy as np; from jem_hf import plots; assert 'matplotlib' not in sys.modules;"
        "curve = dict(confidence=np.array([.7]), accuracy=np.array([.7]), count=np.array([1]),"
        "edges=np.array([0, 1]));"
        f"plots.reliability_diagram(dict(a=(curve, 0.0)), {str(tmp_path / 'a.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
