"""
Objectives: from a batch to its loss, and to what is logged of it; and the losses of which they are made.

Each is a function of the trainer, the model as it is wrapped (so that processes share gradients), images (B, C, H, W)
in [-1, 1] and labels (B, K), -1 where missing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer

from ..models.heads_jem import cross_entropy
from .augmentation import random_crop, random_shift
from .negatives import frozen

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


def classifier(trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Mean of `-log p(y_k | x)`, and nothing of images."""
    return _cross_entropy(trainer, _label_distribution(trainer, model, trainer.encode(x)), labels)


def warmup(trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Equilibrium Matching of the joint energy, without chains, and the classifier beside it."""
    args, generator = trainer.args, trainer.generator
    label_distribution, codes = partial(_label_distribution, trainer, model), trainer.encode(x)
    settings = (args.decay_start, args.optimal_transport)
    matching = equilibrium_matching(label_distribution, codes, labels, generator, *settings)
    if args.cross_entropy_shift or args.cross_entropy_zoom > 1:
        x = random_shift(x, args.cross_entropy_shift, generator) if args.cross_entropy_shift else x
        if args.cross_entropy_zoom > 1:
            x = random_crop(x, args.cross_entropy_zoom, args.cross_entropy_rotation, generator)
        codes = trainer.encode(x)
    if args.cross_entropy_noise:
        codes = codes + args.cross_entropy_noise * torch.empty_like(codes).normal_(generator=generator)
    loss, stats = _cross_entropy(trainer, label_distribution(codes), labels)
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


CD_LOSSES = ("difference", "logistic")
OBJECTIVES = {"joint_cd": joint_cd, "warmup": warmup, "jem": jem, "classifier": classifier}


def contrast(
    trainer: Trainer, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
    """Contrastive divergence with its extra terms, what to log, and the distribution of the data's labels."""
    args, generator, head = trainer.args, trainer.generator, trainer.model.head
    with trainer.accelerator.autocast():
        samples, sample_labels, others = trainer.negatives.sample(x)
    x = trainer.encode(x)
    if args.data_noise:
        x = trainer.negatives.clip(x + args.data_noise * torch.empty_like(x).normal_(generator=generator))
    potentials = model(codes=torch.cat([x, samples.detach()]), potentials_only=True).potentials
    of_data, of_samples = map(head.distribution, potentials.chunk(2))
    if not of_data.is_exact:  # Fisher's identity: labels that are drawn have the gradient of their sum
        labels = of_data.draw(labels, generator)
    log_p_data, log_p_samples = of_data.log_joint(labels), of_samples.log_joint(sample_labels)
    gap = contrastive_divergence(log_p_data, log_p_samples)
    loss = gap
    if args.cd_loss == "logistic":
        loss = logistic_contrast(
            log_p_data, log_p_samples, trainer.negatives.offset_of(log_p_data, log_p_samples), args.cd_temperature
        )
    stats = {
        "energy_data": -log_p_data.mean(),
        "energy_samples": -log_p_samples.mean(),
        "energy_gap": -gap,
        "saturated": trainer.negatives.saturated(samples),
        "motion": trainer.negatives.motion,
        "difference": _typical_difference(samples.detach()),
    }
    if args.energy_penalty:
        loss = loss + args.energy_penalty * (log_p_data.square().mean() + log_p_samples.square().mean())
    if args.kl_weight:
        with frozen(trainer.model), trainer.accelerator.autocast():
            log_p_last = trainer.model.label_distribution(samples).log_joint(sample_labels)
        loss = loss - args.kl_weight * log_p_last.mean()
        stats["log_p_last_step"] = log_p_last.mean()
    if args.entropy_weight:
        entropy = nearest_neighbour_entropy(samples, others)
        loss = loss - args.entropy_weight * entropy
        stats["entropy"] = entropy
    return loss, stats, of_data


def _label_distribution(trainer, model, codes):
    """`JemModel.label_distribution`, by way of the wrapped model."""
    return trainer.model.head.distribution(model(codes=codes, potentials_only=True).potentials)


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


# Losses: functions of log-densities and images, or of the function that gives them


def contrastive_divergence(log_p_data: torch.Tensor, log_p_samples: torch.Tensor) -> torch.Tensor:
    """`mean log p~(x-) - mean log p~(x+)`: its gradient is minus that of the likelihood (Kelly et al. 2021, eq. 5)."""
    return log_p_samples.mean() - log_p_data.mean()


def logistic_contrast(
    log_p_data: torch.Tensor, log_p_samples: torch.Tensor, offset: torch.Tensor | float, temperature: float
) -> torch.Tensor:
    """
    `T mean softplus(-(log p~(x+) - b) / T) + T mean softplus((log p~(x-) - b) / T)`: telling data from samples.

    The loss of dual adversarial training (Yin et al. 2025, arXiv 2510.13872): its gradient is that of
    [`contrastive_divergence`] where data and samples are not told apart yet, and fades where they are, so that no
    penalty of the energies is needed.
    """
    data, samples = (log_p_data - offset) / temperature, (log_p_samples - offset) / temperature
    return temperature * (F.softplus(-data).mean() + F.softplus(samples).mean())


def nearest_neighbour_entropy(x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean log distance of images `x` (B, C, H, W) to their nearest of `others` (M, C, H, W) (Du et al. 2021)."""
    distance = torch.cdist(x.flatten(1), others.flatten(1))
    return distance.min(dim=1).values.clamp(min=1e-6).log().mean()


def optimal_transport_pairing(x0: torch.Tensor, x1: torch.Tensor, group_size: int = 64) -> torch.Tensor:
    """
    Indices (B,) into `x0` that pair it with `x1` at the least sum of squared distances.

    Pairs are within groups of `group_size` neighbours: the time of an assignment is cubic in their number.
    """
    from scipy.optimize import linear_sum_assignment

    groups = zip(x1.flatten(1).split(group_size), x0.flatten(1).split(group_size), strict=True)
    costs = [torch.cdist(a, b).square() for a, b in groups]
    pairings = [torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1]) for cost in costs]
    return torch.cat([i * group_size + pairing for i, pairing in enumerate(pairings)]).to(x0.device)


def random_observed_sets(labels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Labels (B, K) of which a random part is hidden (-1).

    Half of the rows keep all; one in ten none; one in five a few (one to three on average); the rest any share.
    """
    batch, num_attributes = labels.shape
    kind, share = torch.rand(2, batch, 1, generator=generator, device=labels.device)
    few = (1 + 2 * share) / num_attributes
    density = torch.where(kind < 0.5, 1.0, torch.where(kind < 0.6, 0.0, torch.where(kind < 0.8, few, share)))
    keep = torch.rand(labels.shape, generator=generator, device=labels.device) < density
    return labels.where(keep, -1)


def equilibrium_matching(
    label_distribution: Callable,
    x1: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator | None = None,
    decay_start: float = 0.8,
    optimal_transport: bool = True,
) -> torch.Tensor:
    """
    Equilibrium Matching (Wang and Du 2025, arXiv 2510.02300) of a joint energy, on random observed sets.

    Where labels cannot be summed out all are observed, and those that are missing are drawn from `p(y | x_t, y_O)`.

    With noise x0, `x_t = (1 - t) x0 + t x1` and `c(t) = min(1, (1 - t) / (1 - decay_start))`, the mean over pixels of
    `(grad_x log p~(x_t, y_O) - c(t) (x1 - x0))^2`.

    Noise and data of a batch are paired by optimal transport, which makes ways straight. Blind to labels it lets the
    noise tell them, where images differ by label as a whole: what is asked for later is then at odds with the noise
    that a chain starts from (Cheng and Schwing 2025, arXiv 2503.10636). Without it they are paired at random.

    Args:
        label_distribution: Function from images (B, C, H, W) to the distribution of their labels.
        x1: Data (B, C, H, W) in [-1, 1].
        labels: (B, K), -1 where missing.
    """
    x0 = torch.empty_like(x1).normal_(generator=generator)
    if optimal_transport:
        x0 = x0[optimal_transport_pairing(x0, x1)]
    t = torch.rand(len(x1), 1, 1, 1, generator=generator, device=x1.device)
    x_t = torch.lerp(x0, x1, t).requires_grad_(True)
    distribution = label_distribution(x_t)
    observed = (
        random_observed_sets(labels, generator) if distribution.is_exact else distribution.draw(labels, generator)
    )
    (gradient,) = torch.autograd.grad(distribution.log_joint(observed).sum(), x_t, create_graph=True)
    target = ((1 - t) / (1 - decay_start)).clamp(max=1) * (x1 - x0)
    return (gradient - target).square().mean()
