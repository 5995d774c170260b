"""Where in pictures of another crop a model finds what it was trained on."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.tensors import random_rows
from ..models.image_processing_jem import JemImageProcessor, check_square, to_rgb
from ..models.modeling_jem import JemModel
from .pictures import find_pictures

Square = tuple[float, float, float]
WHOLE: Square = (0.5, 0.5, 1.0)
SIDES = tuple(2 ** (-i / 4) for i in range(9))  # of the shorter side, from all of it to a quarter
NUM_TRIED, NUM_SURE = 8, 32  # images that judge all squares, and the best of them
NUM_BEST = 3  # from which the search goes on: squares beside the right one are right in their own way
STEPS = 1 / 6, 1 / 12, 1 / 24  # of the side, by which the best one is moved and its size is changed


@torch.no_grad()
def find_crop(
    model: JemModel, images: Sequence[Image.Image], processor: JemImageProcessor
) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """
    The square that images of one kind are to be cut to so that a model takes them for its training images: the one in
    which they are least strange by [`JemModel.outlier_distance`], on average.

    Squares of nine sizes are tried all over the images, and then those around the best of them. The images are to show
    their subject in the same place, as aligned faces or the photographs of one camera do.

    Args:
        images (`Sequence[PIL.Image.Image]`): At most 32 of them are looked at.
        processor ([`JemImageProcessor`]): Of the model.

    Returns:
        crop_to: For [`JemImageProcessor`]: centre and side as shares of an image.
        distances: The mean distance of the images as they are, and of what is cut out.

    Raises:
        ValueError: no images, or a model without an outlier score.
    """
    if not images:
        raise ValueError("no images to find a crop by: give one or more")
    some = [to_rgb(images[i]) for i in random_rows(len(images), NUM_SURE).tolist()]

    def distance(crop_to: Square, num: int = NUM_SURE) -> float:
        pixels = processor(some[:num], crop_to=list(crop_to), return_tensors="pt")
        return model.outlier_distance(pixels["pixel_values"].to(model.device), quick=True).mean().item()

    def refined(square: Square) -> Square:
        for step in STEPS:
            square = min(_around(square, step), key=lambda each: distance(each, NUM_TRIED))
        return square

    shape = np.median([np.divide(image.size, min(image.size)) for image in some], 0)
    best = sorted(_squares(*shape), key=lambda square: distance(square, NUM_TRIED))[:NUM_BEST]
    crop_to = min([WHOLE, *map(refined, best)], key=distance)
    return crop_to, (distance(WHOLE), distance(crop_to))


def parse_crop(
    text: str, model: JemModel, processor: JemImageProcessor, sources: Sequence[str], output: Path | None = None
) -> tuple[list[float], tuple[float, float] | None]:
    """
    `crop_to` as a text has it, "x,y,side"; with "auto" the crop that [`find_crop`] finds for some of the pictures of
    `sources`, see [`find_pictures`], and its distances.

    Raises:
        ValueError: a text that is neither, or no picture that can be read.
    """
    if text != "auto":
        return parse_square(text), None
    smallest = JemImageProcessor(**processor.to_dict() | {"crop_to": [0.5, 0.5, SIDES[-1]]})  # large enough for all
    pictures = find_pictures(sources, smallest, output)
    images = []
    for i in random_rows(len(pictures), NUM_SURE).tolist():
        with suppress(ValueError):  # broken ones are told of when all are read
            images.append(pictures.read(pictures.names[i]))
    crop_to, distances = find_crop(model, images, processor)
    return [round(share, 3) for share in crop_to], distances


def parse_square(text: str) -> list[float]:
    """`crop_to` from "x,y,side". Raises `ValueError` for other texts."""
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        raise ValueError(f"a crop is auto or x,y,side such as 0.5,0.5,1, not {text!r}") from None
    check_square(shares)
    return shares


def _squares(*shape: float) -> list[Square]:
    """Squares of all sizes, about a third of their side apart, over images of this width and height."""
    found = []
    for side in SIDES:
        steps = [np.linspace(side / 2, s - side / 2, 1 + round(3 * (s - side) / side)) / s for s in shape]
        found += [(x, y, side) for x, y in product(*(each.tolist() for each in steps))]
    return found


def _around(square: Square, step: float) -> list[Square]:
    """A square, and those a share of its side away or larger or smaller by it."""
    x, y, side = square
    moves = product((-step, 0, step), repeat=3)
    found = [(x + right * side, y + down * side, side * (1 + larger)) for right, down, larger in moves]
    return [square, *(each for each in found if all(0 < share <= 1 for share in each))]
