"""A `Trainer` that may be killed at any moment, and goes on from its last checkpoint as if it had not been."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput
from transformers.utils import CONFIG_NAME, logging

from .checkpoints import (
    PARTIAL,
    RUN_STATE_NAME,
    checkpoint_folder,
    list_checkpoints,
    new_run_id,
    read_run_state,
    remove_partial_folders,
    replaced_files,
    rotate,
    run_of,
    whole_folder,
)
from .devices import of_first_process

logger = logging.get_logger(__name__)


@contextlib.contextmanager
def failure_is_a_warning(what: str) -> Iterator[None]:
    """What is made of a model that is safe on the disk may fail without harm to the training."""
    try:
        yield
    except Exception as error:
        logger.warning(f"{what} failed, and training goes on: {type(error).__name__}: {error}")


class ResumableTrainer(Trainer):
    """
    Checkpoints appear whole or not at all, SIGTERM is answered by one, and a stream is resumed at its place.

    After SIGTERM the step is finished, a checkpoint is saved and `train` raises `SystemExit(143)`; a second SIGTERM
    kills. `max_minutes` of the arguments ends training in the same way, with an evaluation and without the exception.

    A model is on the disk before anything else is made of it: evaluation, card and upload come after, and their
    failure is a warning. Checkpoints of other runs in `output_dir` are left alone.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.terminated = False
        self.run_id = self._written = None
        self._pass = self._batches_of_pass = 0
        self.add_callback(_StopCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """As `Trainer`. Raises `ValueError` for a checkpoint of another run, see `identity`, or there is none."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.newest_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} has no checkpoint to go on from")
        if resume_from_checkpoint:
            self.check_fits(resume_from_checkpoint)
        if self.args.should_save:
            remove_partial_folders(self.args.output_dir)
        self.run_id = of_first_process(new_run_id())
        self._written = None
        with self._noting_sigterm():
            result = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        if self.terminated:
            raise SystemExit(128 + signal.SIGTERM)
        return result

    @contextlib.contextmanager
    def _noting_sigterm(self):
        def note(number, frame):
            self.terminated = True
            signal.signal(number, previous)  # a second one has its usual effect

        self.terminated = False
        if threading.current_thread() is not threading.main_thread():  # only it may handle signals
            yield
            return
        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    # Which checkpoints are this run's

    def identity(self) -> dict:
        """What a checkpoint must have in common with this run, as JSON."""
        return {}

    def newest_checkpoint(self) -> str | None:
        """The newest of `output_dir` that this run can go on from. Raises `ValueError` where all are of other runs."""
        checkpoints = list_checkpoints(self.args.output_dir)
        for checkpoint in reversed(checkpoints):
            if not self._differences(checkpoint):
                return str(checkpoint)
        if checkpoints:
            self.check_fits(checkpoints[-1])
        return None

    def _differences(self, checkpoint) -> list[str]:
        config = Path(checkpoint, CONFIG_NAME)  # all that there is of an earlier version
        saved = json.loads(config.read_text()) if config.is_file() else {}
        saved |= read_run_state(checkpoint).get("identity", {})
        own = json.loads(json.dumps(self.identity()))
        return [name for name, value in own.items() if saved.get(name, value) != value]

    def check_fits(self, checkpoint: str | Path) -> None:
        """Raise `ValueError` for a folder that another run has written."""
        if different := self._differences(checkpoint):
            raise ValueError(
                f"{checkpoint} is a checkpoint of another run: {', '.join(different)} differ. Give another "
                "output_dir, start anew without --resume (it will be left alone), or go on from its weights with "
                f"--from_pretrained {checkpoint}"
            )

    # Saving

    def run_state(self) -> dict:
        """What a checkpoint holds beside tensors, as JSON: its run, the pass over the data, and batches seen of it."""
        place = {"pass": self._pass, "batches": self._batches_of_pass}
        return {"run": self.run_id, "identity": self.identity(), **place}

    def _save_checkpoint(self, model, trial):
        folder, state = self._write_checkpoint(trial), self.state
        own = [checkpoint for checkpoint in list_checkpoints(folder.parent) if run_of(checkpoint) == self.run_id]
        best = checkpoint_folder(folder.parent, state.best_global_step or 0)
        if best in own:
            state.best_model_checkpoint = str(best)
        if self.args.should_save:
            with replaced_files(folder) as partial:  # with what an evaluation has added since
                state.save_to_json(str(partial / TRAINER_STATE_NAME))
            self.document(folder)
        if self.args.push_to_hub:
            with failure_is_a_warning("the upload"):
                self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            rotate(own, self.args.save_total_limit, state.best_model_checkpoint)

    def _write_checkpoint(self, trial) -> Path:
        """The checkpoint of this step, written if it is not yet."""
        folder = checkpoint_folder(self._get_output_dir(trial), self.state.global_step)
        if self._written == folder:
            return folder
        is_writer = self.args.should_save
        self.store_flos()
        if is_writer and folder.is_dir() and run_of(folder) != self.run_id:
            aside = folder.rename(f"{folder}.{run_of(folder) or new_run_id()}")
            logger.warning(f"{folder} was written by another run: it is {aside.name} now")
        with whole_folder(folder, is_writer, self.accelerator.wait_for_everyone) as partial:
            self.save_model(str(partial), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(partial))
                self._save_scaler(str(partial))
                self._save_rng_state(str(partial))
            if is_writer:
                (partial / RUN_STATE_NAME).write_text(json.dumps(self.run_state()))
                holders = [*self.callback_handler.callbacks, self.control]
                holders = [holder for holder in holders if isinstance(holder, ExportableState)]
                self.state.stateful_callbacks = TrainerState(stateful_callbacks=holders).stateful_callbacks
                self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        self._written = folder
        return folder

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        if folder.suffix == PARTIAL or not self.args.should_save:
            return super()._save(str(folder), state_dict)
        with replaced_files(folder) as partial:
            super()._save(str(partial), state_dict)
        self.document(folder)

    def document(self, folder: Path) -> None:
        """Called when a model has been written to a folder, to put beside it what is said of it."""

    def _evaluate(self, trial, *args, **kwargs):
        if self.control.should_save:
            self._write_checkpoint(trial)
        metrics, device = {}, self.args.device
        is_alone = self.args.world_size == 1  # of several processes one must not go on without the others
        survives = failure_is_a_warning("the evaluation") if is_alone else contextlib.nullcontext()
        # a run that goes on from this checkpoint does not repeat the evaluation, which must use no random numbers
        with torch.random.fork_rng([device] if device.type == "cuda" else []), survives:
            metrics = super()._evaluate(trial, *args, **kwargs)
        self.control.should_evaluate = False
        return metrics

    def _determine_best_metric(self, metrics, trial):
        name = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if metrics and name != "eval_" and name not in metrics:
            raise ValueError(f"metric_for_best_model {name!r} is none of the metrics {', '.join(metrics)}")
        value = metrics.get(name)
        if value is None or math.isnan(value):  # not defined on these images: not the best
            return False
        return super()._determine_best_metric(metrics, trial)

    def _finalize_training(self, *args):
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # `Trainer` deletes those of other runs
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    # Going on

    def load_run_state(self, state: dict) -> None:
        """Take up what `run_state` gave."""
        self.run_id = state.get("run", "")

    def _init_training_state(self, max_steps, steps_per_epoch, num_epochs, checkpoint, trial):
        place = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, checkpoint, trial)
        if checkpoint is not None and (state := read_run_state(checkpoint)):
            self.load_run_state(state)
            if not hasattr(self.train_dataset, "__len__"):  # `Trainer` takes all that ever comes for one pass
                place = state["pass"], state["batches"]
        self._pass, self._batches_of_pass = place
        can_skip = hasattr(self.train_dataset, "start_at")
        if place[1] and can_skip and self.args.world_size == 1 and not self.args.dataloader_num_workers:
            self.train_dataset.start_at(place[1] * self.args.train_batch_size)
            place = place[0], 0
        return place

    def _run_epoch(self, *, epoch, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed from the last checkpoint of all
            self.control.should_training_stop = True
            return
        if epoch != self._pass:
            self._pass, self._batches_of_pass = epoch, 0
        super()._run_epoch(epoch=epoch, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._batches_of_pass += 1
        return loss


class _StopCallback(TrainerCallback):
    """Ends training after a step, on SIGTERM or when the time is over."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_train_begin(self, *args, **kwargs) -> None:
        self.start = time.time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        trainer = self.trainer
        is_late = bool(args.max_minutes) and time.time() - self.start > 60 * args.max_minutes
        reasons = [trainer.terminated, is_late]
        if args.world_size > 1:  # what stops one process must stop all of them at the same step
            reasons = torch.tensor(reasons, dtype=torch.float32, device=args.device)
            reasons = (trainer.accelerator.reduce(reasons, "sum") > 0).tolist()
        terminated, is_late = reasons
        if terminated or is_late:
            control.should_training_stop = control.should_save = True
            # whoever sends SIGTERM does not wait long
            control.should_evaluate = trainer.eval_dataset is not None and not terminated
            trainer.terminated = terminated
