"""A `Trainer` with a moving average of the weights, a generator of its own and a guard; what both phases share."""

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from safetensors.torch import load_file, save_file
from timm.optim import muon
from timm.utils import ModelEmaV3
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .augmentation import augment, dequantise, random_placement
from .devices import has_native_bfloat16
from .guard import WATCHED, Guard
from .negatives import NegativeSampler
from .resume import ResumableTrainer


class Muon(muon.Muon):
    """timm's, which makes updates orthogonal in bfloat16; in float32 where that is emulated, four times as slow."""

    def step(self, closure=None):
        if has_native_bfloat16(self.param_groups[0]["params"][0].device):
            return super().step(closure)
        orthogonal = muon.zeropower_via_newtonschulz  # whose dtype no argument of the optimiser reaches
        muon.zeropower_via_newtonschulz = partial(orthogonal, dtype=torch.float32)
        try:
            return super().step(closure)
        finally:
            muon.zeropower_via_newtonschulz = orthogonal


class AveragingTrainer(ResumableTrainer):
    """
    What is evaluated and saved is the moving average of the weights; a checkpoint also holds the weights in training
    and the generator. A [`Guard`] goes back to a good state when training diverges.
    """

    loss_is_scaled_for_ga = False
    negatives: NegativeSampler | None = None  # of an objective with chains
    parameter_groups: Callable[[], list[dict]]  # for Muon, with `use_fallback` what Adam trains in its place

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        args = self.args
        self.generator = torch.Generator(args.device).manual_seed(args.seed + args.process_index)
        warmup = dict(use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)  # of step n at most (n - 1) / (n + 8)
        self.ema = ModelEmaV3(self.model, args.ema_decay, exclude_buffers=True, **warmup).requires_grad_(False)
        self.readings = {}  # scalars of the last step, for the guard
        self.forget_log()
        self.add_callback(_StepCallback(self))
        self.guard = Guard(self) if args.guard_steps else None
        if self.guard:
            self.add_callback(self.guard)

    def images(self, inputs: dict) -> torch.Tensor:
        """The images (B, C, H, W) of a batch in [-1, 1], dequantised, mirrored and placed elsewhere if so wished."""
        args, x = self.args, dequantise(inputs["pixel_values"], self.generator)
        if args.horizontal_flip:
            x = augment(x, flip=True, blur=False, generator=self.generator)
        if args.zoom > 1 or args.rotation:
            x = random_placement(x, args.zoom, args.rotation, self.generator)
        return x

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Optimizer:
        args = self.args
        if args.muon and self.optimizer is None:
            settings = dict(weight_decay=args.weight_decay, betas=(args.adam_beta1, args.adam_beta2))
            self.optimizer = Muon(self.parameter_groups(), lr=args.learning_rate, nesterov=True, **settings)
        return super().create_optimizer(model)

    def note(self, loss: torch.Tensor, stats: dict[str, torch.Tensor], num_images: int) -> None:
        """Remember what a step was like, for the log and for the guard."""
        for name, value in stats.items():
            self._log_values[name].append(value.detach())
        self._log_images += num_images
        self.readings = {"loss": loss} | {name: stats[name] for name in WATCHED if name in stats}

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

    def identity_of_data(self) -> dict:
        """What a checkpoint and this run have in common if they see the same images."""
        if not hasattr(self.train_dataset, "labels"):  # those of a stream are known when it is read
            return {}
        labels = self.train_dataset.labels.cpu().numpy().tobytes()
        return {"labels of the training data": hashlib.sha256(labels).hexdigest()}

    # Checkpoints: model.safetensors is the moving average; beside it lies what training needs to go on

    def run_state(self) -> dict:
        return super().run_state() | ({"guard": self.guard.state_dict()} if self.guard else {})

    def load_run_state(self, state: dict) -> None:
        super().load_run_state(state)
        if self.guard and "guard" in state:
            self.guard.load_state_dict(state["guard"])

    def random_state(self) -> dict[str, torch.Tensor]:
        """What goes on in this process alone: the generator."""
        return {"generator": self.generator.get_state()}

    def load_random_state(self, state: dict[str, torch.Tensor], num_before: int) -> None:
        """Take up what `random_state` gave, of as many processes as there were `before`."""
        if num_before == self.args.world_size:
            self.generator.set_state(state["generator"])
        else:  # a seed that no process had yet
            self.generator.manual_seed(self.args.seed + (self.state.global_step << 16) + self.args.process_index)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict or _contiguous(self.ema.module.state_dict()))

    def _save_optimizer_and_scheduler(self, output_dir):
        os.makedirs(output_dir, exist_ok=True)  # ranks other than the first may be here before it is
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            weights = _contiguous(self.model.state_dict())
            save_file(weights, os.path.join(output_dir, "training_weights.safetensors"))
        save_file(self.random_state(), os.path.join(output_dir, f"chain_state_{self.args.process_index}.safetensors"))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.ema.module.load_state_dict(self.model.state_dict())
        weights = load_file(os.path.join(checkpoint, "training_weights.safetensors"))
        weights.pop("num_averaged", None)  # of an earlier version
        self.model.load_state_dict(weights)
        # where there were fewer processes some chains go on in two, with new noise
        num_before = sum(name.startswith("chain_state_") for name in os.listdir(checkpoint))
        rank = self.args.process_index % num_before
        self.load_random_state(load_file(os.path.join(checkpoint, f"chain_state_{rank}.safetensors")), num_before)

    def _load_best_model(self):
        super()._load_best_model()
        self.ema.module.load_state_dict(self.model.state_dict())


def _contiguous(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them: channels last is another layout."""
    return {name: value.contiguous() for name, value in weights.items()}


class _StepCallback(TrainerCallback):
    """Averages the weights after each optimiser step."""

    def __init__(self, trainer: AveragingTrainer):
        self.trainer = trainer

    def on_train_begin(self, *args, **kwargs) -> None:
        self.trainer.forget_log()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.trainer.ema.update(self.trainer.model, step=state.global_step)
