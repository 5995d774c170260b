"""Runs that are killed, and what is left of their checkpoints."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer import CHAIN, arguments, train
from transformers.trainer_utils import get_last_checkpoint

from jem_hf import AttributeTensors, JemConfig, JemImageProcessor, JemModel, JemTrainer
from jem_hf.data.tensors import AttributeStream
from jem_hf.training.checkpoints import (
    list_checkpoints,
    remove_partial_folders,
    replaced_files,
    rotate,
    whole_folder,
)

TRAINING = Path(__file__).parents[1] / "training"
sys.path.insert(0, str(TRAINING))
import faults  # noqa: E402

EVERY_KIND = ("SIGKILL", "SIGTERM", "full disk")


@pytest.mark.slow
def test_killed_four_times_it_ends_in_the_same_bits(tmp_path):
    result = faults.run(tmp_path, num_faults=4, kinds=EVERY_KIND, num_steps=30, seed=3)
    assert [fault["kind"] for fault in result["faults"]].count("SIGKILL") > 0
    assert all(fault["exit_code"] != 0 for fault in result["faults"])
    assert result["num_tensors"] > 50
    assert result["different"] == []


def test_full_disk_ends_the_run_and_leaves_no_half_checkpoint(tmp_path):
    fault = faults.launch(tmp_path, 30, "full disk")
    assert fault["exit_code"] == 1
    assert not fault["while_writing"]
    assert get_last_checkpoint(tmp_path) is None
    faults.launch(tmp_path, 30, None)
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-30")


DISK = f"""
import os, sys
from pathlib import Path

sys.path.insert(0, {str(TRAINING)!r})
import faults

folder = Path(sys.argv[1])
trainer = faults.make_trainer(folder, 30)
trainer.args.save_total_limit = None
trainer.train()
"""


@pytest.mark.slow
def test_full_file_system(tmp_path):
    """A file system of 1 MB, all checkpoints kept: it is full at some step, and what was complete is still there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    code = tmp_path / "train.py"
    code.write_text(DISK)
    script = f"mount -t tmpfs -o size=1m tmpfs {disk} && {sys.executable} {code} {disk} ; ls -A {disk}"
    result = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip("no right to mount a file system")
    assert "OSError" in result.stderr
    assert "cannot be written, on a disk with 0 MiB left" in result.stderr
    assert "go on from the last checkpoint with --resume" in result.stderr
    names = result.stdout.split()
    assert "checkpoint-7" in names
    assert not [name for name in names if "partial" in name]


def test_a_finished_run_does_not_go_on(config, tensors, tmp_path):
    """48 rows are 6 batches: the last step, 8, lies in the middle of a pass."""
    kwargs = dict(objective="classifier", max_steps=8, save_strategy="steps", save_steps=8)
    whole = train(config, tensors, tmp_path, **kwargs)
    again = train(config, tensors, tmp_path, resume=str(tmp_path / "checkpoint-8"), **kwargs)
    assert again.state.global_step == 8
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_is_unpickled(config, tensors, tmp_path):
    kwargs = dict(objective="joint_cd", max_steps=6, save_strategy="steps", save_steps=3, **CHAIN)
    train(config, tensors, tmp_path, **kwargs)
    checkpoint, crater = tmp_path / "checkpoint-3", tmp_path / "crater"
    bomb = pickle.dumps(Bomb(str(crater)))
    for name in ("training_args.bin", "pytorch_model.bin"):
        (checkpoint / name).write_bytes(bomb)
    resumed = train(config, tensors, tmp_path, resume=str(checkpoint), **kwargs)
    assert resumed.state.global_step == 6
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(bomb)
        with pytest.raises(pickle.UnpicklingError, match="weights_only"):
            train(config, tensors, tmp_path, resume=str(checkpoint), **kwargs)
        (checkpoint / name).write_bytes(whole)
    assert not crater.exists()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("step", [4, 9])
def test_resume_inside_a_stream(config, tmp_path, num_workers, step):
    """40 rows are 5 batches: step 4 lies in the first pass, step 9 in the second."""
    import datasets

    rows = {name: [i % 2 == 0 for i in range(40)] for name in ("Smiling", "Hair", "Hat")}
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
    features = datasets.Features({"image": datasets.Image(), **{name: datasets.Value("bool") for name in rows}})
    data = datasets.Dataset.from_dict({"image": list(pixels), **rows}, features=features)
    processor = JemImageProcessor(size=8, crop_size=8)

    def trained(folder, resume=None):
        stream = AttributeStream(data.to_iterable_dataset(), processor, list(rows), shuffle_buffer=16)
        torch.manual_seed(0)
        args = arguments(
            folder, max_steps=12, save_strategy="steps", save_steps=step, dataloader_num_workers=num_workers
        )
        trainer = JemTrainer(model=JemModel(config), args=args, train_dataset=stream)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = trained(tmp_path / "whole")
    resumed = trained(tmp_path / "resumed", resume=str(tmp_path / "whole" / f"checkpoint-{step}"))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


# Other runs in the same folder


