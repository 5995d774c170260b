"""Train a recipe against the clock, from one packed file: `python training/full.py RECIPE DATA --minutes 9`.

Made for an accelerator that is lent for minutes: all data lie on it, the run ends inside its time limit and goes on
exactly from its last checkpoint with `--resume`. It leaves an export: the moving average of the weights as
`from_pretrained` wants it, and what `--restore EXPORT` needs where there is no checkpoint, in files of at most 15 MB.
"""

import argparse
import io
import json
import os
import shutil
import tarfile
import time
from functools import partial
from pathlib import Path

import psutil
import torch
from on_device import DeviceTensors, make_device_trainer, use_fast_kernels
from pack import add_recipe_arguments, recipe_of, unpack
from safetensors.torch import load_file, save_file
from throughput import measure
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from jem_hf import JemImageProcessor
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.training.checkpoints import checkpoint_folder
from jem_hf.training.objectives import equilibrium_matching

MAX_FILE = 15_000_000  # bytes
MARGIN = 5.0  # seconds at the end of a run, for what is not measured
BY_THE_CLOCK = {"eval_strategy": "no", "save_strategy": "no", "save_total_limit": 2, "disable_tqdm": True}


class Clock(TrainerCallback):
    """
    Evaluates, saves and exports by the clock, and stops the training so that the last time of it ends in time.

    The first time is at the first step: it shows that saving works, and how long it takes.

    Args:
        deadline (`float`): When all must be over, as `time.time()`.
        interval (`float`): Seconds between checkpoints.
        export: Function of a checkpoint's folder, called after each.
    """

    def __init__(self, deadline: float, interval: float, export):
        self.deadline, self.interval, self.export = deadline, interval, export
        self.asked = self.saved = self.longest = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.time()
        next_step = now - self.began
        is_late = now + next_step + 1.5 * self.longest + MARGIN > self.deadline
        is_last = is_late or state.global_step >= state.max_steps
        if is_last or now - self.saved > self.interval:
            self.asked = now
            control.should_evaluate = control.should_save = True
            control.should_training_stop = is_last
        return control

    def on_save(self, args, state, control, **kwargs):
        self.export(checkpoint_folder(args.output_dir, state.global_step))
        self.saved = time.time()
        self.longest = max(self.longest, self.saved - self.asked)


