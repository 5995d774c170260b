"""
Objectives: from a batch to its loss, and to what is logged of it.

Each is a function of the trainer, the model as it is wrapped (so that processes share gradients), images (B, C, H, W)
in [-1, 1] and labels (B, K), -1 where missing.
"""

from functools import partial
from typing import Any

import torch
from transformers import Trainer

from ..models.heads_jem import cross_entropy
from .augmentation import random_shift
from .losses import contrastive_divergence, equilibrium_matching, nearest_neighbour_entropy
from .negatives import frozen

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


def classifier(trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Mean of `-log p(y_k | x)`, and nothing of images."""
    return _cross_entropy(trainer, _label_distribution(trainer, model, x), labels)


def warmup(trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Equilibrium Matching of the joint energy, without chains, and the classifier beside it."""
    args, generator = trainer.args, trainer.generator
    label_distribution = partial(_label_distribution, trainer, model)
    matching = equilibrium_matching(label_distribution, x, labels, generator, args.decay_start)
    if args.cross_entropy_shift:
        x = random_shift(x, args.cross_entropy_shift, generator)
    loss, stats = classifier(trainer, model, x, labels)
    return matching + args.cross_entropy_weight * loss, {"matching": matching, **stats}


def jem(trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Loss:
    """`log p(y | x) + log p(x)` (Grathwohl et al. 2020): contrastive divergence of images, labels summed out."""
    loss, stats, distribution = contrast(trainer, model, x, torch.full_like(labels, -1))
    classifier_loss, classifier_stats = _cross_entropy(trainer, distribution, labels)
    return loss + labels.shape[1] * classifier_loss, stats | classifier_stats


def joint_cd(trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Joint contrastive divergence (Kelly et al. 2021), with the warm-up beside it where it has a weight."""
    args = trainer.args
    loss, stats, distribution = contrast(trainer, model, x, labels)
    loss = args.cd_weight * loss
    if args.warmup_weight:
        warmup_loss, warmup_stats = warmup(trainer, model, x, labels)
        return loss + args.warmup_weight * warmup_loss, stats | warmup_stats
    with torch.no_grad():
        return loss, stats | _cross_entropy(trainer, distribution, labels)[1]


OBJECTIVES = {"joint_cd": joint_cd, "warmup": warmup, "jem": jem, "classifier": classifier}


def contrast(
    trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
    """Contrastive divergence with its extra terms, what to log, and the distribution of the data's labels."""
    args, generator, head = trainer.args, trainer.generator, trainer.model.head
    with trainer.accelerator.autocast():
        samples, sample_labels, others = trainer.negatives.sample(x)
    if args.data_noise:
        x = (x + args.data_noise * torch.empty_like(x).normal_(generator=generator)).clamp(-1, 1)
    potentials = model(pixel_values=torch.cat([x, samples.detach()]), potentials_only=True).potentials
    of_data, of_samples = map(head.distribution, potentials.chunk(2))
    if not of_data.is_exact:  # Fisher's identity: labels that are drawn have the gradient of their sum
        labels = of_data.draw(labels, generator)
    log_p_data, log_p_samples = of_data.log_joint(labels), of_samples.log_joint(sample_labels)
    loss = contrastive_divergence(log_p_data, log_p_samples)
    stats = {
        "energy_data": -log_p_data.mean(),
        "energy_samples": -log_p_samples.mean(),
        "energy_gap": -loss,
        "saturated": (samples.detach().abs() >= 1).float().mean(),
        "motion": trainer.negatives.motion,
        "difference": _typical_difference(samples.detach()),
    }
    if args.energy_penalty:
        loss = loss + args.energy_penalty * (log_p_data.square().mean() + log_p_samples.square().mean())
    if args.kl_weight:
        with frozen(trainer.model), trainer.accelerator.autocast():
            log_p_last = trainer.model.log_joint(samples, sample_labels)
        loss = loss - args.kl_weight * log_p_last.mean()
        stats["log_p_last_step"] = log_p_last.mean()
    if args.entropy_weight:
        entropy = nearest_neighbour_entropy(samples, others)
        loss = loss - args.entropy_weight * entropy
        stats["entropy"] = entropy
    return loss, stats, of_data


def _label_distribution(trainer, model, x):
    """`JemModel.label_distribution`, by way of the wrapped model."""
    return trainer.model.head.distribution(model(pixel_values=x, potentials_only=True).potentials)


def _cross_entropy(trainer, distribution, labels) -> Loss:
    """Mean of `-log p(y_k | x, y of all others)`: the likelihood where labels are independent given the image,
    else the pseudo-likelihood (Besag 1975)."""
    logits = distribution.conditional_logits(labels, trainer.generator)
    loss, present = cross_entropy(logits, labels), labels >= 0
    accuracy = ((logits.argmax(-1) == labels) & present).sum() / present.sum().clamp(min=1)
    return loss, {"cross_entropy": loss, "train_accuracy": accuracy}


def _typical_difference(x):
    """Mean absolute difference of a pixel between the middle one of images (B, C, H, W) and their median."""
    x = x[:, :, ::4]  # a quarter of the pixels shows it, and medians over a batch are slow
    return (x - x.median(dim=0).values).abs().flatten(1).mean(1).median()
