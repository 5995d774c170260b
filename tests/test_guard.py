"""The guard on runs that do diverge."""

import copy
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_trainer import CHAIN, arguments

from jem_hf import JemModel, JemTrainer
from jem_hf.training.guard import DivergenceError, Reading, Snapshot

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from divergence import bars

HOT = dict(objective="joint_cd", muon=False, learning_rate=0.1, guard_steps=5, **CHAIN)


def make(config, tensors, folder, **kwargs):
    torch.manual_seed(0)
    return JemTrainer(model=JemModel(config), args=arguments(folder, **kwargs), train_dataset=tensors)


def alarms(folder):
    return [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]


def everything(trainer):
    """All that a rollback must put back."""
    state = {f"weights.{name}": value for name, value in trainer.model.state_dict().items()}
    state |= {f"average.{name}": value for name, value in trainer.ema.state_dict().items()}
    state |= {f"buffer.{name}": value for name, value in trainer.negatives.state_dict().items()}
    for i, moments in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    return copy.deepcopy(state | {"generator": trainer.generator.get_state()})


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
def test_going_back_restores_every_bit(config, tensors, tmp_path, policy):
    """From a second snapshot to the first, through a buffer that was overwritten more than once."""
    kwargs = dict(objective="joint_cd", buffer_policy=policy, guard_steps=0, max_steps=20, **CHAIN)
    trainer = make(config, tensors, tmp_path, **kwargs)
    states, snapshots = [], []

    class Watch(type(trainer.callback_handler.callbacks[0])):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (5, 12):
                states.append(everything(trainer))
                snapshots.append(Snapshot(trainer))

    trainer.add_callback(Watch())
    trainer.train()
    first, second = snapshots
    assert not same(everything(trainer), states[0])
    first.restore(trainer, [second])
    assert same(everything(trainer), states[0])
    trainer.negatives.sample(torch.zeros(8, 3, 8, 8))  # what is overwritten after that is remembered anew
    first.restore(trainer, [])
    assert same(everything(trainer), states[0])


