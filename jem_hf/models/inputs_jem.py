"""Images, codes and labels as they must be: one clear error where they are not, before any work is done."""

import torch

from .configuration_jem import JemConfig


class CheckedInputs:
    """What a model with a `config` refuses."""

    config: JemConfig

    def _check_codes(self, codes: torch.Tensor) -> None:
        """Raise `ValueError` unless these can be codes (B, *config.code_shape), or images where these are theirs."""
        if self.config.autoencoder is None:
            self._check_pixels(codes)
        elif codes.shape[1:] != self.config.code_shape:
            raise ValueError(f"codes {self.config.code_shape} are expected, as `encode` makes them, not {codes.shape}")

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        """Raise `ValueError` unless these can be images (B, C, H, W) in [-1, 1], or on their way there."""
        config = self.config
        expected = (config.num_channels, config.image_size, config.image_size)
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.shape[1:] != expected:
            shape = tuple(getattr(pixel_values, "shape", ()))
            raise ValueError(f"a batch of images {expected} is expected, not {shape}: use JemImageProcessor")
        remedy = "scale those of 0 to 255 by x / 127.5 - 1, or use JemImageProcessor"
        if not pixel_values.is_floating_point():
            raise ValueError(f"images are floats in [-1, 1], not {pixel_values.dtype}: {remedy}")
        # Not those of a chain, which have a gradient: a look at their values would wait for the device in every step.
        # Noisy ones leave [-1, 1] too, but none has no pixel below 0 and one above 2. Exported programs look at none.
        if pixel_values.numel() and not pixel_values.requires_grad and not torch.compiler.is_compiling():
            lowest, highest = pixel_values.aminmax()
            if lowest >= 0 and highest > 2:
                raise ValueError(f"images are in [-1, 1], not from {lowest:g} to {highest:g}: {remedy}")

    def _checked(self, labels: torch.Tensor, num_images: int | None = None) -> torch.Tensor:
        sizes = self.config.num_values
        is_tensor = isinstance(labels, torch.Tensor)
        found = f"{labels.dtype} {tuple(labels.shape)}" if is_tensor else repr(labels)
        is_whole = is_tensor and not labels.is_floating_point() and not labels.is_complex()
        if not is_whole or labels.shape[1:] != (len(sizes),) or num_images not in (None, len(labels)):
            shape = f"({'batch' if num_images is None else num_images}, {len(sizes)})"
            raise ValueError(f"labels are integers of shape {shape}, a column for each attribute, not {found}")
        labels = labels.long()
        wrong = ((labels < -1) | (labels >= torch.tensor(sizes, device=labels.device))).nonzero()
        if len(wrong):
            row, k = wrong[0].tolist()
            label, name = labels[row, k].item(), list(self.config.named_values)[k]
            values = f"use 0 to {sizes[k] - 1}, or -1 where it is missing"
            raise ValueError(f"label {label} of image {row} is not a value of {name!r}: {values}")
        return labels
