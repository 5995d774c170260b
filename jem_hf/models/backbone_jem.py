"""The network that turns images into features: the paper's, or any timm architecture without batch statistics."""

import math
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn


class _FirstDerivative(torch.autograd.Function):
    """
    `grad * silu'(x)`. With s = sigmoid(x), `silu''(x) = s (1 - s) (2 + x - 2 x s)`.

    The warm-up takes that at every layer; torch's own is six passes over the activations.
    """

    @staticmethod
    def forward(ctx, grad, x):
        ctx.save_for_backward(grad, x)
        return torch.ops.aten.silu_backward(grad, x)

    @staticmethod
    def backward(ctx, outer):
        grad, x = ctx.saved_tensors
        s = x.sigmoid()
        factor = torch.addcmul(x, x, s, value=-2)
        if torch.is_grad_enabled():  # for derivatives of a higher order
            factor = (factor + 2) * grad * outer
        else:
            factor.add_(2).mul_(grad).mul_(outer)
        return torch.ops.aten.silu_backward(outer, x), torch.ops.aten.sigmoid_backward(factor, s)


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return _FirstDerivative.apply(grad, *ctx.saved_tensors)


class SiLU(nn.Module):
    """`torch.nn.SiLU`, the same in values and derivatives of all orders; in training its second one costs less."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _SiLU.apply(x) if self.training else F.silu(x)


class Residual(nn.Sequential):
    """A 3x3 convolution whose output is added to its input."""

    def __init__(self, channels: int):
        super().__init__(nn.Conv2d(channels, channels, 3, padding=1), SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class JemCnn(nn.Module):
    """
    The norm-free convolutional network of Kelly, Zemel and Grathwohl (arXiv 2108.04227, appendix).

    A 3x3 convolution to `width` channels; 4x4 convolutions of stride 2 down to 4x4 pixels, to 2, 4, 8, 8, ... times
    `width` channels; a 1x1 convolution back to `width`; two linear layers of `hidden_size`. SiLU after each.

    Args:
        img_size (`int`), in_chans (`int`): Height and width of the images, a power of two from 8 on; their channels.
        num_classes (`int`): Size of a last linear layer; 0 for features.
        width (`int`), hidden_size (`int`): Channels of the first layer (the paper has 64), and size of the features.
        stem_stride (`int`): 1, or 2 for a first layer that is 4x4 of stride 2 itself, for larger images.
        depth (`int`): Residual 3x3 convolutions at each resolution (the paper has none).
    """

    def __init__(self, img_size=64, in_chans=3, num_classes=0, width=64, hidden_size=128, stem_stride=1, depth=0):
        super().__init__()
        img_size = img_size[0] if isinstance(img_size, (tuple, list)) else img_size
        if img_size < 8 or img_size & (img_size - 1):
            raise ValueError(f"jem_cnn takes images of 8, 16, 32, 64, ... pixels, not {img_size}: choose one of these")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride is 1 or 2, not {stem_stride}")
        num_halvings = int(math.log2(img_size // stem_stride)) - 2
        channels = [width * min(2**i, 8) for i in range(num_halvings + 1)]
        layers = [nn.Conv2d(in_chans, width, 2 + stem_stride, stride=stem_stride, padding=1), SiLU()]
        layers += [Residual(width) for _ in range(depth)]
        for inner, outer in pairwise(channels):
            layers += [nn.Conv2d(inner, outer, 4, stride=2, padding=1), SiLU()]
            layers += [Residual(outer) for _ in range(depth)]
        layers += [nn.Conv2d(channels[-1], width, 1), SiLU()]
        self.convolutions = nn.Sequential(*layers)
        first, second = nn.Linear(16 * width, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(nn.Flatten(), first, SiLU(), second, SiLU())
        self.num_features = self.head_hidden_size = hidden_size
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolutions(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        features = self.mlp(x)
        return features if pre_logits else self.head(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


settings = dict(input_size=(3, 64, 64), fixed_input_size=True, first_conv="convolutions.0", classifier="head")
default_cfgs = generate_default_cfgs({"jem_cnn": settings | dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))})


@register_model
def jem_cnn(pretrained=False, **kwargs) -> JemCnn:
    return build_model_with_cfg(JemCnn, "jem_cnn", pretrained, **kwargs)


def create_backbone(name: str, image_size: int, num_channels: int, **kwargs) -> nn.Module:
    """
    A timm model that maps images (B, C, H, W) to features (B, `head_hidden_size`) and can be differentiated twice.

    Raises:
        ValueError: arguments that the model does not take, or batch statistics, with which the energy of an image
            depends on its batch.
    """
    settings = timm.get_pretrained_cfg(name)
    if settings is not None and settings.fixed_input_size:
        kwargs.setdefault("img_size", image_size)
    try:
        backbone = timm.create_model(name, pretrained=False, in_chans=num_channels, num_classes=0, **kwargs)
    except (TypeError, RuntimeError, AssertionError, AttributeError) as error:
        raise ValueError(f"the backbone {name!r} does not take backbone_kwargs={kwargs}: {error}") from error
    for module in backbone.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if is_norm and not isinstance(module, nn.modules.instancenorm._InstanceNorm):
            raise ValueError(
                f"backbone {name!r} has batch normalisation, with which the energy of an image depends on its batch: "
                "pass backbone_kwargs={'norm_layer': 'groupnorm'} where the architecture takes it, or choose one "
                "without, such as 'jem_cnn', 'nf_resnet26', 'convnext_atto' or 'vit_tiny_patch16_224'"
            )
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # the fused kernels have no second derivative
    return backbone


def init_non_persistent_buffers(module: Any) -> None:
    """Recompute what timm modules keep out of the checkpoint, after weights were loaded on the meta device."""
    if hasattr(module, "init_non_persistent_buffers"):
        module.init_non_persistent_buffers()
    elif getattr(module, "feat_shape", None) is not None and hasattr(module, "_get_pos_embed_values"):
        module.pos_embed = module._get_pos_embed_values(module.feat_shape, device=torch.device("cpu"))
