"""The classifier that a joint model is measured against: the same network, trained to predict and nothing else."""

import os
import tempfile
from collections.abc import Callable

import torch
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from ..data.tensors import AttributeTensors
from ..models.configuration_jem import JemConfig
from ..models.modeling_jem import JemModel
from ..training.arguments import JemTrainingArguments
from ..training.devices import all_agree, has_native_bfloat16, join_processes
from ..training.trainer import JemTrainer
from .judges import cache_path, no_progress, save_atomically

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


def load_classifier(
    train: AttributeTensors,
    config: JemConfig,
    num_epochs: int = 6,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] = no_progress,
) -> JemModel:
    """
    A classifier with the network of `config`, from the cache where it is there, else trained and cached.

    Processes that torchrun started train it together, and all get it.

    Args:
        num_epochs (`int`): Passes over the data; more than a few overfit a small set.
        cache_dir, progress: As for [`load_judge`].
    """
    network = (config.backbone, sorted(config.backbone_kwargs.items()), config.head, config.num_values)
    settings = ("classifier r2", network, num_epochs, BATCH_SIZE, sorted(TRAINING.items()))
    path = cache_path("classifiers", settings, train, cache_dir)
    if all_agree(os.path.exists(path)):
        model = JemModel(config)
        model.load_state_dict(load_file(path))
    else:
        model = _train(train, config, num_epochs, progress)
        save_atomically(model.state_dict(), path)
    return model.eval()


def _train(train, config, num_epochs, progress) -> JemModel:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the warnings of a training run are not those of an evaluation
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            torch.manual_seed(TRAINING["seed"])
            args = JemTrainingArguments(
                output_dir=folder,
                num_train_epochs=num_epochs,
                per_device_train_batch_size=max(1, BATCH_SIZE // join_processes().num_processes),
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                bf16=has_native_bfloat16("cuda" if torch.cuda.is_available() else "cpu"),
                **TRAINING,
            )
            trainer = JemTrainer(model=JemModel(config), args=args, train_dataset=train)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_StepCallback(progress))
            trainer.train()
            return trainer.ema.module.cpu()
    finally:
        logging.set_verbosity(verbosity)


class _StepCallback(TrainerCallback):
    def __init__(self, progress):
        self.progress = progress

    def on_step_end(self, args, state, control, **kwargs):
        self.progress(state.global_step, state.max_steps)
