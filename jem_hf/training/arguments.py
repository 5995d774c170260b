"""Arguments of `JemTrainer`."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .devices import has_native_bfloat16
from .negatives import CHAIN_STARTS, POLICIES
from .objectives import CD_LOSSES, OBJECTIVES

ERRORS = ("loss", "nll", "brier", "ece")  # beginnings of the names of metrics of which less is better


def _arg(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class JemTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with the objective, the chain and the buffer.

    Defaults train the warm-up. The settings of Kelly et al. 2021 are the recipes `paper-celeba` and `paper-ut-zap50k`.
    Pixels are in [-1, 1]: the paper's steps are 4 times, its noise is 2 times as large as in [0, 1].
    """

    objective: str = _arg(
        "warmup", "joint_cd, warmup (Equilibrium Matching), jem (log p(y|x) + log p(x)) or classifier"
    )
    chain_free_steps: int = _arg(0, "the first so many steps use the warm-up, whatever the objective")
    cross_entropy_weight: float = _arg(0.3, "warm-up: weight of -log p(y_k|x)")
    cross_entropy_shift: int = _arg(0, "warm-up: pixels by which that term's images move at most; less overfitting")
    cross_entropy_zoom: float = _arg(
        1.0, "warm-up: times by which that term's images are smaller at most, half of them"
    )
    cross_entropy_rotation: float = _arg(0.0, "warm-up: degrees by which these are turned at most")
    cross_entropy_noise: float = _arg(0.0, "warm-up: standard deviation of noise on what that term sees")
    decay_start: float = _arg(0.8, "warm-up: time from which the target gradient falls to zero")
    optimal_transport: bool = _arg(True, "warm-up: pair noise and images of a batch by it, blind to their labels")

    cd_weight: float = _arg(1.0, "joint_cd: weight of the contrastive divergence and its extra terms")
    cd_loss: str = _arg("difference", "joint_cd and jem: difference of log p, or logistic, see logistic_contrast")
    cd_temperature: float = _arg(20.0, "logistic: nats over which data and samples are told apart")
    warmup_weight: float = _arg(0.0, "joint_cd: weight of the warm-up loss beside it")
    kl_weight: float = _arg(0.0, "joint_cd: weight of log p(x-) through the last Langevin step")
    entropy_weight: float = _arg(0.0, "joint_cd: weight of the nearest-neighbour entropy of the samples")
    energy_penalty: float = _arg(0.0, "joint_cd and jem: weight of the squared energies")
    data_noise: float = _arg(0.0, "joint_cd and jem: standard deviation of noise on the data")

    chain_steps: int = _arg(40, "Langevin steps a training step")
    chain_random_steps: bool = _arg(False, "chains of any number of steps from 1 to chain_steps, another each step")
    chain_step_size: float = _arg(4.0, "factor of the gradient")
    chain_noise: float = _arg(0.002, "standard deviation of the noise of a step")
    gibbs_every: int = _arg(2, "labels of samples are drawn anew before every so many steps")
    chain_start: str = _arg(
        "buffer", "where chains start: buffer, noise, data, noised_data, flow, broken_data or mixed"
    )
    buffer_size: int = _arg(10_000, "pairs in the replay buffer of each process")
    buffer_policy: str = _arg("fifo", "fifo or reservoir")
    buffer_on_disk: bool = _arg(False, "hold the images of the buffer in a memory-mapped file of output_dir")
    restart_probability: float = _arg(0.05, "share of chains that start from noise")
    buffer_flip: bool = _arg(True, "mirror half of the samples before their chains go on")
    buffer_blur: bool = _arg(True, "blur half of the samples before their chains go on")

    autoencoder_steps: int = _arg(2000, "of an autoencoder that the model has untrained: steps, before all others")
    autoencoder_learning_rate: float = _arg(2e-3, "its learning rate")
    autoencoder_noise: float = _arg(0.4, "standard deviation, at most, of noise on the codes that its decoder sees")
    autoencoder_feature_weight: float = _arg(0.05, "weight of the relative error in features of a classifier")
    autoencoder_feature_steps: int = _arg(800, "steps of that classifier, before the autoencoder's")
    autoencoder_adversarial_weight: float = _arg(0.0, "gradient of a critic of patches over the others'; 0: no critic")
    autoencoder_attribute_weight: float = _arg(0.1, "weight of -log p(y_k|code) of a linear layer")

    teacher: str = _arg("", "trained model (zoo name, Hub id or folder) that gives missing labels, see Teacher")
    horizontal_flip: bool = _arg(True, "mirror half of the training images")
    zoom: float = _arg(1.0, "times by which training images are smaller at most, for objects on a plain ground")
    rotation: float = _arg(0.0, "degrees by which these are turned at most")
    ema_decay: float = _arg(0.999, "decay of the moving average of the weights, which is what is saved")
    muon: bool = _arg(True, "Muon for the backbone's matrices and convolutions, AdamW for the rest; false: optim")
    lr_drop_step: int = _arg(0, "step from which the learning rate is multiplied by lr_drop_factor; 0: never")
    lr_drop_factor: float = _arg(0.3, "see lr_drop_step")
    max_minutes: float = _arg(0.0, "stop and save after so many minutes; 0: no limit")
    guard_steps: int = _arg(50, "steps between good states that divergence goes back to, see Guard; 0: no guard")
    guard_alarms: int = _arg(10, "alarms that are borne; the next one ends training")
    guard_factor: float = _arg(0.5, "by which learning_rate or chain_step_size is multiplied at an alarm")
    guard_energy_gap: float = _arg(100.0, "alarm: energy of samples less that of data, either way, in nats")
    guard_gradient: float = _arg(100.0, "alarm: gradient norm over its median while the loss rises, see Guard")
    guard_saturated: float = _arg(0.95, "alarm: share of the samples' pixels that are black or white")
    guard_motion: float = _arg(1e-4, "alarm: mean way of a sample's pixel, and difference of samples, in [-1, 1]")
    sample_grid: int = _arg(32, "images in the grid that every evaluation writes; 0: none")

    learning_rate: float = _arg(4e-3, "initial learning rate; 4e-3 suits Muon, Adam wants a quarter of it or less")
    ddp_find_unused_parameters: bool | None = _arg(False, "all parameters are used")
    label_names: list[str] | None = _arg(None, "columns of labels")
    remove_unused_columns: bool = _arg(False, "keep the columns of the dataset")
    report_to: str | list[str] = _arg("none", "where logs go")
    bf16: bool | str = _arg(False, "compute in bfloat16; auto: where the hardware does")

    def __post_init__(self) -> None:
        if self.bf16 == "auto":
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = has_native_bfloat16("cuda" if on_gpu else "cpu")
            self.use_cpu |= self.bf16 and not on_gpu  # without it `TrainingArguments` refuses bfloat16 on a CPU
        if not isinstance(self.bf16, bool):
            raise ValueError(f"bf16 is true, false or auto, not {self.bf16!r}")
        if self.greater_is_better is None and self.metric_for_best_model:
            self.greater_is_better = not self.metric_for_best_model.removeprefix("eval_").startswith(ERRORS)
        super().__post_init__()
        self.label_names = self.label_names or ["labels"]
        choices = {
            "objective": OBJECTIVES,
            "cd_loss": CD_LOSSES,
            "chain_start": CHAIN_STARTS,
            "buffer_policy": POLICIES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        if not 0 < self.guard_factor < 1:
            raise ValueError(f"guard_factor is between 0 and 1, not {self.guard_factor}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is at least 0 and below 1, not {self.ema_decay}")
        if self.zoom < 1:
            raise ValueError(f"zoom is 1 or more, not {self.zoom}: images become smaller by it, none is cut")
        if self.chain_steps < 1:
            raise ValueError(f"chain_steps is 1 or more, not {self.chain_steps}")
        if self.chain_steps < 2 and (self.kl_weight or self.entropy_weight):
            raise ValueError("kl_weight and entropy_weight need chain_steps of 2 or more: one of them keeps its graph")
        if self.buffer_size < self.per_device_train_batch_size:
            raise ValueError(
                f"buffer_size {self.buffer_size} is below the batch size {self.per_device_train_batch_size}: raise it"
            )

    def chain(self) -> dict:
        """Arguments of [`run_chain`](../models/sampling_jem.py) that draw the samples of contrastive divergence."""
        return {
            "sampler": "langevin",
            "num_steps": self.chain_steps,
            "step_size": self.chain_step_size,
            "noise_scale": self.chain_noise,
            "bounds": (-1.0, 1.0),
            "gibbs_every": 0 if self.objective == "jem" else self.gibbs_every,
        }
