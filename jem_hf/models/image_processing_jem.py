"""Images in, pixels in [-1, 1] out, and back. Whatever shows an image to the model opens it here."""

import io
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import ImagesKwargs
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling

from .hub_jem import PROCESSOR_AUTO_MAP, OnHub

MAX_ASPECT_RATIO = 200
GROUND_TOLERANCE = 12  # of 255: what JPEG leaves of one colour
GROUND_MARGIN = 0.04  # of ground on each side, as a share of what stands on it
ADDRESSES = ("http://", "https://", "data:")

ImageSource = Image.Image | np.ndarray | torch.Tensor | str | Path | bytes


def open_image(
    source: ImageSource,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
    channels: str | None = None,
    min_size: int | None = None,
) -> Image.Image:
    """
    An image, upright, whole and with 8 bits a channel.

    Args:
        source: An image, the path or URL of one, the bytes of a file, or an array or tensor: (H, W), (H, W, C) or
            (C, H, W), with 1 to 4 channels of integers from 0 to 255 (of 16 bits: to 65535), floats from 0 to 1 or
            from 0 to 255, or bools.
        formats (`tuple[str]`, *optional*): Names of the formats that a file may have, by default all that PIL reads.
        max_pixels (`int`, *optional*, defaults to `PIL.Image.MAX_IMAGE_PIXELS`): Limit of height times width.
        channels (`str`, *optional*): `"channels_first"` or `"channels_last"`, for arrays that could be either.
        min_size (`int`, *optional*): A JPEG whose shorter side is 2, 4 or 8 times as long is decoded at a half, a
            quarter or an eighth of its size, which is quicker (`PIL.Image.Image.draft`).

    Raises:
        ValueError: no image, a damaged one, one that is too large or too narrow, or pixels out of their range.
    """
    if isinstance(source, str | Path | bytes):
        try:
            content = source
            if isinstance(source, str) and source.startswith(ADDRESSES):
                content = urlopen(source, timeout=60).read()
            file = io.BytesIO(content) if isinstance(content, bytes) else content
            with Image.open(file, formats=formats) as image:
                if min_size is not None:
                    image.draft(None, (min_size, min_size))
                return _upright(image, max_pixels)
        except Exception as error:  # of many kinds: PIL's and those of its decoders
            reason = str(error) or type(error).__name__
            name = "" if isinstance(source, bytes) else f" {str(source)[:200]!r}"
            raise ValueError(f"cannot read the image{name}: {reason}") from error
    return _upright(source if isinstance(source, Image.Image) else _from_array(source, channels), max_pixels)


