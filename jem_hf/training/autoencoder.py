"""The first phase of a model whose energy is one of codes: its autoencoder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..metrics.distances import frechet_distance
from ..models.image_processing_jem import to_pixels
from .arguments import JemTrainingArguments
from .averaging import AveragingTrainer
from .checkpoints import RUN_STATE_NAME
from .classifier import pixel_classifier, train_classifier
from .devices import copy_from_first_process
from .reconstruction import Reconstruction
from .trainer import JemTrainer

logger = logging.get_logger(__name__)
CRITIC_RATE = 0.2  # of Muon's learning rate, for the Adam of the critic
CLASSIFIER = dict(width=48, hidden_size=128)
NUM_OF_STATISTICS = 2000  # images from which the statistics of the codes of diffusers' autoencoders are taken


class AutoencoderTrainer(AveragingTrainer):
    """
    `Trainer` for [`Reconstruction`]: with checkpoints, exact resume and guard as [`JemTrainer`] has them.

    Evaluation gives `psnr` in dB, and `frechet` between images and their reconstructions in the features of the
    classifier that the loss uses: good for comparing steps of one run, and for nothing else.
    """

    def __init__(self, model: Reconstruction, args: JemTrainingArguments, **kwargs):
        super().__init__(model=model, args=args, compute_metrics=_reconstruction_metrics, **kwargs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict, return_outputs: bool = False, **kwargs) -> Any:
        x = self.images(inputs)
        progress = self.state.global_step / self.state.max_steps
        loss, stats = model(x, inputs["labels"], progress, self.generator)
        self.note(loss, stats, len(x))
        return (loss, {}) if return_outputs else loss

    def parameter_groups(self) -> list[dict]:
        own = [*self.model.autoencoder.parameters(), *self.model.attributes.parameters()]
        groups = [
            {"params": [p for p in own if p.ndim == 4]},
            {"params": [p for p in own if p.ndim != 4], "use_fallback": True},
        ]
        if self.model.critic is not None:
            critic = {"params": list(self.model.critic.parameters()), "use_fallback": True}
            groups.append(critic | {"lr": CRITIC_RATE * self.args.learning_rate, "betas": (0.5, 0.9)})
        return groups

    @torch.no_grad()
    def prediction_step(self, model: torch.nn.Module, inputs: dict, *args, **kwargs) -> tuple[torch.Tensor, ...]:
        inputs = self._prepare_inputs(inputs)
        module = self.ema.module.eval()
        x = to_pixels(inputs["pixel_values"])
        images = module.autoencoder.decode(module.autoencoder.encode(x)).clamp(-1, 1)
        error = (images - x).square().flatten(1).mean(1)
        features = module.classifier(torch.cat([x, images])).chunk(2)
        return error.mean(), torch.cat([error[:, None], *features], dim=1), inputs["labels"]

    def identity(self) -> dict:
        return {"autoencoder": str(self.model.autoencoder), **self.identity_of_data()}


def _reconstruction_metrics(prediction):
    values = torch.as_tensor(prediction.predictions)
    of_data, of_images = values[:, 1:].double().chunk(2, dim=1)
    scale = of_data.std(0).clamp(min=1e-12)
    psnr = (10 * torch.log10(4 / values[:, 0])).mean().item()
    return {"psnr": psnr, "frechet": frechet_distance(of_data / scale, of_images / scale)}


def train_autoencoder(trainer: JemTrainer, resume: bool = False) -> None:
    """
    Train the autoencoder of the model that a trainer is to train, if it has one that is untrained.

    It is written to `autoencoder` in `output_dir`, its checkpoints as well. Of autoencoders of diffusers, which come
    trained, the statistics of the codes are measured.

    Args:
        resume (`bool`, *optional*, defaults to `False`): Take what is there, or go on from its last checkpoint.

    Raises:
        ValueError: what is there is of another run.
    """
    if not trainer.lacks_autoencoder:
        return
    model = trainer.model
    if "class_name" in model.config.autoencoder:
        _measure_statistics(trainer)
    else:
        _train(trainer, resume)
    copy_from_first_process(model.autoencoder)  # of statistics each process has taken its own
    model.autoencoder.eval().requires_grad_(False)
    trainer.ema.module.autoencoder.load_state_dict(model.autoencoder.state_dict())


def _train(trainer, resume):
    model, folder = trainer.model, Path(trainer.args.output_dir, "autoencoder")
    args, finished = _arguments(trainer.args, folder), folder / SAFE_WEIGHTS_NAME
    classifier = pixel_classifier(model.config, **CLASSIFIER).to(args.device)
    data = dict(train_dataset=trainer.train_dataset, eval_dataset=trainer.eval_dataset)
    phase = AutoencoderTrainer(Reconstruction(model, classifier, args), args, **data)
    checkpoint = phase.newest_checkpoint() if resume else None
    if resume and finished.is_file():
        phase.check_fits(folder)
        weights = load_file(finished)
    else:
        finished.unlink(missing_ok=True)
        if checkpoint is None:
            logger.info("training the classifier whose features an autoencoder must keep")
            learnt = train_classifier(classifier, trainer.train_dataset, max_steps=args.autoencoder_feature_steps)
            for module in (phase.model, phase.ema.module):
                module.classifier.load_state_dict(learnt.backbone.state_dict())
        phase.train(resume_from_checkpoint=checkpoint)
        weights = phase.ema.module.state_dict()
        if args.should_save:
            (folder / RUN_STATE_NAME).write_text(json.dumps(phase.run_state()))
        phase.save_model()
    prefix = "autoencoder."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    model.autoencoder.load_state_dict(own)


def _arguments(args: JemTrainingArguments, folder: Path) -> JemTrainingArguments:
    """The arguments of the first phase."""
    own = dict(
        output_dir=str(folder), max_steps=args.autoencoder_steps, learning_rate=args.autoencoder_learning_rate,
        max_minutes=0.0, teacher="", push_to_hub=False, metric_for_best_model=None, load_best_model_at_end=False,
    )  # fmt: skip
    return dataclasses.replace(args, **own)


@torch.no_grad()
def _measure_statistics(trainer):
    """Mean and variance of the codes, over some of the training images."""
    autoencoder, seen = trainer.model.autoencoder, 0
    autoencoder.standardise.train()
    for batch in trainer.get_train_dataloader():
        autoencoder.encode(to_pixels(batch["pixel_values"].to(trainer.model.device)))
        seen += len(batch["pixel_values"])
        if seen >= NUM_OF_STATISTICS:
            break
