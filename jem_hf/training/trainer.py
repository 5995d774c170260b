"""Training: the one place that knows model, objective, chains and buffer together."""

import hashlib
import os
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.optim import Muon
from timm.utils import ModelEmaV3
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..metrics.prediction import prediction_metrics
from ..models.image_processing_jem import JemImageProcessor, to_pixels
from ..models.modeling_jem import JemModel
from ..plots import image_grid
from .arguments import JemTrainingArguments
from .augmentation import augment, dequantise
from .fine_tuning import Teacher
from .guard import WATCHED, Guard
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

    loss_is_scaled_for_ga = False

    def __init__(self, model: JemModel, args: JemTrainingArguments, **kwargs):
        kwargs.setdefault("compute_metrics", self._prediction_metrics)
        super().__init__(model=model, args=args, **kwargs)
        self.generator = torch.Generator(self.model.device).manual_seed(args.seed + args.process_index)
        warmup = dict(use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)  # of step n at most (n - 1) / (n + 8)
        self.ema = ModelEmaV3(self.model, args.ema_decay, exclude_buffers=True, **warmup).requires_grad_(False)
        self.negatives = NegativeSampler(self.model, args, self.generator)
        self.teacher = None
        if args.teacher:
            self.teacher = Teacher(JemModel.from_pretrained(args.teacher).to(args.device), self.model.config)
        self.readings = {}  # scalars of the last step, for the guard
        self.forget_log()
        self.add_callback(_StepCallback(self))
        self.guard = Guard(self) if args.guard_steps else None
        if self.guard:
            self.add_callback(self.guard)

    # A step

    def compute_loss(self, model: torch.nn.Module, inputs: dict, return_outputs: bool = False, **kwargs) -> Any:
        x, labels = dequantise(inputs["pixel_values"], self.generator), inputs["labels"]
        if self.args.horizontal_flip:
            x = augment(x, flip=True, blur=False, generator=self.generator)
        if self.teacher:
            labels = self.teacher.complete(x, labels, self.generator)
        is_chain_free = self.state.global_step < self.args.chain_free_steps
        objective = OBJECTIVES["warmup" if is_chain_free else self.args.objective]
        loss, stats = objective(self, model, x, labels)
        for name, value in stats.items():
            self._log_values[name].append(value.detach())
        self._log_images += len(x)
        self.readings = {"loss": loss} | {name: stats[name] for name in WATCHED if name in stats}
        return (loss, {}) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.readings["gradient_norm"] = torch.as_tensor(grad_norm, device=self.args.device)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._log_images:
            means = torch.stack([torch.stack(values).mean() for values in self._log_values.values()])
            means = self.accelerator.reduce(means, "mean").tolist()
            logs |= {name: round(mean, 4) for name, mean in zip(self._log_values, means)}
            elapsed = time.time() - self._log_time
            logs["images_per_second"] = round(self._log_images * self.args.world_size / elapsed, 1)
            self.forget_log()
        super().log(logs, start_time)

    def forget_log(self) -> None:
        """Begin the means of the next log anew."""
        self._log_values, self._log_images, self._log_time = defaultdict(list), 0, time.time()

    # The loop around it

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        labels = self.teacher.label(self.train_dataset) if self.teacher else _all_labels(self.train_dataset)
        self.model.label_prior.fit(labels)
        self.ema.module.label_prior.load_state_dict(self.model.label_prior.state_dict())
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Optimizer:
        args = self.args
        if args.muon and self.optimizer is None:
            groups = [
                {"params": list(self.model.backbone.parameters())},
                {"params": list(self.model.head.parameters()), "use_fallback": True},
            ]
            settings = dict(weight_decay=args.weight_decay, betas=(args.adam_beta1, args.adam_beta2))
            self.optimizer = Muon(groups, lr=args.learning_rate, nesterov=True, **settings)
        return super().create_optimizer(model)

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
        """Draw what the first evaluation images are labelled as, from the same noise every time."""
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()))
        labels = torch.stack([row["labels"] for row in islice(dataset, self.args.sample_grid)])
        generator = torch.Generator(self.model.device).manual_seed(self.args.seed)
        x, _ = self.ema.module.generate(labels.to(self.model.device), generator=generator)
        os.makedirs(self.args.output_dir, exist_ok=True)
        grid = image_grid(JemImageProcessor.to_pil(x), scale=max(1, 96 // x.shape[-1]))
        grid.save(os.path.join(self.args.output_dir, f"samples-{self.state.global_step}.png"))

    # Checkpoints: model.safetensors is the moving average; beside it lies what training needs to go on

    def identity(self) -> dict:
        fields = "attributes attribute_values backbone backbone_kwargs head image_size num_channels"
        identity = {name: getattr(self.model.config, name) for name in fields.split()}
        identity["objective"] = self.args.objective
        if hasattr(self.train_dataset, "labels"):  # those of a stream are known when it is read
            labels = self.train_dataset.labels.cpu().numpy().tobytes()
            identity["labels of the training data"] = hashlib.sha256(labels).hexdigest()
        return identity

    def run_state(self) -> dict:
        return super().run_state() | ({"guard": self.guard.state_dict()} if self.guard else {})

    def load_run_state(self, state: dict) -> None:
        super().load_run_state(state)
        if self.guard and "guard" in state:
            self.guard.load_state_dict(state["guard"])

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict or self.ema.module.state_dict())

    def _save_optimizer_and_scheduler(self, output_dir):
        os.makedirs(output_dir, exist_ok=True)  # ranks other than the first may be here before it is
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
            save_file(weights, os.path.join(output_dir, "training_weights.safetensors"))
        state = {"generator": self.generator.get_state(), **self.negatives.state_dict()}
        save_file(state, os.path.join(output_dir, f"chain_state_{self.args.process_index}.safetensors"))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.ema.module.load_state_dict(self.model.state_dict())
        weights = load_file(os.path.join(checkpoint, "training_weights.safetensors"))
        weights.pop("num_averaged", None)  # of an earlier version
        self.model.load_state_dict(weights)
        # where there were fewer processes some chains go on in two, with new noise
        num_before, args = len(list(Path(checkpoint).glob("chain_state_*.safetensors"))), self.args
        state = load_file(os.path.join(checkpoint, f"chain_state_{args.process_index % num_before}.safetensors"))
        generator_state = state.pop("generator")
        if num_before == args.world_size:
            self.generator.set_state(generator_state)
        else:  # a seed that no process had yet
            self.generator.manual_seed(args.seed + (self.state.global_step << 16) + args.process_index)
        self.negatives.load_state_dict(state)

    def _load_best_model(self):
        super()._load_best_model()
        self.ema.module.load_state_dict(self.model.state_dict())


class _StepCallback(TrainerCallback):
    """Averages the weights after each optimiser step."""

    def __init__(self, trainer: JemTrainer):
        self.trainer = trainer

    def on_train_begin(self, *args, **kwargs) -> None:
        self.trainer.forget_log()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.trainer.ema.update(self.trainer.model, step=state.global_step)


def _all_labels(dataset, num_of_stream=2000):
    """Labels (N, K) of a dataset; of a stream those of its first rows."""
    if hasattr(dataset, "labels"):
        return dataset.labels
    rows = islice(dataset, len(dataset) if hasattr(dataset, "__len__") else num_of_stream)
    return torch.stack([torch.as_tensor(row["labels"]) for row in rows])
