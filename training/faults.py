"""Kill a training run again and again, and compare its end with that of an undisturbed one, bit by bit."""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from jem_hf import AttributeTensors, JemConfig, JemModel, JemTrainer, JemTrainingArguments

STEPS, SAVE_STEPS = 160, 7  # a pass has 6 steps: checkpoints lie in the middle of passes
KINDS = ("SIGKILL", "SIGTERM", "full disk")


def make_trainer(folder: Path, num_steps: int = STEPS) -> JemTrainer:
    """Warm-up, then chains with a buffer, at 8x8 pixels: all that a checkpoint must hold, in milliseconds a step."""
    torch.manual_seed(0)
    config = JemConfig(attributes=["A", "B"], image_size=8, backbone_kwargs={"width": 4, "hidden_size": 8})
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 3, 8, 8), generator=generator, dtype=torch.uint8)
    data = AttributeTensors(images, torch.randint(-1, 2, (48, 2), generator=generator), config.attributes)
    args = JemTrainingArguments(
        output_dir=str(folder),
        objective="joint_cd",
        chain_free_steps=num_steps // 3,
        chain_steps=4,
        chain_step_size=0.1,
        buffer_size=64,
        buffer_policy="reservoir",
        kl_weight=1.0,
        entropy_weight=0.3,
        per_device_train_batch_size=8,
        max_steps=num_steps,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=10,
        guard_steps=10,
        use_cpu=True,
        disable_tqdm=True,
    )
    return JemTrainer(model=JemModel(config), args=args, train_dataset=data)


class Announce(TrainerCallback):
    """Sets an event when training begins."""

    def __init__(self, began):
        self.began = began

    def on_train_begin(self, args, state, control, **kwargs):
        self.began.set()


def train(folder: Path, num_steps: int, began, file_limit: int | None = None) -> None:
    """Go on from the last checkpoint, in a process of its own; no file may grow beyond `file_limit` bytes."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    trainer = make_trainer(folder, num_steps)
    trainer.add_callback(Announce(began))
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model()


def last_checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(folder) if folder.is_dir() else None


def last_step(folder: Path) -> int:
    """Step of the last checkpoint, 0 without any."""
    return int((last_checkpoint(folder) or "-0").rsplit("-", 1)[1])


def launch(folder: Path, num_steps: int, kind: str | None, delay: float = 0.0) -> dict:
    """
    Train until the end, or until a fault comes.

    Args:
        kind: one of `KINDS`; None lets it end.
        delay: seconds after the beginning of training when a signal is sent.

    Returns:
        "kind", "from_step", "to_step" (of the last checkpoints before and after), "exit_code", "while_writing":
        whether a half-written checkpoint was left, and "seconds" of training.
    """
    before = last_step(folder)
    file_limit = 5_000 if kind == "full disk" else None
    context = multiprocessing.get_context("fork")
    began = context.Event()
    process = context.Process(target=train, args=(folder, num_steps, began, file_limit))
    process.start()
    began.wait()
    start = time.time()
    if kind in ("SIGKILL", "SIGTERM"):
        process.join(delay)
        if process.is_alive():
            os.kill(process.pid, getattr(signal, kind))
    process.join()
    partial = list(folder.glob(".*.partial"))
    return {
        "kind": kind,
        "from_step": before,
        "to_step": last_step(folder),
        "exit_code": process.exitcode,
        "while_writing": bool(partial),
        "seconds": round(time.time() - start, 2),
    }


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: moving average, weights in training, buffer, generator, optimiser."""
    tensors = {
        f"{path.name}/{name}": value
        for path in folder.glob("*.safetensors")
        for name, value in load_file(path).items()
    }
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return tensors | {
        f"optimizer/{i}/{name}": torch.as_tensor(value)
        for i, state in optimizer.items()
        for name, value in state.items()
    }


def different_tensors(one: Path, other: Path) -> list[str]:
    """Names of the tensors of two checkpoints that differ in any bit, or that only one has."""
    first, second = tensors_of(one), tensors_of(other)
    common = first.keys() & second.keys()
    different = [name for name in common if not torch.equal(first[name], second[name])]
    return sorted({*different, *(first.keys() ^ second.keys())})


def run(folder: Path, num_faults: int, kinds: tuple[str, ...] = KINDS, num_steps: int = STEPS, seed: int = 0) -> dict:
    """
    An undisturbed run in `folder`/whole and one with `num_faults` faults in `folder`/killed.

    Returns:
        "faults": what [`launch`] says of each, "num_tensors": how many were compared, "different": names of those that
        are not the same.
    """
    shutil.rmtree(folder, ignore_errors=True)
    duration = launch(folder / "whole", num_steps, None)["seconds"]
    dice, faults = random.Random(seed), []
    while len(faults) < num_faults:
        fault = launch(folder / "killed", num_steps, dice.choice(kinds), dice.uniform(0, 2 * duration / num_faults))
        faults.append(fault)
        if fault["exit_code"] == 0:  # it ended before the fault came: nothing is left to disturb
            shutil.rmtree(folder / "killed")
            faults.clear()
    launch(folder / "killed", num_steps, None)
    ends = [folder / name / f"checkpoint-{num_steps}" for name in ("whole", "killed")]
    final = [load_file(folder / name / "model.safetensors") for name in ("whole", "killed")]
    different = different_tensors(*ends) + [
        name for name in final[0] if not torch.equal(final[0][name], final[1][name])
    ]
    return {"faults": faults, "num_tensors": len(tensors_of(ends[0])) + len(final[0]), "different": different}


def plot(faults: list[dict], path: Path) -> None:
    """Step of the last checkpoint after each fault, and what the fault was."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    steps = [fault["to_step"] for fault in faults]
    axes.step(range(1, len(steps) + 1), steps, where="post", color="0.7", zorder=1)
    for kind, marker in zip(KINDS, "xos"):
        points = [(i, fault["to_step"]) for i, fault in enumerate(faults, 1) if fault["kind"] == kind]
        if points:
            axes.scatter(*zip(*points), marker=marker, label=kind, zorder=2)
    axes.set(xlabel="fault", ylabel="step of the last checkpoint", ylim=(0, STEPS))
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--num-faults", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=["SIGKILL"], choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(options.folder, options.num_faults, tuple(options.kinds), seed=options.seed)
    if options.figure:
        plot(result["faults"], options.figure)
    for fault in result["faults"]:
        print(json.dumps(fault))
    num_writing = sum(fault["while_writing"] for fault in result["faults"])
    print(
        f"{len(result['faults'])} faults, {num_writing} of them while a checkpoint was written; "
        f"{len(result['different'])} of {result['num_tensors']} tensors differ {result['different']}"
    )
    sys.exit(bool(result["different"]))
