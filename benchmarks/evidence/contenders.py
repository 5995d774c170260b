"""Who is compared: joint energies, and classifiers of the same network and codes, all by the same trainer."""

from dataclasses import dataclass

import torch
from torch import nn

from jem_hf import AttributeTensors, JemConfig, JemModel
from jem_hf.metrics.calibration import AttributeScaling, Scaling, TemperatureScaling
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.training.classifier import train_classifier
from jem_hf.training.objectives import OBJECTIVES
from jem_hf.training.recipes import load_recipe

LENGTHS = (0.125, 0.25, 0.5, 1.0)  # of all steps: classifiers overfit, so theirs is the best on the validation split
SMOOTHING = 0.05
DROPOUT = 0.2


def label_smoothing(trainer, model, x, labels):
    """Mean of `-log p(y_k | x)`, of labels that are right in all but a twentieth (Szegedy et al. 2016)."""
    logits = model(codes=trainer.encode(x), potentials_only=True).potentials
    exists, present = logits > -torch.inf, labels >= 0
    target = SMOOTHING * exists / exists.sum(-1, keepdim=True)
    target = target.scatter_add(-1, labels.clamp(min=0)[..., None], torch.full_like(target, 1 - SMOOTHING)[..., :1])
    losses = -(target * logits.log_softmax(-1).masked_fill(~exists, 0)).sum(-1)
    loss = losses[present].sum() / present.sum().clamp(min=1)
    return loss, {"cross_entropy": loss}


OBJECTIVES["label_smoothing"] = label_smoothing
BROKEN = {  # contrastive divergence as jem-celeba has it
    name: value
    for name, value in load_recipe("jem-celeba").training.items()
    if name.startswith(("chain_", "cd_", "gibbs", "buffer", "guard", "warmup_weight"))
}
WARMUP = {"objective": "warmup", "optimal_transport": False, "learning_rate": 1.5e-3, "cross_entropy_weight": 0.02}
CONTENDERS = {
    "classifier": {},
    "label smoothing": {"objective": "label_smoothing"},
    "MC dropout": {"dropout": DROPOUT},
    "ensemble of four": {"num_models": 4},
    "warm-up, then JEM": WARMUP | BROKEN | {"objective": "jem", "energy_penalty": 1e-4, "chain_free_share": 0.8},
    "joint": WARMUP,
    "joint, then CD": WARMUP | BROKEN | {"objective": "joint_cd", "chain_free_share": 0.8},
    "joint, pairwise": WARMUP | {"head": "pairwise"},
}


@dataclass
class Contender:
    """Probabilities that are the mean over models and passes, calibrated if there is a scaling."""

    models: list[JemModel]
    num_passes: int = 1
    scaling: Scaling | None = None

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """`log p(y_k | x)` (B, K, V) of images (B, C, H, W) in [-1, 1]; differentiable but where labels interact."""
        codes = self.models[0].encode(pixels)  # all have the same autoencoder
        each = [model.label_distribution(codes).marginal_logits()[0] for model in self.models * self.num_passes]
        logits = torch.stack([one.softmax(-1) for one in each]).mean(0).clamp(min=1e-30).log()
        logits = logits.masked_fill(each[0] == -torch.inf, -torch.inf)  # values that an attribute lacks
        return self.scaling(logits) if self.scaling else logits

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """[`logits`] of any number of images, uint8 or in [-1, 1]."""
        return torch.cat([self.logits(to_pixels(part)) for part in images.split(250)])

    def calibrated(self, scaling: Scaling, validation: AttributeTensors) -> "Contender":
        return Contender(self.models, self.num_passes, scaling.fit(self.predict(validation.images), validation.labels))

    def nll(self, data: AttributeTensors) -> float:
        log_p = self.predict(data.images).log_softmax(-1).gather(-1, data.labels.clamp(min=0)[..., None])[..., 0]
        return -log_p[data.labels >= 0].mean().item()


def train_model(base: JemModel, data: AttributeTensors, settings: dict, num_steps: int, seed: int) -> JemModel:
    """A network on the codes of `base`, from scratch."""
    settings = dict(settings)
    head, dropout = settings.pop("head", "product"), settings.pop("dropout", 0.0)
    settings["chain_free_steps"] = int(settings.pop("chain_free_share", 0) * num_steps)
    torch.manual_seed(seed)
    changed = {"head": head, "outlier_score": False, "calibrated": False}
    model = JemModel(JemConfig.from_dict(base.config.to_dict() | changed))
    if base.autoencoder is not None:
        model.autoencoder.load_state_dict(base.autoencoder.state_dict())
    if dropout:
        model.backbone.mlp.insert(3, nn.Dropout(dropout))
    return train_classifier(model, data, max_steps=num_steps, seed=seed, **settings)


def train_contender(
    name: str, base: JemModel, data: AttributeTensors, validation: AttributeTensors, num_steps: int, seed: int
) -> Contender:
    """One of `CONTENDERS`; what only classifies is as long trained as is best for the validation split."""
    settings = dict(CONTENDERS[name])
    seeds = [seed + 1000 * i for i in range(settings.pop("num_models", 1))]
    data = data.subset((data.labels >= 0).any(1)) if "objective" not in settings else data
    chosen = []
    for each in seeds:
        is_classifier = settings.get("objective", "classifier") in ("classifier", "label_smoothing")
        lengths = [max(1, int(share * num_steps)) for share in (LENGTHS if is_classifier else (1.0,))]
        trained = [Contender([train_model(base, data, settings, length, each)]) for length in lengths]
        chosen.append(min(trained, key=lambda contender: contender.nll(validation)).models[0])
    if settings.get("dropout"):
        for module in chosen[0].modules():
            if isinstance(module, nn.Dropout):
                module.train()  # Monte Carlo dropout drops in prediction, too (Gal and Ghahramani 2016)
        return Contender(chosen, num_passes=10)
    return Contender(chosen)


def with_calibrated(contenders: dict[str, Contender], validation: AttributeTensors) -> dict[str, Contender]:
    """The contenders, and the classifier scaled by one temperature and attribute by attribute."""
    scalings = {"temperature": TemperatureScaling(), "scaled per attribute": AttributeScaling()}
    scaled = {f"classifier, {n}": contenders["classifier"].calibrated(s, validation) for n, s in scalings.items()}
    return contenders | scaled
