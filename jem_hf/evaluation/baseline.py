"""The classifiers that a joint model is measured against: trained to predict and nothing else."""

import hashlib
import os
from collections.abc import Callable

from safetensors.torch import load_file

from ..data.tensors import AttributeTensors
from ..models.configuration_jem import JemConfig
from ..models.modeling_jem import JemModel
from ..training.classifier import BATCH_SIZE, TRAINING, pixel_classifier, train_classifier
from ..training.devices import all_agree
from .judges import cache_path, no_progress, save_atomically

PIXEL_NETWORK = dict(width=64, hidden_size=512)  # beside an energy of codes: that of the pixel recipe `celeba-64`


def untrained_classifiers(model: JemModel) -> dict[str, JemModel]:
    """
    The networks that a joint model is measured against, by name: "classifier", of the same network; where the energy
    is of codes that is "classifier_of_codes", and "classifier" sees pixels, by the paper's network.
    """
    own = JemModel(JemConfig.from_dict(model.config.to_dict() | {"calibrated": False}))
    if model.autoencoder is None:
        return {"classifier": own}
    own.autoencoder.load_state_dict(model.autoencoder.state_dict())
    return {"classifier": pixel_classifier(model.config, **PIXEL_NETWORK), "classifier_of_codes": own}


def load_classifier(
    untrained: JemModel,
    train: AttributeTensors,
    num_epochs: int = 6,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] = no_progress,
) -> JemModel:
    """
    A classifier, from the cache where it is there, else trained and cached.

    Processes that torchrun started train it together, and all get it.

    Args:
        untrained ([`JemModel`]): Becomes the classifier.
        num_epochs (`int`): Passes over the data; more than a few overfit a small set.
        cache_dir, progress: As for [`load_judge`].
    """
    config, codes = untrained.config, ""
    if untrained.autoencoder is not None:
        weights = [weight.cpu().contiguous().numpy() for weight in untrained.autoencoder.state_dict().values()]
        codes = hashlib.sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()
    network = (config.backbone, sorted(config.backbone_kwargs.items()), config.head, config.num_values, codes)
    settings = ("classifier r2", network, num_epochs, BATCH_SIZE, sorted(TRAINING.items()))
    path = cache_path("classifiers", settings, train, cache_dir)
    if all_agree(os.path.exists(path)):
        untrained.load_state_dict(load_file(path))
        return untrained.eval()
    model = train_classifier(untrained, train, progress, num_train_epochs=num_epochs)
    save_atomically(model.state_dict(), path)
    return model
