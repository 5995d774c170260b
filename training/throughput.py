"""How fast a recipe trains: images a second, beside the bare loop and the device's matrix products."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from on_device import make_device_trainer
from transformers import TrainerCallback

from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.training.objectives import optimal_transport_pairing
from jem_hf.training.recipes import Recipe

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from flops import FlopCounter, matmul_rate, synchronised_time

QUIET = {"eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}


class StepTimer(TrainerCallback):
    """Seconds a training step, those of the first half of the steps left out."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == args.max_steps // 2:
            self.start = synchronised_time()
        if state.global_step == args.max_steps:
            self.seconds = (synchronised_time() - self.start) / (args.max_steps - args.max_steps // 2)


def measure(recipe: Recipe, splits: dict, values: dict, num_steps: int | None = None) -> dict:
    """
    Time every objective of a recipe, each with a new model.

    Args:
        splits: `DeviceTensors` by name.
        num_steps: training steps an objective, half of them warm-up; default: 60 on a GPU, else 4.

    Returns:
        `device`, `matmul_tflops` (bfloat16), `pairing_ms` (optimal transport of a batch) and, under `objectives`, for
        each `images_per_second` of the trainer, `bare_images_per_second` (loss, backward pass and optimiser step,
        nothing else), `gflop_per_image` of loss and backward pass, and `matmul_share` of the trainer.
    """
    on_gpu = torch.cuda.is_available()
    num_steps = num_steps or (60 if on_gpu else 4)
    settings = {"warmup": {"objective": "warmup"}}
    objective = recipe.training.get("objective", "warmup")
    if objective != "warmup":
        chains = {objective: {"objective": objective, "chain_free_steps": 0}}
        settings = settings | chains if recipe.training.get("chain_free_steps") else chains
    rate = matmul_rate(8192 if on_gpu else 512)
    objectives = {}
    for name, fields in settings.items():
        trained = {**recipe.training, **QUIET, **fields, "max_steps": num_steps}
        trainer = make_device_trainer(replace(recipe, training=trained), splits, values)
        timer = StepTimer()
        trainer.add_callback(timer)
        trainer.train()
        batch_size = trainer.args.per_device_train_batch_size
        bare_seconds, flop = bare_loop(trainer, splits["train"].__getitems__(list(range(batch_size))), num_steps)
        objectives[name] = {
            "images_per_second": round(batch_size / timer.seconds, 1),
            "bare_images_per_second": round(batch_size / bare_seconds, 1),
            "gflop_per_image": float(f"{flop / batch_size / 1e9:.3g}"),
            "matmul_share": float(f"{flop / timer.seconds / rate:.3g}"),
        }
    images = to_pixels(splits["train"].images[:batch_size])
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "batch_size": batch_size,
        "matmul_tflops": float(f"{rate / 1e12:.3g}"),
        "pairing_ms": round(1e3 * _seconds(lambda: optimal_transport_pairing(torch.randn_like(images), images)), 2),
        "objectives": objectives,
    }


def bare_loop(trainer, batch: dict, num_steps: int) -> tuple[float, float]:
    """Seconds a step of the trainer's loss and optimiser on one batch, and its floating-point operations."""
    model, optimizer = trainer.model, trainer.optimizer

    def loss():
        with torch.autocast(model.device.type, torch.bfloat16, enabled=trainer.args.bf16):
            return trainer.compute_loss(model, batch)

    def step():
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounter() as counter:
        loss().backward()
    optimizer.zero_grad()
    return _seconds(step, num_steps // 2), counter.total


def _seconds(function, num_calls: int = 5) -> float:
    """Mean time of a call, after one that does not count."""
    function()
    start = synchronised_time()
    for _ in range(num_calls):
        function()
    return (synchronised_time() - start) / num_calls
