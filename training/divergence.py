"""Settings that diverge, with and without the guard: a table, and a plot of the loss and of drawn images."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from jem_hf import AttributeTensors, JemConfig, JemModel, JemTrainer, JemTrainingArguments
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.models.sampling_jem import initial_noise, run_chain

NUM_STEPS, NUM_DRAWN = 600, 64
SETTINGS = {
    "joint_cd, learning rate 0.03": {"learning_rate": 3e-2},
    "joint_cd, chain step 30": {"chain_step_size": 30.0},
    "warmup, Muon at learning rate 1": {"objective": "warmup", "muon": True, "learning_rate": 1.0},
}


def pictures(labels: torch.Tensor) -> torch.Tensor:
    """Noise-free images (N, 1, 8, 8), uint8: a bar on the left or right half, dim or bright, by labels (N, 2)."""
    right, bright = labels.bool().T[:, :, None, None, None]
    on_right = torch.arange(8) >= 4
    bar = torch.where(bright, 200, 120)
    return torch.where(on_right == right, bar, 60).expand(-1, 1, 8, 8).to(torch.uint8)


def bars(num: int, seed: int) -> AttributeTensors:
    """Images of bars under uniform noise of 20 grey values."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (num, 2), generator=generator)
    noise = torch.randint(-20, 21, (num, 1, 8, 8), generator=generator)
    return AttributeTensors((pictures(labels).int() + noise).to(torch.uint8), labels, ["Right", "Bright"])


class Recorder(TrainerCallback):
    """Loss of every step."""

    def __init__(self):
        self.losses = []

    def bind(self, trainer):
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.losses.append(self.trainer.readings["loss"].item())


def train(folder: Path, guard: bool, **setting) -> dict:
    """
    Train on bars and look at what came out.

    Returns:
        "losses" of all steps, "alarms" (lines of `guard.jsonl`), test "accuracy", "samples" (N, 1, 8, 8) drawn for
        "labels" (N, 2), and "error": their root mean square distance, in [-1, 1], to the picture that was asked for.
    """
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    data, test = bars(512, 0), bars(256, 1)
    network = {"width": 8, "hidden_size": 32}
    model = JemModel(JemConfig(attributes=data.attributes, image_size=8, num_channels=1, backbone_kwargs=network))
    common = dict(
        output_dir=str(folder),
        objective="joint_cd",
        muon=False,
        learning_rate=1e-3,
        chain_steps=10,
        chain_step_size=1.0,
        chain_noise=0.01,
        buffer_size=1000,
        buffer_flip=False,
        buffer_blur=False,
        horizontal_flip=False,
        ema_decay=0.99,
        per_device_train_batch_size=32,
        max_steps=NUM_STEPS,
        save_strategy="no",
        logging_strategy="no",
        guard_steps=20 if guard else 0,
        guard_energy_gap=20.0,  # these images are small
        use_cpu=True,
        disable_tqdm=True,
    )
    args = JemTrainingArguments(**common | setting)
    trainer = JemTrainer(model=model, args=args, train_dataset=data, eval_dataset=test)
    recorder = Recorder().bind(trainer)
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    labels = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(NUM_DRAWN // 4, 1)
    samples = draw(trainer.ema.module, labels, args)
    error = (samples - to_pixels(pictures(labels))).square().mean().sqrt().item()
    log = folder / "guard.jsonl"
    alarms = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return {"losses": recorder.losses, "alarms": alarms, "accuracy": accuracy, "samples": samples, "error": error}


def draw(model: JemModel, labels: torch.Tensor, args: JemTrainingArguments) -> torch.Tensor:
    """Images (N, 1, 8, 8): by gradient flow from a warm-up, else by the chain of the training, four times as long."""
    generator = torch.Generator().manual_seed(0)
    if args.objective == "warmup":
        return model.generate(labels, generator=generator)[0].clamp(-1, 1)
    noise = initial_noise("langevin", (len(labels), 1, 8, 8), labels.device, generator)
    chain = args.chain() | {"num_steps": 4 * args.chain_steps, "gibbs_every": 0}
    return run_chain(
        label_distribution=model.label_distribution, x=noise, condition=labels, generator=generator, **chain
    )[0]


def plot(results: dict[str, dict[bool, dict]], path: Path) -> None:
    """Loss of every step without and with the guard, its alarms, and eight images of each."""
    import matplotlib.pyplot as plt

    size = dict(figsize=(4 * len(results), 5), height_ratios=[6, 1, 1], layout="constrained")
    figure, axes = plt.subplots(3, len(results), **size)
    for column, (name, runs) in zip(axes.T, results.items()):
        for guard, colour in ((False, "tab:red"), (True, "tab:blue")):
            losses = runs[guard]["losses"]
            column[0].plot(losses, color=colour, label=f"{'with' if guard else 'without'} guard")
            grid = column[1 + guard]
            grid.imshow(torch.cat(list(runs[guard]["samples"][:8, 0]), 1), cmap="gray", vmin=-1, vmax=1)
            grid.set(xticks=[], yticks=[], xlabel=f"{'with' if guard else 'without'} guard")
        for alarm in runs[True]["alarms"]:
            column[0].axvline(alarm["step"], color="tab:blue", linestyle=":")
        column[0].set(title=name, xlabel="step (dotted: alarm)", yscale="symlog")
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/divergence"))
    parser.add_argument("--figure", type=Path, default=Path("runs/divergence.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    results = {}
    for name, setting in SETTINGS.items():
        results[name] = {guard: train(options.folder / str(guard), guard, **setting) for guard in (False, True)}
    floor = (to_pixels(bars(256, 1).images) - to_pixels(pictures(bars(256, 1).labels))).square().mean().sqrt()
    print("| setting | guard | alarms | last loss | test accuracy | error of drawn images |")
    print("|---|---|---:|---:|---:|---:|")
    for name, runs in results.items():
        for guard, run in runs.items():
            row = f"| {name} | {'yes' if guard else 'no'} | {len(run['alarms'])} | {run['losses'][-1]:.3g} "
            print(row + f"| {run['accuracy']:.3f} | {run['error']:.2f} |")
    sound = train(options.folder / "sound", guard=False)["error"]
    print(f"\nError of test images: {floor:.2f}; of joint_cd at learning rate 0.001 and chain step 1: {sound:.2f}.")
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    plot(results, options.figure)
