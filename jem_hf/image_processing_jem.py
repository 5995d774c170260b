"""Images in, pixels in [-1, 1] out, and back."""

import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling

from .hub_jem import PROCESSOR_AUTO_MAP, OnHub, save_code, update_json


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
