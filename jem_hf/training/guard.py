"""A guard over training: when it diverges, back to the last good state, and on with smaller steps."""

import copy
import json
import math
import sys
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)
HISTORY = 100  # steps over which the medians of gradient norm and loss are taken
MIN_HISTORY = 20  # steps before which it is not
PATIENCE = 20  # steps that chains may be dead
WATCHED = ("energy_gap", "saturated", "motion", "difference")  # of what an objective logs
MAX_AGE = 10  # a snapshot is at most so many times `guard_steps` old, whether the state is good or not


class DivergenceError(ValueError):
    """Training diverged as often as the guard bears."""


@dataclass
class Reading:
    """What is watched: an alarm beyond `limit`, a good state up to `good`; `lowered` is made smaller at an alarm."""

    name: str
    value: float
    limit: float
    good: float
    lowered: str = "learning_rate"

    def __str__(self):
        return f"{self.name} {self.value:.4g}, limit {self.limit:.4g}"


class Snapshot:
    """All that training changes, in memory; of the buffer only what is overwritten from now on."""

    def __init__(self, trainer: Trainer):
        self.step = trainer.state.global_step
        self.weights, self.average = copy.deepcopy((trainer.model.state_dict(), trainer.ema.state_dict()))
        self.optimizer = copy.deepcopy(trainer.optimizer.state_dict()["state"])
        self.generator = trainer.generator.get_state()
        self.buffer, self.overwritten = trainer.negatives and trainer.negatives.buffer, []
        if self.buffer is not None:
            self.buffer.overwritten = self.overwritten

    def restore(self, trainer: Trainer, later: list["Snapshot"]) -> None:
        """Put all back, the `later` snapshots being those taken since."""
        trainer.model.load_state_dict(self.weights)
        trainer.ema.load_state_dict(self.average)
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": copy.deepcopy(self.optimizer)})
        trainer.generator.set_state(self.generator)
        if trainer.negatives:
            trainer.negatives.buffer = self.buffer
        if self.buffer is not None:
            for snapshot in [*reversed(later), self]:
                self.buffer.undo(snapshot.overwritten)
            self.buffer.overwritten = self.overwritten
        self.overwritten.clear()