def read_image(
    source: ImageSource, formats: tuple[str, ...] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """An image of any kind in RGB, see [`open_image`] and [`to_rgb`]."""
    return to_rgb(open_image(source, formats, max_pixels))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode, upright and in RGB, transparency on white. Raises `ValueError` as [`open_image`] does."""
    image = _upright(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def subject_square(image: torch.Tensor) -> tuple[int, int, int] | None:
    """
    Top, left and side of the square around what stands on a ground of one colour, that of the corners; it can reach
    beyond the image. None where there is no such ground, or nothing on it.

    Args:
        image (`torch.Tensor`): uint8 (C, H, W).
    """
    corners = _corners(image)
    stands_out = (image.int() - _ground(image)).abs().amax(0) > GROUND_TOLERANCE
    if (corners.int() - _ground(image)[:, 0]).abs().amax(0).gt(GROUND_TOLERANCE).sum() > 1 or not stands_out.any():
        return None
    (top, bottom), (left, right) = (stands_out.any(axis).nonzero().aminmax() for axis in (1, 0))
    height, width = int(bottom - top) + 1, int(right - left) + 1
    side = round(max(height, width) * (1 + 2 * GROUND_MARGIN))
    return int(top) - (side - height) // 2, int(left) - (side - width) // 2, side


def cut_square(image: torch.Tensor, square: tuple[int, int, int] | None) -> torch.Tensor:
    """A square of an image (C, H, W), see [`subject_square`], the colour of the corners beyond its edges."""
    if square is None:
        return image
    top, left, side = square
    whole = _ground(image).to(image.dtype).expand(-1, side, side).clone()
    shown = image[:, max(0, top) : top + side, max(0, left) : left + side]
    down, right = max(0, -top), max(0, -left)
    whole[:, down : down + shown.shape[1], right : right + shown.shape[2]] = shown
    return whole


def check_square(crop_to: Sequence[float]) -> None:
    """Raise `ValueError` unless this is a centre inside of an image, and a side that it has."""
    if np.shape(crop_to) != (3,) or not all(0 <= share <= 1 for share in crop_to) or not crop_to[2]:
        shown = ",".join(map(str, np.ravel(crop_to)))
        raise ValueError(f"a crop is x, y and side, three shares of an image from 0 to 1 as 0.5,0.5,1, not {shown}")


def square_at(image: torch.Tensor, crop_to: Sequence[float]) -> torch.Tensor:
    """
    A square of an image (C, H, W), moved inside where it reaches beyond.

    Args:
        crop_to (`Sequence[float]`): Its centre as shares of width and height, and its side as a share of the shorter
            of them: `(0.5, 0.5, 1)` is what a centre crop leaves.

    Raises:
        ValueError: as [`check_square`].
    """
    check_square(crop_to)
    x, y, share = crop_to
    height, width = image.shape[1:]
    side = max(1, round(share * min(height, width)))
    top, left = (min(max(0, round(at * whole - side / 2)), whole - side) for at, whole in ((y, height), (x, width)))
    return image[:, top : top + side, left : left + side]


def cropped(image: Image.Image, crop_to: Sequence[float] | None) -> Image.Image:
    """A square of an image, see [`square_at`]."""
    return image if crop_to is None else to_pil_image(square_at(pil_to_tensor(image), crop_to))


def _corners(image: torch.Tensor) -> torch.Tensor:
    """(C, 4)"""
    return image[:, [0, 0, -1, -1], [0, -1, 0, -1]]


def _ground(image: torch.Tensor) -> torch.Tensor:
    """(C, 1, 1), the median of the corners: one of them may be covered."""
    return _corners(image).int().median(1).values[:, None, None]


def to_mask(image: Image.Image) -> Image.Image:
    """
    A mask as white and black in RGB: white is what is bright and opaque; where nothing is, strokes on a transparent
    ground, of whatever colour. Raises `ValueError` where nothing is white, or as [`open_image`] does.
    """
    image = _upright(image)
    image = image if image.has_transparency_data else image.convert("RGB")
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    brightness, alpha = pixels[..., :3].max(-1), pixels[..., 3] / 255
    if brightness.max() == 1:  # 0 and 1, as masks of labels are
        brightness = brightness * 255
    white = brightness * alpha > 127.5
    if not white.any() and alpha.min() <= 0.5:
        white = alpha > 0.5
    if not white.any():
        raise ValueError("the mask has nothing white: paint white what is to be drawn anew, and the rest black")
    return Image.fromarray(white).convert("RGB")


def _upright(image: Image.Image, max_pixels: int | None = None) -> Image.Image:
    """The image as its camera was held, in a mode of 8 bits that other modes can be made of."""
    width, height = image.size
    if min(width, height) < 1 or max(width, height) >= MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{width}x{height} pixels are no picture: its sides are below {MAX_ASPECT_RATIO} to 1")
    if (limit := max_pixels or Image.MAX_IMAGE_PIXELS) and width * height > limit:
        raise ValueError(f"{width}x{height} pixels are more than {limit}: make the image smaller")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        if image.mode == "I" and pixels.min() >= 0 and pixels.max() < 1 << 16:  # PIL's for 16 bits
            pixels = pixels.astype(np.uint16)
        try:
            return _from_array(pixels)
        except ValueError as error:
            raise ValueError(f"pixels of mode {image.mode}: save the image with 8 bits a channel; {error}") from error
    return image.convert("LA") if image.mode == "La" else image


def _from_array(array: np.ndarray | torch.Tensor, channels: str | None = None) -> Image.Image:
    """The image of one array or tensor, see [`open_image`]."""
    pixels = to_bytes(array)
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 3 and (pixels.shape[0] <= 4 if channels is None else channels == "channels_first"):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or pixels.shape[2:] > (4,):
        raise ValueError(f"an array {pixels.shape} is no image: give (H, W), (H, W, C) or (C, H, W), C up to 4")
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def to_bytes(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """Pixels as uint8, see [`open_image`]. Raises `ValueError` for others, such as those in [-1, 1]."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.double() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    pixels = np.asarray(array)
    kind = pixels.dtype.kind
    if kind in "buif" and pixels.size:
        highest, scale = pixels.max(), 1.0
        if kind == "u" and pixels.dtype.itemsize == 2:
            scale = 1 / 257
        elif kind == "b" or (kind == "f" and highest < 1.001):  # 1, and what rounding makes of it
            scale = 255.0
        scaled = (pixels.astype(float) * scale).round()
        is_overshot = kind == "f" and scale == 1 and highest < 2  # by a filter: no picture of 0 to 255 is as dark
        if scaled.min() >= 0 and scaled.max() <= 255 and not is_overshot:
            return scaled.astype(np.uint8)
    raise ValueError(
        f"pixels of an array or tensor are numbers from 0 to 255 or floats from 0 to 1, not these of {pixels.dtype}: "
        "clip or scale them, those in [-1, 1] as (x + 1) / 2"
    )


class JemImagesKwargs(ImagesKwargs, total=False):
    """
    do_trim (`bool`, *optional*, defaults to `False`): Cut what stands on a ground of one colour out first.
    crop_to (`list[float]`, *optional*): Cut a square out first, see [`square_at`].
    """

    do_trim: bool | None
    crop_to: Sequence[float] | None


class JemImageProcessor(OnHub, TorchvisionBackend):
    """
    Resizes the shorter side, crops the centre and scales pixels to [-1, 1].

    A `shortest_edge` above the crop's size zooms in: aligned CelebA faces fill the frame at 1.25 times. With `do_trim`
    an image that shows something on a ground of one colour, as catalogues do, is first cut to the square around that.
    With `crop_to` a square is cut out first: [`find_crop`] finds the one that a model knows best.
    """

    checkpoint_files = ("preprocessor_config.json",)
    remote_code = {"auto_map": PROCESSOR_AUTO_MAP}
    valid_kwargs = JemImagesKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"shortest_edge": 32}
    crop_size = {"height": 32, "width": 32}
    default_to_square = False
    do_trim = False
    crop_to = None
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def to_dict(self):
        # without what names code: of the folder that it was loaded from
        return {name: value for name, value in super().to_dict().items() if name != "auto_map"}

    def fetch_images(self, images):
        """Images of all kinds that [`open_image`] takes, lists of them, and batches in one array, scaled alike."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(each) for each in images]
        if not isinstance(images, np.ndarray | torch.Tensor):
            return open_image(images)
        pixels = to_bytes(images)
        return pixels[None] if pixels.ndim == 2 else pixels

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs):
        """One image as a tensor (C, H, W); see [`open_image`] for what it refuses."""
        image = open_image(image, channels=input_data_format)
        return super().process_image(to_rgb(image) if do_convert_rgb else image, **kwargs)

    def _preprocess(self, images, do_trim=False, crop_to=None, **kwargs):
        if crop_to is not None:
            images = [square_at(image, crop_to) for image in images]
        if do_trim:
            images = [cut_square(image, subject_square(image)) for image in images]
        return super()._preprocess(images, **kwargs)

    @staticmethod
    def to_pil(pixel_values: torch.Tensor) -> list[Image.Image]:
        """Images of pixels (B, C, H, W) in [-1, 1]; values beyond are clipped."""
        pixels = pixel_values.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to("cpu", torch.uint8)
        arrays = pixels.permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to pixels in [-1, 1], as the image processor scales them; floats are such pixels already."""
    return images if images.is_floating_point() else images / 127.5 - 1


__all__ = ["JemImageProcessor"]