def others(tensors, seed):
    labels = torch.randint(0, 2, tensors.labels.shape, generator=torch.Generator().manual_seed(seed))
    return AttributeTensors(tensors.images, labels, tensors.attributes)


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_checkpoints_of_another_run_are_left_alone(config, tensors, tmp_path):
    """Not deleted for `save_total_limit`, not written over, not loaded at the end, not gone on from."""
    kwargs = dict(objective="classifier", save_strategy="steps", save_total_limit=1)
    train(config, tensors, tmp_path, max_steps=6, save_steps=6, **kwargs)
    first = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-6").iterdir()}
    second = others(tensors, 1)
    trainer = train(config, second, tmp_path, max_steps=4, save_steps=2, **kwargs)
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    assert trainer.newest_checkpoint() == str(tmp_path / "checkpoint-4")  # of the run that began last
    best = dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    train(config, second, tmp_path, True, max_steps=8, save_steps=2, **kwargs, **best)
    (aside,) = tmp_path.glob("checkpoint-6.*")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == first
    assert {"checkpoint-8", aside.name} <= set(checkpoints(tmp_path))


def test_a_checkpoint_of_another_run_is_refused_by_name(config, tensors, tmp_path):
    kwargs = dict(objective="classifier", max_steps=2, save_strategy="steps", save_steps=2)
    train(config, tensors, tmp_path, **kwargs)
    checkpoint = str(tmp_path / "checkpoint-2")
    renamed = copy.deepcopy(config)
    renamed.attributes = ["Beard", "Hair", "Hat"]
    wider = JemConfig(attributes=["Smiling", "Hair", "Hat"], attribute_values=config.attribute_values, image_size=8)
    for other, data, difference, more in (
        (renamed, tensors, "attributes", {}),
        (wider, tensors, "backbone_kwargs", {}),
        (config, others(tensors, 1), "labels of the training data", {}),
        (config, tensors, "objective", {"objective": "warmup"}),
    ):
        trainer = JemTrainer(JemModel(other), arguments(tmp_path, **kwargs | more), train_dataset=data)
        for resume in (True, checkpoint):
            with pytest.raises(ValueError, match=rf"checkpoint-2 is .*another run: .*{difference}.* output_dir"):
                trainer.train(resume_from_checkpoint=resume)
    (tmp_path / "checkpoint-2" / "progress.json").unlink()  # as an earlier version wrote it
    with pytest.raises(ValueError, match="another run: attributes differ"):
        JemTrainer(JemModel(renamed), arguments(tmp_path, **kwargs), train_dataset=tensors).newest_checkpoint()
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    with pytest.raises(ValueError, match="has no checkpoint to go on from"):
        train(config, tensors, tmp_path / "empty", resume=True, **kwargs)


def test_a_checkpoint_of_an_earlier_version_goes_on(config, tensors, tmp_path):
    """It has labels in its buffer, the number of averages, and knows no run."""
    kwargs = dict(objective="joint_cd", save_strategy="steps", save_steps=3, **CHAIN)
    whole = train(config, tensors, tmp_path, max_steps=6, **kwargs)
    checkpoint = tmp_path / "checkpoint-3"
    for name, extra in (("chain_state_0", "labels"), ("training_weights", "num_averaged")):
        path = checkpoint / f"{name}.safetensors"
        save_file(load_file(path) | {extra: torch.zeros(64)}, path)
    state = json.loads((checkpoint / "progress.json").read_text())
    old = {name: state[name] for name in ("pass", "batches", "guard")}
    (checkpoint / "progress.json").write_text(json.dumps(old))
    resumed = train(config, tensors, tmp_path, resume=str(checkpoint), max_steps=6, **kwargs)
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name


# Folders


def test_whole_folder_appears_in_one_step(tmp_path):
    folder = tmp_path / "checkpoint-4"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("new")
        assert get_last_checkpoint(tmp_path) is None
    assert get_last_checkpoint(tmp_path) == str(folder)
    with whole_folder(folder) as partial:
        (partial / "b").write_text("newer")
        assert (folder / "a").read_text() == "new"
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    "error, raised", [(OSError("No space left"), OSError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_failed_folder_vanishes_and_the_old_one_stays(tmp_path, error, raised):
    folder = tmp_path / "checkpoint-4"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(raised), whole_folder(folder) as partial:
        (partial / "a").write_text("half")
        raise error
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_replaced_files_are_replaced_all_or_none(tmp_path):
    (tmp_path / "model").write_text("old")
    (tmp_path / "other").write_text("stays")
    with pytest.raises(OSError, match="--resume"), replaced_files(tmp_path) as partial:
        (partial / "model").write_text("half")
        raise OSError("No space left")
    assert (tmp_path / "model").read_text() == "old"
    with replaced_files(tmp_path) as partial:
        (partial / "model").write_text("new")
        assert (tmp_path / "model").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model": "new", "other": "stays"}


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(list_checkpoints(tmp_path), None, None)
    assert len(list(tmp_path.iterdir())) == 4
    rotate(list_checkpoints(tmp_path), 2, str(tmp_path / "checkpoint-2"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10"}
    rotate(list_checkpoints(tmp_path), 1, str(tmp_path / "checkpoint-2"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10"}


def test_rests_are_removed_at_the_start(config, tensors, tmp_path):
    for name in (".checkpoint-3.partial", ".checkpoint-2.old.partial", ".other.partial"):
        (tmp_path / name).mkdir()
    remove_partial_folders(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".other.partial"]
    (tmp_path / ".checkpoint-3.partial").mkdir()
    train(config, tensors, tmp_path, objective="classifier", max_steps=2)
    assert not (tmp_path / ".checkpoint-3.partial").exists()


def test_a_final_model_replaces_an_older_one_whole(config, tensors, tmp_path):
    trainer = train(config, tensors, tmp_path, objective="classifier", max_steps=2)
    trainer.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    average = trainer.ema.module.state_dict()
    assert all(torch.equal(saved[name], average[name]) for name in average)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
