"""Training: the one place that knows model, objective, chains and buffer together."""

import os
from itertools import islice
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import Dataset
from transformers.trainer_utils import TrainOutput

from ..data.tensors import AttributeTensors
from ..metrics.prediction import prediction_metrics
from ..models.image_processing_jem import JemImageProcessor, to_pixels
from ..models.modeling_jem import JemModel
from ..plots import image_grid
from .arguments import JemTrainingArguments
from .fine_tuning import Teacher
from .negatives import NegativeSampler
from .objectives import OBJECTIVES
from .publishing import PublishingTrainer
from .resume import failure_is_a_warning


class JemTrainer(PublishingTrainer):
    """
    `Trainer` for [`JemModel`]: joint contrastive divergence, the chain-free warm-up, JEM and a plain classifier.

    Datasets give `pixel_values` uint8 (C, H, W) and `labels` (K,), -1 where missing, as [`AttributeTensors`] does.
    What is evaluated and saved is the moving average of the weights; a checkpoint also holds the weights in training,
    the buffer and the generator, and resumes exactly. A [`Guard`] goes back to a good state when training diverges.
    """

    def __init__(self, model: JemModel, args: JemTrainingArguments, **kwargs):
        kwargs.setdefault("compute_metrics", self._prediction_metrics)
        super().__init__(model=model, args=args, **kwargs)
        self.negatives = NegativeSampler(self.model, args, self.generator)
        self.teacher = None
        if args.teacher:
            self.teacher = Teacher(JemModel.from_pretrained(args.teacher).to(args.device), self.model.config)

    # A step

    def compute_loss(self, model: torch.nn.Module, inputs: dict, return_outputs: bool = False, **kwargs) -> Any:
        x, labels = self.images(inputs), inputs["labels"]
        if self.teacher:
            labels = self.teacher.complete(x, labels, self.generator)
        is_chain_free = self.state.global_step < self.args.chain_free_steps
        objective = OBJECTIVES["warmup" if is_chain_free else self.args.objective]
        loss, stats = objective(self, model, x, labels)
        self.note(loss, stats, len(x))
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """What the energy sees of images (B, C, H, W): see [`JemModel.encode`]."""
        return self.model.encode(x)

    # The loop around it

    @property
    def lacks_autoencoder(self) -> bool:
        """Whether the model has an autoencoder that has never seen an image."""
        autoencoder = self.model.autoencoder
        return autoencoder is not None and not autoencoder.standardise.num_batches_tracked.item()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        if self.lacks_autoencoder and not resume_from_checkpoint:
            raise ValueError("the model's autoencoder is untrained: call train_autoencoder(trainer) before")
        labels = self.teacher.label(self.train_dataset) if self.teacher else _all_labels(self.train_dataset)
        self.model.label_prior.fit(labels)
        self.ema.module.label_prior.load_state_dict(self.model.label_prior.state_dict())
        for each in filter(None, (self.model.calibration, self.ema.module.calibration)):
            each.reset()  # what is trained is the energy as it is; see `calibrate`
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def parameter_groups(self) -> list[dict]:
        return [
            {"params": list(self.model.backbone.parameters())},
            {"params": list(self.model.head.parameters()), "use_fallback": True},
        ]

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        drop, factor = self.args.lr_drop_step, self.args.lr_drop_factor
        if drop:
            self.lr_scheduler = MultiStepLR(optimizer or self.optimizer, [drop], gamma=factor)
        return super().create_scheduler(num_training_steps, optimizer)

    # Evaluation

    def prediction_step(self, model: torch.nn.Module, inputs: dict, *args, **kwargs) -> tuple[torch.Tensor, ...]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            output = self.ema.module(to_pixels(inputs["pixel_values"]), inputs["labels"])
        return output.loss, output.attribute_logits, inputs["labels"]

    def _prediction_metrics(self, prediction):
        probabilities = torch.as_tensor(prediction.predictions).softmax(-1).numpy()
        metrics = prediction_metrics(probabilities, prediction.label_ids, self.model.config.attributes)
        return {name: value for name, value in metrics.items() if name != "per_attribute"}

    def evaluate(self, eval_dataset: Dataset | dict | None = None, *args, **kwargs) -> dict[str, float | None]:
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if self.args.sample_grid and self.args.objective != "classifier" and self.is_world_process_zero():
            with failure_is_a_warning("the grid of samples"):
                self._write_grid(eval_dataset if eval_dataset is not None else self.eval_dataset)
        return metrics

    def _write_grid(self, dataset):
        """Draw what some evaluation images are labelled as, from the same noise every time."""
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()))
        num = self.args.sample_grid
        if isinstance(dataset, AttributeTensors):
            labels = dataset.sample(num).labels
        else:
            labels = torch.stack([row["labels"] for row in islice(dataset, num)])
        generator = torch.Generator(self.model.device).manual_seed(self.args.seed)
        x, _ = self.ema.module.generate(labels.to(self.model.device), generator=generator)
        os.makedirs(self.args.output_dir, exist_ok=True)
        grid = image_grid(JemImageProcessor.to_pil(x), scale=max(1, 96 // x.shape[-1]))
        grid.save(os.path.join(self.args.output_dir, f"samples-{self.state.global_step}.png"))

    # Checkpoints

    def identity(self) -> dict:
        fields = "attributes attribute_values autoencoder backbone backbone_kwargs head image_size num_channels"
        identity = {name: getattr(self.model.config, name) for name in fields.split()}
        return identity | {"objective": self.args.objective, **self.identity_of_data()}

    def random_state(self) -> dict[str, torch.Tensor]:
        return super().random_state() | self.negatives.state_dict()

    def load_random_state(self, state: dict[str, torch.Tensor], num_before: int) -> None:
        super().load_random_state(state, num_before)
        self.negatives.load_state_dict({name: value for name, value in state.items() if name != "generator"})


def _all_labels(dataset, num_of_stream=2000):
    """Labels (N, K) of a dataset; of a stream those of its first rows."""
    if hasattr(dataset, "labels"):
        return dataset.labels
    rows = islice(dataset, len(dataset) if hasattr(dataset, "__len__") else num_of_stream)
    return torch.stack([torch.as_tensor(row["labels"]) for row in rows])