class HeldOutMatching(TrainerCallback):
    """Logs the warm-up's matching loss of the evaluation images: above that of the training images it overfits."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_evaluate(self, args, state, control, **kwargs):
        trainer, data = self.trainer, self.trainer.eval_dataset
        model, generator = trainer.ema.module, torch.Generator(trainer.model.device).manual_seed(args.seed)
        losses = []
        for rows in torch.arange(len(data)).split(args.per_device_train_batch_size):
            x, labels = to_pixels(data.images[rows]), data.labels[rows]
            with torch.enable_grad():
                loss = equilibrium_matching(model.label_distribution, x, labels, generator, args.decay_start)
            losses.append(loss.detach() * len(rows))
        trainer.log({"eval_matching": round((sum(losses) / len(data)).item(), 5)})


def export(trainer, folder: Path, checkpoint: Path) -> None:
    """
    Write weights (their moving average), config and image processor, and `state.tar.0`, ... for [`restore`].

    All weights are rounded to bfloat16. The state has the weights in training, the log, the step, the learning rate,
    the generator and the newest grid of samples. It lacks the optimiser's momenta, the replay buffer and the moving
    average, which begin anew.
    """
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    average = _bfloat16(trainer.ema.module.state_dict())
    trainer.model.save_pretrained(new, state_dict=average, max_shard_size=MAX_FILE, code=False)
    trainer.processing_class.save_pretrained(new, code=False)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in _state_files(checkpoint, new):
            tar.add(file, file.name)
            if file.parent == new:
                file.unlink()
    content = archive.getvalue()
    for number, start in enumerate(range(0, len(content), MAX_FILE)):
        (new / f"state.tar.{number}").write_bytes(content[start : start + MAX_FILE])
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _state_files(checkpoint: Path, folder: Path) -> list[Path]:
    """What `restore` needs of a checkpoint; what is large is written to `folder` in a smaller form."""
    names = "training_weights.safetensors", "chain_state_0.safetensors", "optimizer.pt"
    weights, chain_state, optimizer = (folder / name for name in names)
    save_file(_bfloat16(load_file(checkpoint / weights.name)), weights)
    save_file({"generator": load_file(checkpoint / chain_state.name)["generator"]}, chain_state)
    groups = torch.load(checkpoint / optimizer.name, map_location="cpu", weights_only=True)["param_groups"]
    torch.save({"state": {}, "param_groups": groups}, optimizer)  # without it the scheduler would not be loaded
    kept = [checkpoint / name for name in ("trainer_state.json", "scheduler.pt", "rng_state.pth")]
    grids = sorted(checkpoint.parent.glob("samples-*.png"), key=os.path.getmtime)
    return [weights, chain_state, optimizer, *kept, *grids[-1:], checkpoint.parent / "plan.json"]


def restore(exported: Path, output: Path) -> Path:
    """Make a checkpoint in `output` of an export; its moving average is the weights in training."""
    parts = sorted(exported.glob("state.tar.*"), key=lambda part: int(part.suffix[1:]))
    checkpoint = output / "checkpoint-restored"
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
        tar.extractall(checkpoint, filter="data")
    weights = load_file(checkpoint / "training_weights.safetensors")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    shutil.move(checkpoint / "plan.json", output / "plan.json")
    return checkpoint


def last_checkpoint(output: Path) -> Path | None:
    """The last checkpoint in `output`, if any."""
    last = get_last_checkpoint(output) if output.is_dir() else None
    return Path(last) if last else None


def plan(rates: dict, batch_size: int, minutes: float, chain_share: float) -> dict:
    """
    Fields of a recipe that make its training as long as the time.

    Args:
        rates: `objectives` of [`measure`].
        chain_share: share of the time for the objective that follows the warm-up, where there is one.
    """

    def steps(objective, share):
        return int(60 * minutes * share * rates[objective]["images_per_second"] / batch_size)

    *warmup, objective = rates
    if not warmup:
        return {"max_steps": steps(objective, 1)}
    chain_free_steps = steps("warmup", 1 - chain_share)
    return {"max_steps": chain_free_steps + steps(objective, chain_share), "chain_free_steps": chain_free_steps}


def _bfloat16(state: dict) -> dict:
    return {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument("data", type=Path, help="file that training/pack.py wrote")
    parser.add_argument("--minutes", type=float, default=9, help="the process is over so long after its start")
    parser.add_argument("--output", type=Path, default=Path("runs/full"), help="folder of checkpoints")
    parser.add_argument("--export", type=Path, help="folder of what is brought home; OUTPUT/export if not given")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT, if any")
    parser.add_argument("--restore", type=Path, metavar="EXPORT", help="where OUTPUT has none: go on from an export")
    parser.add_argument("--total-minutes", type=float, help="time the steps first, and make the training so long")
    parser.add_argument("--chain-share", type=float, default=0.2, help="of --total-minutes, after the warm-up")
    parser.add_argument("--checkpoint-minutes", type=float, default=2, help="time between checkpoints")
    parser.add_argument("--throughput", action="store_true", help="time the steps, print JSON, train nothing")
    args = parser.parse_args()
    if not args.data.is_file():
        parser.error(f"no file {args.data}: write it with training/pack.py")
    if args.restore and not (args.restore / "state.tar.0").is_file():
        parser.error(f"{args.restore} is no export: it has no state.tar.0")
    if not (args.resume or args.throughput) and last_checkpoint(args.output):
        parser.error(f"{args.output} holds a run: go on with --resume, or name another --output")
    return args, recipe_of(parser, args)


def main():
    args, recipe = _arguments()
    deadline = psutil.Process().create_time() + 60 * args.minutes
    use_fast_kernels()
    recipe.training |= {"output_dir": str(args.output), **BY_THE_CLOCK}
    processor = JemImageProcessor(**recipe.image_processor)
    splits, values, recipe.dataset["novel"] = unpack(args.data, processor)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = {name: DeviceTensors(split, device) for name, split in splits.items()}
    if args.throughput:
        print(json.dumps(measure(recipe, splits, values), indent=2))
        return

    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(args.output) or (args.restore and restore(args.restore, args.output))
    length = args.output / "plan.json"
    if checkpoint is None:
        fields = {}
        if args.total_minutes:
            speed = measure(recipe, splits, values)
            print(json.dumps(speed), flush=True)
            fields = plan(speed["objectives"], speed["batch_size"], args.total_minutes, args.chain_share)
        length.write_text(json.dumps(fields))
    recipe.training |= json.loads(length.read_text())

    trainer = make_device_trainer(recipe, splits, values, processor)
    bring_home = partial(export, trainer, args.export or args.output / "export")
    clock = Clock(deadline, 60 * args.checkpoint_minutes, bring_home)
    trainer.add_callback(clock)
    trainer.add_callback(HeldOutMatching(trainer))
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    seconds = {"save_seconds": clock.longest, "seconds_left": deadline - time.time()}
    print(json.dumps({"step": trainer.state.global_step} | {name: round(s, 1) for name, s in seconds.items()}))


if __name__ == "__main__":
    main()
