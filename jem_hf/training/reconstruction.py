"""The loss of an autoencoder: what its images must share with the originals, and what its codes must know."""

import torch
import torch.nn.functional as F
from torch import nn

from ..models.heads_jem import ProductHead, cross_entropy
from ..models.modeling_jem import JemModel
from .arguments import JemTrainingArguments
from .objectives import Loss

NUM_MAPS = 3  # of the classifier's feature maps, those of the highest resolutions
DROPOUT = 0.3  # of codes on their way to the attributes: without it a few channels answer for all


class Reconstruction(nn.Module):
    """
    Absolute error of pixels, distance in the features of a frozen classifier (Johnson et al. 2016, arXiv 1603.08155),
    and the cross-entropy of attributes that a linear layer reads from the codes.

    The decoder sees noisy codes, by a standard deviation that is uniform up to `autoencoder_noise`: chains do not end
    at codes of images exactly, and without it what they end at looks worse.

    Args:
        model ([`JemModel`]): Its autoencoder is trained.
        classifier ([`JemModel`]): Of pixels of the same images, trained; with the network `jem_cnn`.
        args ([`JemTrainingArguments`]): Its `autoencoder_*` are followed.
    """

    def __init__(self, model: JemModel, classifier: JemModel, args: JemTrainingArguments):
        super().__init__()
        self.autoencoder, self.args = model.autoencoder.requires_grad_(True), args
        self.classifier = classifier.backbone.requires_grad_(False)
        self.attributes = ProductHead(torch.Size(model.config.code_shape).numel(), model.config.num_values)

    def forward(self, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None) -> Loss:
        """The loss of images (B, C, H, W) in [-1, 1] and labels (B, K), -1 where missing, and what to log of it."""
        args = self.args
        codes = self.autoencoder.encode(x)
        scale = args.autoencoder_noise * torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
        codes = codes + scale * torch.empty_like(codes).normal_(generator=generator)
        images = self.autoencoder.decode(codes)
        of_images, of_data = zip(*(maps.float().chunk(2) for maps in self.maps(torch.cat([images, x.to(images.dtype)]))))
        pixel_error = (images.float() - x).abs().mean()
        feature_error = sum((a - b).abs().mean() for a, b in zip(of_images, of_data))
        keep = torch.rand(codes.shape, generator=generator, device=x.device) >= DROPOUT
        logits = self.attributes((codes * keep / (1 - DROPOUT)).flatten(1))
        attribute_error = cross_entropy(logits, labels)
        loss = pixel_error + args.autoencoder_feature_weight * feature_error
        loss = loss + args.autoencoder_attribute_weight * attribute_error
        stats = {"pixel_error": pixel_error, "feature_error": feature_error, "cross_entropy": attribute_error}
        return loss, stats

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The classifier's first feature maps of images (B, C, H, W)."""
        maps = []
        for layer in self.classifier.convolutions:
            x = layer(x)
            if not isinstance(layer, nn.Conv2d):
                maps.append(x)
            if len(maps) == NUM_MAPS:
                break
        return maps
