"""A `JemTrainer` whose data lie on its device."""

import torch

from jem_hf import AttributeTensors
from jem_hf.training.recipes import Recipe, make_trainer


class DeviceTensors(AttributeTensors):
    """[`AttributeTensors`] on one device: a batch is one gather there, and needs no collator and no worker."""

    def __init__(self, tensors: AttributeTensors, device: torch.device):
        super().__init__(tensors.images.to(device), tensors.labels.to(device), tensors.attributes)

    def __getitems__(self, indices):
        rows = torch.tensor(indices).to(self.images.device, non_blocking=True)
        return {"pixel_values": self.images[rows], "labels": self.labels[rows]}


def make_device_trainer(recipe: Recipe, splits: dict, values: dict, processor=None):
    """`recipes.make_trainer` for splits of [`DeviceTensors`], its convolutions laid out channels last."""
    recipe.training["dataloader_pin_memory"] = False
    trainer = make_trainer(recipe, splits, values, processor)
    trainer.data_collator = lambda batch: batch
    for model in (trainer.model, trainer.ema.module):
        model.to(memory_format=torch.channels_last)
    return trainer


def use_fast_kernels() -> None:
    """TF32 where float32 is left (convolutions have it by default), and the fastest convolutions for each shape."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
