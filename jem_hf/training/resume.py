"""A `Trainer` that may be killed at any moment, and goes on from its last checkpoint as if it had not been."""

import contextlib
import json
import signal
import threading
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from .checkpoints import checkpoint_folder, is_partial, remove_partial_folders, replaced_files, rotate, whole_folder

PROGRESS_NAME = "progress.json"


class ResumableTrainer(Trainer):
    """
    Checkpoints appear whole or not at all, SIGTERM is answered by one, and a stream is resumed at its place.

    After SIGTERM the step is finished, a checkpoint is saved and `train` raises `SystemExit(143)`; a second SIGTERM
    kills. `max_minutes` of the arguments ends training in the same way, with an evaluation and without the exception.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.terminated = _SignalFlag(signal.SIGTERM)
        self._pass = self._batches_of_pass = 0
        self.add_callback(_StopCallback(self))

    def train(self, resume_from_checkpoint=None, **kwargs):
        if self.args.should_save:
            remove_partial_folders(self.args.output_dir)
        with self.terminated:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.terminated.is_set:
            raise SystemExit(128 + signal.SIGTERM)
        return result

    def any_process(self, *conditions: bool) -> list[bool]:
        """Which of them hold in any process: what stops one must stop all of them at the same step."""
        if self.args.world_size == 1:
            return list(conditions)
        found = torch.tensor(conditions, dtype=torch.float32, device=self.args.device)
        return (self.accelerator.reduce(found, "sum") > 0).tolist()

    # Saving

    def progress(self) -> dict:
        """What a checkpoint holds beside tensors, as JSON: the pass over the data, and its batches trained on."""
        return {"pass": self._pass, "batches": self._batches_of_pass}

    def _save_checkpoint(self, model, trial):
        state, is_writer = self.state, self.args.should_save
        run_folder = self._get_output_dir(trial)
        folder = checkpoint_folder(run_folder, state.global_step)
        self.store_flos()
        if state.best_global_step:
            best = checkpoint_folder(run_folder, state.best_global_step)
            if best == folder or best.is_dir():
                state.best_model_checkpoint = str(best)
        with whole_folder(folder, is_writer, self.accelerator.wait_for_everyone) as partial:
            self.save_model(str(partial), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(partial))
                self._save_scaler(str(partial))
                self._save_rng_state(str(partial))
            if is_writer:
                (partial / PROGRESS_NAME).write_text(json.dumps(self.progress()))
                self._note_callback_states()
                state.save_to_json(str(partial / TRAINER_STATE_NAME))
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if is_writer:
            rotate(run_folder, self.args.save_total_limit, state.best_model_checkpoint)

    def _note_callback_states(self):
        holders = [*self.callback_handler.callbacks, self.control]
        holders = [holder for holder in holders if isinstance(holder, ExportableState)]
        for name in {type(holder).__name__ for holder in holders}:
            states = [holder.state() for holder in holders if type(holder).__name__ == name]
            self.state.stateful_callbacks[name] = states if len(states) > 1 else states[0]

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        is_final = self.args.should_save and not is_partial(folder)
        with replaced_files(folder) if is_final else contextlib.nullcontext(folder) as partial:
            super()._save(str(partial), state_dict)

    # Going on

    def load_progress(self, progress: dict) -> None:
        """Take up what `progress` gave."""

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        place = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        progress_file = Path(checkpoint or "", PROGRESS_NAME)
        if checkpoint is not None and progress_file.is_file():
            progress = json.loads(progress_file.read_text())
            self.load_progress(progress)
            if not hasattr(self.train_dataset, "__len__"):  # `Trainer` takes all that ever comes for one pass
                place = progress["pass"], progress["batches"]
        self._pass, self._batches_of_pass = place
        args = self.args
        if (
            place[1]
            and hasattr(self.train_dataset, "start_at")
            and args.world_size == 1
            and not args.dataloader_num_workers
        ):
            self.train_dataset.start_at(place[1] * args.train_batch_size)
            place = place[0], 0
        return place

    def _run_epoch(self, *, epoch, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed from the last checkpoint of all
            self.control.should_training_stop = True
            return
        if epoch != self._pass:
            self._pass, self._batches_of_pass = epoch, 0
        super()._run_epoch(epoch=epoch, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._batches_of_pass += 1
        return loss


class _StopCallback(TrainerCallback):
    """Ends training after a step, on SIGTERM or when the time is over."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        is_late = bool(args.max_minutes) and time.time() - self.start > 60 * args.max_minutes
        terminated, is_late = self.trainer.any_process(self.trainer.terminated.is_set, is_late)
        if terminated or is_late:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = not terminated  # whoever sends SIGTERM does not wait long
            self.trainer.terminated.is_set = terminated
        return control


class _SignalFlag:
    """A context in which a signal is noted; a second one has its usual effect."""

    def __init__(self, number: int):
        self.number, self.is_set = number, False

    def __enter__(self):
        self.is_set = False
        self.is_held = threading.current_thread() is threading.main_thread()  # only it may handle signals
        if self.is_held:
            self.previous = signal.signal(self.number, self._note)

    def __exit__(self, *error):
        if self.is_held:
            signal.signal(self.number, self.previous)

    def _note(self, number, frame):
        self.is_set = True
        signal.signal(number, self.previous)
