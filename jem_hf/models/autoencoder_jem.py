"""Autoencoders: from images to codes and back, where an energy is one of codes and not of pixels."""

import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import cached_file

from .hub_jem import OnHub
from .values_jem import as_int, nearest_name


class Residual(nn.Module):
    """`x + f(x)` of two 3x3 convolutions behind a group norm; f is zero at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class Autoencoder(nn.Module):
    """
    A convolutional autoencoder that two cores can train, of codes with mean 0 and standard deviation 1.

    Pixels are unshuffled to half the resolution (Shi et al. 2016, arXiv 1609.05158), so that no layer works at all of
    it; strided convolutions lead down to the codes, and pixel shuffles back. There is no Kullback-Leibler term: the
    codes are standardised by running statistics, and the decoder is trained on noisy ones.

    Args:
        image_size (`int`), num_channels (`int`): Of the images.
        code_size (`int`), code_channels (`int`):
            Codes are (B, code_channels, code_size, code_size); the images' size is 2, 4, 8, ... times theirs.
        width (`int`):
            Channels of the decoder at half the resolution, a multiple of 16; they double with each halving, up to 4
            times. The encoder, which every training step of an energy passes, has half as many.
        depth (`int`): Residual blocks at each resolution of the decoder; the encoder has one.

    Raises:
        ValueError: sizes that do not fit each other, or a width that is no multiple of 16.
    """

    def __init__(self, image_size=64, num_channels=3, code_size=8, code_channels=8, width=48, depth=2):
        super().__init__()
        factor = image_size // code_size
        if factor < 2 or factor & (factor - 1) or factor * code_size != image_size:
            sizes = ", ".join(str(image_size // 2**i) for i in (1, 2, 3) if image_size % 2**i == 0)
            raise ValueError(f"images of {image_size} pixels have no codes of code_size {code_size}: choose {sizes}")
        if width % 16:
            raise ValueError(f"width of an autoencoder is a multiple of 16, not {width}")
        widths = [width * min(2**i, 4) for i in range(factor.bit_length() - 1)]
        narrow = [each // 2 for each in widths]
        encoder = [nn.PixelUnshuffle(2), nn.Conv2d(4 * num_channels, narrow[0], 3, padding=1), Residual(narrow[0])]
        for outer, inner in pairwise(narrow):
            encoder += [nn.Conv2d(outer, inner, 4, stride=2, padding=1), Residual(inner)]
        encoder += [Residual(narrow[-1]), nn.GroupNorm(8, narrow[-1]), nn.Conv2d(narrow[-1], code_channels, 1)]
        decoder = [nn.Conv2d(code_channels, widths[-1], 3, padding=1), *(Residual(widths[-1]) for _ in range(depth))]
        for inner, outer in pairwise(reversed(widths)):
            decoder += [nn.Conv2d(inner, 4 * outer, 3, padding=1), nn.PixelShuffle(2)]
            decoder += [Residual(outer) for _ in range(depth)]
        decoder += [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 4 * num_channels, 3, padding=1)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder, nn.PixelShuffle(2))
        self.standardise = nn.BatchNorm2d(code_channels, affine=False, momentum=0.05)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Codes (B, code_channels, code_size, code_size), float32, of images (B, C, H, W) in [-1, 1]."""
        return self.standardise(self.encoder(images).float())

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W), about [-1, 1]."""
        return self.decoder(codes)


class DiffusersAutoencoder(nn.Module):
    """
    An autoencoder of diffusers, such as `AutoencoderKL` or `AutoencoderTiny`, its codes standardised.

    Args:
        class_name (`str`), config (`dict`): Of diffusers.
        code_channels (`int`): Channels of the codes.
    """

    def __init__(self, class_name: str, config: dict, code_channels: int):
        super().__init__()
        self.network = _diffusers_class(class_name).from_config(config)
        self.standardise = nn.BatchNorm2d(code_channels, affine=False, momentum=None)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """As [`Autoencoder.encode`]; of a distribution of codes the mode."""
        encoded = self.network.encode(images)
        codes = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return self.standardise(codes.float())

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """As [`Autoencoder.decode`]."""
        statistics: Any = self.standardise
        mean, std = statistics.running_mean, (statistics.running_var + statistics.eps).sqrt()
        return self.network.decode((codes * std[:, None, None] + mean[:, None, None]).to(self.network.dtype)).sample


def _diffusers_class(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"{name} is an autoencoder of diffusers: pip install 'jem_hf[diffusers]'") from error
    return getattr(diffusers, name)


def complete_autoencoder(settings: dict | str, image_size: int, num_channels: int) -> dict:
    """
    `JemConfig.autoencoder` with all that it takes to build the autoencoder; `from_pretrained` stays, if it is there.

    Raises:
        ValueError: an unknown or impossible argument, or a checkpoint without autoencoder.
        OSError: no such checkpoint.
    """
    settings = {"from_pretrained": settings} if isinstance(settings, str) else dict(settings)
    name = settings.pop("from_pretrained", None)
    if name is not None and not settings:
        settings = _settings_of(name, image_size, num_channels)
    if "class_name" not in settings:
        own = {key: each.default for key, each in inspect.signature(Autoencoder).parameters.items()}
        own = {key: default for key, default in own.items() if key not in ("image_size", "num_channels")}
        for key, value in settings.items():
            if key not in own:
                raise ValueError(f"an autoencoder has no argument {key!r}{nearest_name(key, own)}")
            as_int(f"{key} of the autoencoder", value, 1)
        settings = own | settings
        with torch.device("meta"):
            Autoencoder(image_size, num_channels, **settings)
    return settings if name is None else settings | {"from_pretrained": name}


def create_autoencoder(settings: dict, image_size: int, num_channels: int) -> Autoencoder | DiffusersAutoencoder:
    """The autoencoder of completed settings, its weights random."""
    settings = {key: value for key, value in settings.items() if key != "from_pretrained"}
    if "class_name" in settings:
        settings.pop("code_size")
        return DiffusersAutoencoder(**settings)
    return Autoencoder(image_size, num_channels, **settings)


def read_config(name: str) -> dict:
    """The `config.json` of a folder, a model of the zoo or a Hub id."""
    place = OnHub.resolve(name, ("config.json",), {})[0] if OnHub.resolve else name
    return json.loads(Path(str(cached_file(place, "config.json"))).read_text())


def load_diffusers(autoencoder: DiffusersAutoencoder, name: str) -> None:
    """Take over the weights of a folder or Hub id of diffusers; the codes' statistics are to be measured."""
    trained = type(autoencoder.network).from_pretrained(name)
    autoencoder.network.load_state_dict(trained.state_dict())


def _settings_of(name: str, image_size: int, num_channels: int) -> dict:
    """Settings of the autoencoder of a checkpoint, ours or one of diffusers."""
    config = read_config(name)
    if config.get("model_type") == "jem":
        if not config.get("autoencoder"):
            raise ValueError(f"{name} has no autoencoder, its energy is one of pixels: name another checkpoint")
        factor = config["image_size"] // config["autoencoder"]["code_size"]
        return config["autoencoder"] | {"code_size": image_size // factor}
    class_name = config.get("_class_name")
    if class_name is None:
        raise ValueError(f"{name} is neither a JemModel nor an autoencoder of diffusers: name another checkpoint")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        probe = DiffusersAutoencoder(class_name, config, config["latent_channels"]).eval()
        _, channels, size, _ = probe.encode(torch.empty(2, num_channels, image_size, image_size)).shape
    return {"class_name": class_name, "config": config, "code_channels": channels, "code_size": size}