class Guard(TrainerCallback):
    """
    Watches every step of a [`JemTrainer`] and goes back to a good state when training diverges.

    | alarm | when | lowered |
    |---|---|---|
    | loss | NaN or infinite, as for all that follow | learning rate |
    | gradient norm | above `guard_gradient` times its median over the last 100 steps and above `max_grad_norm`, the \
loss being above twice its own: gradients also grow where training begins to learn | learning rate |
    | saturated pixels | more than the share `guard_saturated` of the samples' pixels is black or white | chain step |
    | energy gap | E(samples) - E(data) beyond `guard_energy_gap` nats, either way | learning rate; chain step where \
saturated pixels are halfway to their alarm |
    | dead chains | samples moved, or differ, by less than `guard_motion` a pixel, more than 20 steps running \
| learning rate |

    Every `guard_steps` steps it keeps a snapshot of weights, moving average, optimiser, generator and buffer, if the
    state is good: energy gap and gradient norm within a tenth of their limits, saturated pixels within half. An alarm
    restores the older of the last two, multiplies the learning rate or `chain_step_size` by `guard_factor`, adds a
    line to `guard.jsonl` in `output_dir`, and training goes on; steps are not counted back. The alarm after the first
    `guard_alarms` raises [`DivergenceError`], the good state restored.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.first_chain_step_size = trainer, trainer.args.chain_step_size
        self.snapshots = deque(maxlen=2)
        self.load_state_dict(
            {"alarms": [], "chain_step_factor": 1.0, "gradient_norms": [], "losses": [], "num_dead": 0}
        )

    def state_dict(self) -> dict:
        """What must outlive the process, as JSON."""
        return {
            "alarms": self.alarms,
            "chain_step_factor": self.chain_step_factor,
            "gradient_norms": list(self.gradient_norms),
            "losses": list(self.losses),
            "num_dead": self.num_dead,
        }

    def load_state_dict(self, state: dict) -> None:
        self.alarms, self.num_dead = state["alarms"], state["num_dead"]
        self.gradient_norms = deque(state["gradient_norms"], maxlen=HISTORY)
        self.losses = deque(state["losses"], maxlen=HISTORY)
        self._set_chain_step(state["chain_step_factor"])

    def on_train_begin(self, *args, **kwargs) -> None:
        self.snapshots = deque([Snapshot(self.trainer)], maxlen=2)  # all that a resumed run can go back to

    on_save = on_train_begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        step, readings = state.global_step, self._readings(state.global_step)
        alarm = next((reading for reading in readings if not reading.value <= reading.limit), None)
        if alarm is not None:
            self._roll_back(step, alarm)
        elif step % args.guard_steps == 0:
            is_old = step - self.snapshots[-1].step >= MAX_AGE * args.guard_steps  # bounds what a buffer must remember
            if is_old or all(reading.value <= reading.good for reading in readings):
                self.snapshots.append(Snapshot(self.trainer))

    def _readings(self, step: int) -> list[Reading]:
        """What the trainer noted in this step, as means over the processes, beside the limits."""
        args, noted = self.trainer.args, self.trainer.readings
        values = torch.stack([value.detach().float() for value in noted.values()])
        values = dict(zip(noted, self.trainer.accelerator.reduce(values, "mean").tolist()))
        if step == args.chain_free_steps + 1:  # another loss, other gradients
            self._forget_history()
        loss, norm, largest = abs(values["loss"]), values["gradient_norm"], sys.float_info.max
        high = limit = largest
        if len(self.gradient_norms) >= MIN_HISTORY:
            high = min(args.guard_gradient * median(self.gradient_norms), largest)
            if loss > 2 * median(self.losses):
                limit = max(high, args.max_grad_norm or 0.0)
        self.gradient_norms.append(norm)
        self.losses.append(loss)
        readings = [Reading("loss", loss, largest, largest), Reading("gradient norm", norm, limit, high / 10)]
        if "energy_gap" not in values:
            return readings
        saturated, limit = values["saturated"], args.guard_saturated
        readings.append(Reading("share of saturated pixels", saturated, limit, limit / 2, "chain_step_size"))
        culprit = "chain_step_size" if saturated > limit / 2 else "learning_rate"
        gap, limit = abs(values["energy_gap"]), args.guard_energy_gap
        readings.append(Reading("energy gap", gap, limit, limit / 10, culprit))
        is_dead = min(values["motion"], values["difference"]) < args.guard_motion
        self.num_dead = self.num_dead + 1 if is_dead else 0
        return [*readings, Reading("steps with dead chains", self.num_dead, PATIENCE, 0)]

    def _forget_history(self):
        self.gradient_norms.clear()
        self.losses.clear()

    def _roll_back(self, step: int, alarm: Reading) -> None:
        trainer, factor = self.trainer, self.trainer.args.guard_factor
        good, *later = self.snapshots
        good.restore(trainer, later)
        self.snapshots = deque([good], maxlen=2)
        self._forget_history()
        self.num_dead = 0
        trainer.forget_log()
        self.alarms.append(alarm.name)
        if alarm.lowered == "chain_step_size":
            self._set_chain_step(self.chain_step_factor * factor)
        else:
            for group in trainer.optimizer.param_groups:
                group["lr"] *= factor
            if hasattr(trainer.lr_scheduler, "base_lrs"):
                trainer.lr_scheduler.base_lrs = [factor * rate for rate in trainer.lr_scheduler.base_lrs]
        now = {
            "learning_rate": trainer.optimizer.param_groups[0]["lr"],
            "chain_step_size": trainer.args.chain_step_size,
        }
        path = Path(trainer.args.output_dir, "guard.jsonl")
        if trainer.is_world_process_zero():
            logger.warning(f"training diverges at step {step}: {alarm}; back to step {good.step}, {now}")
            value = alarm.value if math.isfinite(alarm.value) else str(alarm.value)
            line = {"step": step, **asdict(alarm), "value": value, "back_to_step": good.step, **now}
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if len(self.alarms) > trainer.args.guard_alarms:
            counts = ", ".join(f"{name} {count} times" for name, count in Counter(self.alarms).most_common())
            raise DivergenceError(
                f"training diverges: {len(self.alarms)} alarms ({counts}), the last at step {step} ({alarm}), though "
                f"the guard came down to {now}. Start with a smaller {alarm.lowered}, more chain_steps or an "
                f"energy_penalty; {path} has every alarm"
            )

    def _set_chain_step(self, factor):
        self.chain_step_factor = factor
        self.trainer.args.chain_step_size = factor * self.first_chain_step_size
