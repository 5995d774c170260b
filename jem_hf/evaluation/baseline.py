"""The classifier that a joint model is measured against: the same network, trained to predict and nothing else."""

import os
from collections.abc import Callable

from safetensors.torch import load_file

from ..data.tensors import AttributeTensors
from ..models.configuration_jem import JemConfig
from ..models.modeling_jem import JemModel
from ..training.classifier import BATCH_SIZE, TRAINING, train_classifier
from ..training.devices import all_agree
from .judges import cache_path, no_progress, save_atomically


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
        model = train_classifier(JemModel(config), train, progress, num_train_epochs=num_epochs)
        save_atomically(model.state_dict(), path)
    return model.eval()