def test_buffer_made_after_the_snapshot_is_forgotten(config, tensors, tmp_path):
    trainer = make(config, tensors, tmp_path, objective="joint_cd", guard_steps=0, max_steps=1, **CHAIN)
    trainer.create_optimizer_and_scheduler(1)
    snapshot = Snapshot(trainer)
    first = trainer.negatives.sample(torch.zeros(8, 3, 8, 8))
    snapshot.restore(trainer, [])
    assert trainer.negatives.buffer is None
    again = trainer.negatives.sample(torch.zeros(8, 3, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_not_a_number_is_undone(config, tensors, tmp_path):
    """A weight becomes NaN at step 7: the good state of step 0 (the older of 0 and 5) comes back, at half the rate."""
    trainer = make(config, tensors, tmp_path, objective="classifier", guard_steps=5, max_steps=12)

    class Break(type(trainer.callback_handler.callbacks[0])):
        def on_step_begin(self, args, state, control, model, **kwargs):
            if state.global_step == 6:
                next(model.parameters()).data.fill_(math.nan)

    trainer.add_callback(Break())
    trainer.train()
    (alarm,) = alarms(tmp_path)
    assert (alarm["step"], alarm["back_to_step"], alarm["name"], alarm["value"]) == (7, 0, "loss", "nan")
    assert alarm["learning_rate"] == pytest.approx(1e-3 * 0.5 * 5 / 12)  # linear decay: 7 of 12 steps are done
    assert trainer.state.global_step == 12
    assert all(torch.isfinite(value).all() for value in trainer.ema.state_dict().values())
    assert trainer.optimizer.param_groups[0]["lr"] == 0  # the schedule went on to its end


def test_alarms_end_training_with_a_diagnosis(config, tensors, tmp_path):
    trainer = make(config, tensors, tmp_path, guard_energy_gap=1e-6, guard_alarms=2, max_steps=50, **HOT)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.model.label_prior.fit(tensors.labels)
    before |= trainer.model.label_prior.state_dict(prefix="label_prior.")
    with pytest.raises(DivergenceError, match=r"3 alarms \(energy gap 3 times\), the last at step 3 .*guard.jsonl"):
        trainer.train()
    assert len(alarms(tmp_path)) == 3
    assert same(trainer.model.state_dict(), before)
    assert alarms(tmp_path)[-1]["learning_rate"] == pytest.approx(0.1 / 8 * 47 / 50)


def test_saturated_pixels_lower_the_chain_step(config, tensors, tmp_path):
    kwargs = HOT | {"guard_saturated": 1e-6, "chain_step_size": 500.0, "learning_rate": 1e-3}
    trainer = make(config, tensors, tmp_path, max_steps=4, **kwargs)
    trainer.train()
    first = alarms(tmp_path)[0]
    assert first["name"] == "share of saturated pixels"
    assert first["chain_step_size"] == 250.0
    assert trainer.args.chain()["step_size"] == 500.0 / 2 ** len(alarms(tmp_path))


def test_chains_that_stand_still_are_dead(config, tensors, tmp_path):
    kwargs = HOT | {"guard_motion": 3.0, "learning_rate": 1e-3}  # no pixel can go so far
    trainer = make(config, tensors, tmp_path, max_steps=30, **kwargs)
    trainer.train()
    (alarm,) = alarms(tmp_path)
    assert (alarm["name"], alarm["step"]) == ("steps with dead chains", 21)


def readings(trainer, step=1, **values):
    trainer.readings = {name: torch.tensor(value) for name, value in values.items()}
    return {reading.name: reading for reading in trainer.guard._readings(step)}


def test_limits(config, tensors, tmp_path):
    trainer = make(config, tensors, tmp_path, guard_gradient=10.0, chain_free_steps=40)
    for norm in range(1, 21):
        found = readings(trainer, loss=1.0, gradient_norm=float(norm))
        assert found["gradient norm"].limit == sys.float_info.max  # too few to tell
    found = readings(trainer, loss=1.9, gradient_norm=200.0)  # as where training begins to learn
    assert found["gradient norm"] == Reading("gradient norm", 200.0, sys.float_info.max, 10.5)
    found = readings(trainer, loss=2.1, gradient_norm=200.0)
    assert found["gradient norm"] == Reading("gradient norm", 200.0, 110.0, 11.0)
    for _ in range(100):  # a loss near zero: one hard batch is a hundred others, and no harm
        readings(trainer, loss=1e-3, gradient_norm=1e-3)
    assert readings(trainer, loss=0.1, gradient_norm=0.5)["gradient norm"].limit == trainer.args.max_grad_norm == 1.0
    trainer.args.max_grad_norm = None  # nothing is clipped
    assert readings(trainer, loss=0.1, gradient_norm=0.5)["gradient norm"].limit == pytest.approx(0.01)
    found = readings(trainer, step=41, loss=1.0, gradient_norm=200.0)  # chains begin
    assert found["gradient norm"].limit == sys.float_info.max
    chains = dict(loss=1.0, gradient_norm=1.0, motion=1.0, difference=1.0)
    low = readings(trainer, energy_gap=-7.0, saturated=0.1, **chains)["energy gap"]
    assert (low.value, low.limit, low.good, low.lowered) == (7.0, 100.0, 10.0, "learning_rate")
    assert readings(trainer, energy_gap=1.0, saturated=0.6, **chains)["energy gap"].lowered == "chain_step_size"


def test_a_restless_state_is_no_good_state(config, tensors, tmp_path):
    """Every gradient norm is far from calm: one old snapshot is kept, and renewed only when it is ten times as old."""
    trainer = make(config, tensors, tmp_path, guard_steps=2, max_steps=23)
    trainer.train()
    assert [snapshot.step for snapshot in trainer.guard.snapshots] == [20, 22]  # all is calm

    class Restless(type(trainer.guard)):
        def _readings(self, step):
            return [Reading("energy gap", 5.0, 10.0, 1.0)]

    trainer = make(config, tensors, tmp_path, guard_steps=2, max_steps=23)
    trainer.guard.__class__ = Restless
    trainer.train()
    assert [snapshot.step for snapshot in trainer.guard.snapshots] == [0, 20]


@pytest.mark.slow
def test_resume_is_exact_with_alarms_before_and_after(tmp_path):
    """Killed between two alarms: the same good states, limits and alarms as without."""
    from jem_hf import JemConfig

    data = bars(128, 0)
    config = JemConfig(
        attributes=data.attributes, image_size=8, num_channels=1, backbone_kwargs={"width": 4, "hidden_size": 8}
    )
    kwargs = HOT | dict(max_steps=60, chain_step_size=2.0, save_strategy="steps", save_steps=25, guard_energy_gap=5.0)
    whole = make(config, data, tmp_path / "whole", **kwargs)
    whole.train()
    steps = [alarm["step"] for alarm in alarms(tmp_path / "whole")]
    assert min(steps) < 25 < max(steps)
    resumed = make(config, data, tmp_path / "resumed", **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-25"))
    assert same(everything(whole), everything(resumed))
    after = [alarm for alarm in alarms(tmp_path / "whole") if alarm["step"] > 25]
    assert alarms(tmp_path / "resumed") == after
    assert resumed.guard.state_dict() == whole.guard.state_dict()
    assert resumed.args.chain_step_size == whole.args.chain_step_size


def test_loading_its_own_state_changes_nothing(config, tensors, tmp_path):
    trainer = make(config, tensors, tmp_path, guard_saturated=1e-6, max_steps=3, **HOT | {"chain_step_size": 500.0})
    trainer.train()
    before = trainer.guard.state_dict(), trainer.args.chain_step_size
    assert before[1] < 500.0
    for _ in range(2):
        trainer.guard.load_state_dict(json.loads(json.dumps(trainer.guard.state_dict())))
        assert (trainer.guard.state_dict(), trainer.args.chain_step_size) == before


def test_command_ends_with_one_line(tmp_path):
    from typer.testing import CliRunner

    from jem_hf.cli import app

    training = dict(
        objective="joint_cd", chain_steps=2, buffer_size=8, max_steps=5, guard_energy_gap=0.0, guard_alarms=1,
        per_device_train_batch_size=8, output_dir=str(tmp_path / "run"), use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    dataset = dict(name_or_path="avatars", num_train=16, num_test=8, num_novel=8, cache_dir=str(tmp_path / "cache"))
    recipe = dict(
        dataset=dataset,
        image_processor={"size": 8, "crop_size": 8},
        model={"backbone_kwargs": {"width": 4, "hidden_size": 8}},
        training=training,
    )
    (tmp_path / "hot.yaml").write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(app, ["train", str(tmp_path / "hot.yaml")])
    assert result.exit_code == 2
    assert "jem-hf: training diverges: 2 alarms (energy gap 2 times)" in result.output
    assert "Traceback" not in result.output
