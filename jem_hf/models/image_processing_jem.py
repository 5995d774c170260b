"""Images in, pixels in [-1, 1] out, and back."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling

from .hub_jem import PROCESSOR_AUTO_MAP, OnHub, save_code, update_json

MAX_ASPECT_RATIO = 200


def read_image(path: str | Path) -> Image.Image:
    """The image of a file, upright and in RGB. Raises `ValueError` for a file that is none, damaged or too large."""
    try:
        with Image.open(path) as image:
            _check_size(image)
            return to_rgb(image)
    except Exception as error:  # of many kinds: PIL's and those of its decoders
        raise ValueError(f"cannot read the image {str(path)!r}: {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """
    An image of any mode, upright and in RGB: 16 bits scaled to 8, transparency on white.

    Raises:
        ValueError: no pixels, more than `PIL.Image.MAX_IMAGE_PIXELS`, sides of 200 to 1 and beyond, or pixels of 32
            bits that are not those of an image of 8 or 16.
    """
    _check_size(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() < 1 << 16):
            raise ValueError(
                f"pixels of mode {image.mode} are beyond 0 to 65535: save the image with 8 bits a channel"
            )
        if image.mode == "F" and pixels.max() > 255:
            raise ValueError("pixels of mode F are beyond 0 to 255: save the image with 8 bits a channel")
        scale = 1 if image.mode == "F" else 257
        image = Image.fromarray((pixels / scale).round().astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < 1 or max(width, height) >= MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"an image of {width}x{height} pixels is no picture: its sides are below {MAX_ASPECT_RATIO} to 1"
        )
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{width}x{height} pixels are too many: make the image smaller")


def _as_tensor(image) -> torch.Tensor:
    """An array as a tensor that can be resized. Raises `ValueError` for pixels beyond 0 to 255."""
    image = torch.as_tensor(image)
    if not image.numel() or image.is_complex() or not (image.double().min() >= 0 and image.double().max() <= 255):
        raise ValueError("pixels of an array or tensor are numbers from 0 to 255: scale them, or give a PIL image")
    return image.float() if image.is_floating_point() else image.to(torch.uint8)


class JemImageProcessor(OnHub, TorchvisionBackend):
    """
    Resizes the shorter side, crops the centre and scales pixels to [-1, 1].

    A `shortest_edge` above the crop's size zooms in: aligned CelebA faces fill the frame at 1.25 times.
    """

    checkpoint_files = ("preprocessor_config.json",)
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"shortest_edge": 32}
    crop_size = {"height": 32, "width": 32}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def save_pretrained(self, save_directory, *, code: bool = True, **kwargs):
        """Save `preprocessor_config.json` and, unless `code` is False, what makes it work without `jem_hf`."""
        saved = super().save_pretrained(save_directory, **kwargs)
        if code:
            save_code(save_directory)
            update_json(saved[0], {"auto_map": PROCESSOR_AUTO_MAP})
        return saved

    def to_dict(self):
        content = super().to_dict()
        content.pop("auto_map", None)  # names code: of the folder that it was loaded from
        return content

    def process_image(self, image, do_convert_rgb=None, **kwargs):
        """One image (C, H, W) of an image, array or tensor; see [`to_rgb`] for what it refuses."""
        if not isinstance(image, Image.Image):
            image = _as_tensor(image)
        elif do_convert_rgb:
            image = to_rgb(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

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
