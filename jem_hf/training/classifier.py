"""A classifier by the trainer of joint models: a baseline for them, and the eye by which an autoencoder sees."""

import tempfile
from collections.abc import Callable

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from ..models.configuration_jem import JemConfig
from ..models.modeling_jem import JemModel
from .arguments import JemTrainingArguments
from .devices import has_native_bfloat16, join_processes
from .trainer import JemTrainer

BATCH_SIZE = 64
TRAINING = dict(
    objective="classifier",
    learning_rate=2e-3,
    adam_beta2=0.99,
    lr_scheduler_type="cosine",
    warmup_steps=50,
    max_grad_norm=1.0,
    ema_decay=0.99,
    seed=4321,
)


def train_classifier(
    model: JemModel, train: Dataset, progress: Callable[[int, int], None] = lambda *_: None, **training
) -> JemModel:
    """
    Train a model to predict and nothing else; processes that torchrun started do so together.

    Args:
        progress: Called after every step with the steps done and in all.
        training: Further fields of [`JemTrainingArguments`], such as `max_steps`.

    Returns:
        The moving average, on the CPU.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings are not those of what it is trained for
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            torch.manual_seed(TRAINING["seed"])
            args = JemTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=max(1, BATCH_SIZE // join_processes().num_processes),
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                bf16=has_native_bfloat16("cuda" if torch.cuda.is_available() else "cpu"),
                **TRAINING | training,
            )
            trainer = JemTrainer(model=model, args=args, train_dataset=train)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_StepCallback(progress))
            trainer.train()
            return trainer.ema.module.cpu().eval()
    finally:
        logging.set_verbosity(verbosity)


def pixel_classifier(config: JemConfig, width: int, hidden_size: int) -> JemModel:
    """The paper's network on pixels, untrained, for the images and attributes of `config`."""
    network = {"width": width, "hidden_size": hidden_size, "stem_stride": 2 if config.image_size >= 64 else 1}
    of_pixels = {"autoencoder": None, "backbone": "jem_cnn", "backbone_kwargs": network, "head": "product"}
    return JemModel(JemConfig.from_dict(config.to_dict() | of_pixels | {"calibrated": False}))


class _StepCallback(TrainerCallback):
    def __init__(self, progress):
        self.progress = progress

    def on_step_end(self, args, state, control, **kwargs):
        self.progress(state.global_step, state.max_steps)
