"""Training: the one place that knows model, loss, chain and buffer together."""

import os
import time
from collections import defaultdict
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from timm.optim import Muon
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..hub.cards import write_training_card
from ..metrics.prediction import prediction_metrics
from ..models.heads_jem import cross_entropy
from ..models.image_processing_jem import JemImageProcessor, to_pixels
from ..models.modeling_jem import JemModel
from ..plots import image_grid
from .arguments import JemTrainingArguments
from .augmentation import augment, random_shift
from .buffer import dequantise
from .fine_tuning import Teacher
from .guard import Guard
from .losses import contrastive_divergence, equilibrium_matching, nearest_neighbour_entropy
from .negatives import NegativeSampler, frozen
from .resume import ResumableTrainer

WATCHED = ("energy_gap", "saturated", "motion", "difference")  # by the guard


class JemTrainer(ResumableTrainer):
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
        self.ema = AveragedModel(self.model, multi_avg_fn=self._average)
        self.ema.requires_grad_(False)
        self.negatives = NegativeSampler(self.model, args, self.generator)
        self.teacher = None
        if args.teacher:
            self.teacher = Teacher(JemModel.from_pretrained(args.teacher).to(args.device), self.model.config)
        self.card = {}  # what `cards.write_card` is told: name, dataset, recipe, licence, ...
        self.readings = {}  # scalars of the last step, for the guard
        self.forget_log()
        self.add_callback(_StepCallback(self))
        self.guard = Guard(self) if args.guard_steps else None
        if self.guard:
            self.add_callback(self.guard)

    def _average(self, averaged, current, num_averaged):
        decay = min(self.args.ema_decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
        torch._foreach_lerp_(averaged, list(current), 1 - decay)

    # Losses

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        x = dequantise(inputs["pixel_values"], self.generator)
        if self.args.horizontal_flip:
            x = augment(x, flip=True, blur=False, generator=self.generator)
        if self.teacher:
            labels = self.teacher.complete(x, labels, self.generator)
        objective = self.args.objective_at(self.state.global_step)
        loss, stats = getattr(self, f"_{objective}_loss")(model, x, labels)
        for name, value in stats.items():
            self._log_values[name].append(value.detach())
        self._log_images += len(x)
        self.readings = {"loss": loss} | {name: stats[name] for name in WATCHED if name in stats}
        return (loss, {}) if return_outputs else loss

    def _label_distribution(self, model, x):
        """`JemModel.label_distribution`, by way of the wrapped model: gradients are shared between processes."""
        return self.model.head.distribution(model(pixel_values=x, potentials_only=True).potentials)

    def _classifier_loss(self, model, x, labels):
        return self._cross_entropy(self._label_distribution(model, x), labels)

    def _cross_entropy(self, distribution, labels):
        """Mean of `-log p(y_k | x, y of all others)`: the likelihood where labels are independent given the image,
        else the pseudo-likelihood (Besag 1975)."""
        logits = distribution.conditional_logits(labels, self.generator)
        loss = cross_entropy(logits, labels)
        return loss, {"cross_entropy": loss, "train_accuracy": _accuracy(logits, labels)}

    def _warmup_loss(self, model, x, labels):
        label_distribution = partial(self._label_distribution, model)
        matching = equilibrium_matching(label_distribution, x, labels, self.generator, self.args.decay_start)
        if self.args.cross_entropy_shift:
            x = random_shift(x, self.args.cross_entropy_shift, self.generator)
        classifier, stats = self._classifier_loss(model, x, labels)
        return matching + self.args.cross_entropy_weight * classifier, {"matching": matching, **stats}

    def _jem_loss(self, model, x, labels):
        loss, stats, distribution = self._contrastive_loss(model, x, torch.full_like(labels, -1))
        classifier, classifier_stats = self._cross_entropy(distribution, labels)
        return loss + labels.shape[1] * classifier, stats | classifier_stats

    def _joint_cd_loss(self, model, x, labels):
        loss, stats, distribution = self._contrastive_loss(model, x, labels)
        loss = self.args.cd_weight * loss
        if self.args.warmup_weight:
            warmup, warmup_stats = self._warmup_loss(model, x, labels)
            return loss + self.args.warmup_weight * warmup, stats | warmup_stats
        with torch.no_grad():
            return loss, stats | self._cross_entropy(distribution, labels)[1]

    def _contrastive_loss(self, model, x, labels):
        """Contrastive divergence with its extra terms, what to log, and the distribution of the data's labels."""
        args, head = self.args, self.model.head
        with self.accelerator.autocast():
            samples, sample_labels, others = self.negatives.draw(x)
        if args.data_noise:
            x = (x + args.data_noise * torch.empty_like(x).normal_(generator=self.generator)).clamp(-1, 1)
        potentials = model(pixel_values=torch.cat([x, samples.detach()]), potentials_only=True).potentials
        of_data, of_samples = map(head.distribution, potentials.chunk(2))
        if not of_data.is_exact:  # Fisher's identity: labels that are drawn have the gradient of their sum
            labels = of_data.draw(labels, self.generator)
        log_p_data, log_p_samples = of_data.log_joint(labels), of_samples.log_joint(sample_labels)
        loss = contrastive_divergence(log_p_data, log_p_samples)
        stats = {
            "energy_data": -log_p_data.mean(),
            "energy_samples": -log_p_samples.mean(),
            "energy_gap": -loss,
            "saturated": (samples.detach().abs() >= 1).float().mean(),
            "motion": self.negatives.motion,
            "difference": _typical_difference(samples.detach()),
        }
        if args.energy_penalty:
            loss = loss + args.energy_penalty * (log_p_data.square().mean() + log_p_samples.square().mean())
        if args.kl_weight:
            with frozen(self.model), self.accelerator.autocast():
                log_p_last = self.model.log_joint(samples, sample_labels)
            loss = loss - args.kl_weight * log_p_last.mean()
            stats["log_p_last_step"] = log_p_last.mean()
        if args.entropy_weight:
            entropy = nearest_neighbour_entropy(samples, others)
            loss = loss - args.entropy_weight * entropy
            stats["entropy"] = entropy
        return loss, stats, of_data

    # The loop around them

    def train(self, resume_from_checkpoint=None, **kwargs):
        labels = self.teacher.label(self.train_dataset) if self.teacher else _all_labels(self.train_dataset)
        self.model.label_prior.fit(labels)
        self.ema.module.label_prior.load_state_dict(self.model.label_prior.state_dict())
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_optimizer(self, model=None):
        if self.args.muon and self.optimizer is None:
            args = self.args
            groups = [
                {"params": list(self.model.backbone.parameters())},
                {"params": list(self.model.head.parameters()), "use_fallback": True},
            ]
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = Muon(
                groups, lr=args.learning_rate, weight_decay=args.weight_decay, nesterov=True, betas=betas
            )
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if not self.args.lr_drop_step:
            return super().create_scheduler(num_training_steps, optimizer)
        factor, drop = self.args.lr_drop_factor, self.args.lr_drop_step
        self.lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer or self.optimizer, [drop], gamma=factor)
        return self.lr_scheduler

    def log(self, logs, start_time=None):
        if "loss" in logs and self._log_images:
            means = torch.stack([torch.stack(values).mean() for values in self._log_values.values()])
            means = self.accelerator.reduce(means, "mean").tolist()
            logs |= {name: round(mean, 4) for name, mean in zip(self._log_values, means)}
            elapsed = time.time() - self._log_time
            logs["images_per_second"] = round(self._log_images * self.args.world_size / elapsed, 1)
            self.forget_log()
        super().log(logs, start_time)

    def forget_log(self):
        """Begin the means of the next log anew."""
        self._log_values, self._log_images, self._log_time = defaultdict(list), 0, time.time()

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.readings["gradient_norm"] = torch.as_tensor(grad_norm, device=self.args.device)
        return grad_norm

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            output = self.ema.module(to_pixels(inputs["pixel_values"]), inputs["labels"])
        return output.loss, output.attribute_logits, inputs["labels"]

    def _prediction_metrics(self, prediction):
        probabilities = torch.as_tensor(prediction.predictions).softmax(-1).numpy()
        metrics = prediction_metrics(probabilities, prediction.label_ids, self.model.config.attributes)
        return {name: value for name, value in metrics.items() if name != "per_attribute"}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.args.sample_grid and self.args.objective != "classifier" and self.is_world_process_zero():
            self._write_grid(eval_dataset if eval_dataset is not None else self.eval_dataset)
        return metrics

    def _write_grid(self, dataset):
        """Draw what the first evaluation images are labelled as, from the same noise every time."""
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()))
        rows = [dataset[i]["labels"] for i in range(min(self.args.sample_grid, len(dataset)))]
        generator = torch.Generator(self.model.device).manual_seed(self.args.seed)
        x, _ = self.ema.module.generate(torch.stack(rows).to(self.model.device), generator=generator)
        os.makedirs(self.args.output_dir, exist_ok=True)
        grid = image_grid(JemImageProcessor.to_pil(x), scale=max(1, 96 // x.shape[-1]))
        grid.save(os.path.join(self.args.output_dir, f"samples-{self.state.global_step}.png"))

    def _load_best_model(self):
        super()._load_best_model()
        self.ema.module.load_state_dict(self.model.state_dict())

    # Checkpoints: model.safetensors is the moving average; beside it lies what training needs to go on

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict or self.ema.module.state_dict())
        if self.args.should_save:
            self._write_card(output_dir or self.args.output_dir)

    def _write_card(self, folder):
        write_training_card(folder, self)

    # The Hub: what is pushed is what `JemModel.push_to_hub` pushes, never arguments, logs or a template of a card

    def create_model_card(self, *args, **kwargs):
        """Write the card of `output_dir`, unless there is one of these weights."""
        if self.is_world_process_zero():
            self._write_card(self.args.output_dir)

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ):
        """Save, and upload model, image processor, code and card; see `Trainer`. Returns the commit, or a Future."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._push(self.args.output_dir, commit_message, blocking, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder):
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._push(checkpoint_folder, message, blocking=False)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else os.path.basename(checkpoint_folder)
            jobs.append(
                HfApi(token=self.args.hub_token).upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=checkpoint_folder,
                    path_in_repo=name,
                    commit_message=f"{message}, checkpoint",
                    revision=self.args.hub_revision,
                    ignore_patterns=["training_args.bin"],
                    run_as_future=True,
                )
            )
        self.push_in_progress = PushInProgress(jobs)

    def _push(self, folder, commit_message, blocking, token=None, revision=None):
        arguments = dict(
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
        )
        model = JemModel.from_pretrained(folder)
        if blocking:
            return model.push_to_hub(self.hub_model_id, **arguments)
        return HfApi().run_as_future(model.push_to_hub, self.hub_model_id, **arguments)

    def _save_optimizer_and_scheduler(self, output_dir):
        os.makedirs(output_dir, exist_ok=True)  # ranks other than the first may be here before it is
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
            weights["num_averaged"] = self.ema.n_averaged
            save_file(weights, os.path.join(output_dir, "training_weights.safetensors"))
        state = {"generator": self.generator.get_state(), **self.negatives.state_dict()}
        save_file(state, os.path.join(output_dir, f"chain_state_{self.args.process_index}.safetensors"))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.ema.module.load_state_dict(self.model.state_dict())
        weights = load_file(os.path.join(checkpoint, "training_weights.safetensors"))
        self.ema.n_averaged.copy_(weights.pop("num_averaged"))
        self.model.load_state_dict(weights)
        self._load_chain_state(Path(checkpoint))

    def _load_chain_state(self, checkpoint):
        """The chains of this process. Where there were fewer processes some chains go on in two, with new noise."""
        num_before, args = len(list(checkpoint.glob("chain_state_*.safetensors"))), self.args
        state = load_file(checkpoint / f"chain_state_{args.process_index % num_before}.safetensors")
        generator_state = state.pop("generator")
        if num_before == args.world_size:
            self.generator.set_state(generator_state)
        else:  # a seed that no process had yet
            self.generator.manual_seed(args.seed + (self.state.global_step << 16) + args.process_index)
        self.negatives.load_state_dict(state)

    def progress(self):
        return super().progress() | ({"guard": self.guard.state_dict()} if self.guard else {})

    def load_progress(self, progress):
        if self.guard and "guard" in progress:
            self.guard.load_state_dict(progress["guard"])


class _StepCallback(TrainerCallback):
    """Averages the weights after each optimiser step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.forget_log()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.ema.update_parameters(self.trainer.model)


def _all_labels(dataset, num_of_stream=2000):
    """Labels (N, K) of a dataset; of a stream those of its first rows."""
    if hasattr(dataset, "labels"):
        return dataset.labels
    is_stream = not hasattr(dataset, "__len__")
    rows = islice(dataset, num_of_stream) if is_stream else (dataset[i] for i in range(len(dataset)))
    return torch.stack([torch.as_tensor(row["labels"]) for row in rows])


def _typical_difference(x):
    """Mean absolute difference of a pixel between the middle one of images (B, C, H, W) and their median."""
    x = x[:, :, ::4]  # a quarter of the pixels tells, and medians over a batch are slow
    return (x - x.median(dim=0).values).abs().flatten(1).mean(1).median()


def _accuracy(logits, labels):
    present = labels >= 0
    return ((logits.argmax(-1) == labels) & present).sum() / present.sum().clamp(min=1)
