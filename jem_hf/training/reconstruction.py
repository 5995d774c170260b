"""The loss of an autoencoder: what its images must share with the originals, and what its codes must know."""

import torch
import torch.nn.functional as F
from torch import nn

from ..models.heads_jem import ProductHead, cross_entropy
from ..models.modeling_jem import JemModel
from .arguments import JemTrainingArguments
from .objectives import Loss

NUM_MAPS = 3  # of the classifier's feature maps, those of the highest resolutions
ADVERSARIAL_START, ADVERSARIAL_RAMP = 0.3, 0.1  # of all steps: before, images are too blurred for a critic to help
DROPOUT = 0.3  # of codes on their way to the attributes: without it a few channels answer for all


class Critic(nn.Sequential):
    """A small patch discriminator (Isola et al. 2017, arXiv 1611.07004) at half the resolution; hinge loss."""

    def __init__(self, num_channels: int, width: int = 64):
        layers = [nn.PixelUnshuffle(2), nn.Conv2d(4 * num_channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        for inner, kernel, stride in ((width, 4, 2), (2 * width, 3, 1)):
            layers += [nn.Conv2d(inner, 2 * width, kernel, stride, padding=1), nn.GroupNorm(8, 2 * width)]
            layers += [nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(2 * width, 1, 3, padding=1))

    def losses(self, x: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of real images x and others: the loss of these, the critic held, and the critic's own, these held."""
        held = {name: weight.detach() for name, weight in self.named_parameters()}
        adversarial = -torch.func.functional_call(self, held, images).float().mean()
        real, fake = self(torch.cat([x.to(images.dtype), images.detach()])).float().chunk(2)
        hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return adversarial, hinge + 1e-3 * (real.square().mean() + fake.square().mean())  # keeps it from drifting


class Reconstruction(nn.Module):
    """
    Absolute error of pixels, distance in the features of a frozen classifier (Johnson et al. 2016, arXiv 1603.08155),
    the cross-entropy of attributes that a linear layer reads from the codes, and a critic that tells images from their
    reconstructions patch by patch (Esser et al. 2021, arXiv 2012.09841), which is trained beside it.

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
        self.critic = Critic(model.config.num_channels) if args.autoencoder_adversarial_weight else None
        self.attributes = ProductHead(torch.Size(model.config.code_shape).numel(), model.config.num_values)

    def forward(
        self, x: torch.Tensor, labels: torch.Tensor, progress: float, generator: torch.Generator | None = None
    ) -> Loss:
        """
        The loss of images (B, C, H, W) in [-1, 1] and labels (B, K), -1 where missing, and what to log of it.

        `progress` goes from 0 to 1 as training does: the critic counts from `ADVERSARIAL_START` on.
        """
        args = self.args
        codes = self.autoencoder.encode(x)
        scale = args.autoencoder_noise * torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
        codes = codes + scale * torch.empty_like(codes).normal_(generator=generator)
        images = self.autoencoder.decode(codes)
        of_images, of_data = zip(
            *(maps.float().chunk(2) for maps in self.maps(torch.cat([images, x.to(images.dtype)])))
        )
        pixel_error = (images.float() - x).abs().mean()
        # of each map as a share of its size, which no two classifiers have alike
        feature_error = sum((a - b).abs().mean() / b.abs().mean() for a, b in zip(of_images, of_data))
        keep = torch.rand(codes.shape, generator=generator, device=x.device) >= DROPOUT
        logits = self.attributes((codes * keep / (1 - DROPOUT)).flatten(1))
        attribute_error = cross_entropy(logits, labels)
        loss = pixel_error + args.autoencoder_feature_weight * feature_error
        stats = {"pixel_error": pixel_error, "feature_error": feature_error, "cross_entropy": attribute_error}
        if self.critic is not None:
            adversarial, critic_loss = self.critic.losses(x, images)
            share = min(1.0, max(0.0, progress - ADVERSARIAL_START) / ADVERSARIAL_RAMP)
            loss = add_in_proportion(loss, adversarial, share * args.autoencoder_adversarial_weight, images)
            loss = loss + critic_loss
            stats |= {"adversarial": adversarial, "critic": critic_loss}
        loss = loss + args.autoencoder_attribute_weight * attribute_error
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


def add_in_proportion(loss: torch.Tensor, other: torch.Tensor, share: float, images: torch.Tensor) -> torch.Tensor:
    """
    A loss with the value of `loss` whose gradient at `images` has that of `other` added, `share` times as long as its
    own (Esser et al. 2021, arXiv 2012.09841, eq. 7): a critic becomes surer as it learns, and would drown the rest.
    """
    own, added = (torch.autograd.grad(each, images, retain_graph=True)[0] for each in (loss, other))
    gradient = own + share * own.norm() / added.norm().clamp(min=1e-12) * added
    along = (images * gradient).sum()
    return loss.detach() + along - along.detach()
