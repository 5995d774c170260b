"""training/full.py: a real run that is killed, goes on, ends in time and comes home."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from jem_hf import JemImageProcessor, JemModel
from jem_hf.training.recipes import load_recipe, load_splits

pytestmark = pytest.mark.slow

TRAINING = Path(__file__).parents[1] / "training"
ABSENT = ["datasets", "evaluate", "pyarrow", "torchmetrics", "typer"]
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {ABSENT} else super().find_spec(name, path, target)


sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(TRAINING))
    import full
    import pack
    import throughput

    yield {"full": full, "pack": pack, "throughput": throughput}
    sys.path.remove(str(TRAINING))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe on 40 JPEG images of 20x24 pixels: two steps of warm-up, then chains."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    rows = ["file_name,Smiling,Hair"]
    for i in range(40):
        pixels = torch.randint(256, (24, 20, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:02}.jpg", quality=90)
        rows.append(f"{i:02}.jpg,{('yes', 'no', '')[i % 3]},{('black', 'blond', 'red')[i % 7 % 3]}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    training = {"objective": "joint_cd", "chain_free_steps": 3, "chain_steps": 2, "chain_step_size": 0.1}
    training |= {"buffer_size": 32, "max_steps": 8, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}
    training |= {"save_strategy": "steps", "save_steps": 3, "sample_grid": 4, "use_cpu": True}
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    model = {"backbone_kwargs": {"width": 8, "hidden_size": 16}, "num_inference_steps": 2}
    dataset = {"name_or_path": str(folder), "novel": [{"Smiling": True, "Hair": "red"}]}
    content = {"dataset": dataset, "image_processor": size, "model": model, "training": training}
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def data(recipe, scripts):
    path = recipe.parent / "data.safetensors"
    scripts["pack"].pack(load_recipe(recipe).dataset, path)
    return path


def run(scripts, monkeypatch, *args):
    arguments = ["full.py", "--minutes", "1e6", "--checkpoint-minutes", "0", *map(str, args)]
    monkeypatch.setattr(sys, "argv", arguments)
    scripts["full"].main()


def test_packed_data_are_the_data(recipe, data, scripts):
    recipe = load_recipe(recipe)
    processor = JemImageProcessor(**recipe.image_processor)
    expected, expected_values = load_splits(recipe.dataset, processor)
    splits, values, novel = scripts["pack"].unpack(data, processor, batch_size=7)
    assert list(splits) == list(expected) == ["train", "test", "novel"]
    assert values == expected_values and novel == recipe.dataset["novel"]
    for name, split in splits.items():
        assert torch.equal(split.images, expected[name].images)
        assert torch.equal(split.labels, expected[name].labels)
        assert split.attributes == expected[name].attributes


def test_killed_and_resumed_without_datasets_is_the_same_run(recipe, data, scripts, monkeypatch, tmp_path):
    """SIGKILL in a process that lacks `datasets` and others; resumed, its weights are those of an undisturbed run."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    paths = os.pathsep.join([str(tmp_path), str(TRAINING.parent)])
    env = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, TRAINING / "full.py", recipe, data, "--output", killed, "--checkpoint-minutes", "0"]
    process = subprocess.Popen([*map(str, command), "--set", "max_steps=1000"], env=env, stderr=subprocess.PIPE)
    last_checkpoint = scripts["full"].last_checkpoint
    while process.poll() is None and last_checkpoint(killed) in (
        None,
        *(killed / f"checkpoint-{i}" for i in range(4)),
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    error = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, error[-3000:]
    last = int(last_checkpoint(killed).name.removeprefix("checkpoint-")) + 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    steps = ["--set", f"max_steps={last}"]
    run(scripts, monkeypatch, recipe, data, "--output", killed, "--resume", *steps)
    run(scripts, monkeypatch, recipe, data, "--output", whole, *steps)
    for name in ("training_weights", "model", "chain_state_0"):
        resumed, expected = (load_file(folder / f"checkpoint-{last}/{name}.safetensors") for folder in (killed, whole))
        assert all(torch.equal(value, resumed[key]) for key, value in expected.items()), name


def test_export_is_a_model_and_goes_on(recipe, data, scripts, monkeypatch, tmp_path):
    full = scripts["full"]
    monkeypatch.setattr(full, "MAX_FILE", 8_000)
    first, second = tmp_path / "first", tmp_path / "second"
    without_novel = ["--set", "novel=null"]  # what was held out is known from the packed file
    run(scripts, monkeypatch, recipe, data, "--output", first, "--export", tmp_path / "home", *without_novel)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "home").iterdir()}
    shards = [name for name in sizes if name.endswith(".safetensors")]
    assert len(shards) > 1 and {"config.json", "preprocessor_config.json", "state.tar.1"} <= sizes.keys()
    assert all(size <= 8_000 for name, size in sizes.items() if name.startswith("state"))
    average = load_file(first / "checkpoint-8" / "model.safetensors")
    model = JemModel.from_pretrained(tmp_path / "home")
    assert model.dtype == torch.float32
    assert model.config.novel_combinations == load_recipe(recipe).dataset["novel"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, average[name].bfloat16().float()), name

    checkpoint = full.restore(tmp_path / "home", second)
    weights = load_file(first / "checkpoint-8" / "training_weights.safetensors")
    restored = load_file(checkpoint / "training_weights.safetensors")
    assert all(torch.equal(restored[name], weights[name].bfloat16()) for name in restored if name != "num_averaged")
    more = ["--restore", tmp_path / "home", "--set", "max_steps=10", "chain_free_steps=0"]
    run(scripts, monkeypatch, recipe, data, "--output", second, *more)
    scheduler = torch.load(second / "checkpoint-10" / "scheduler.pt", weights_only=True)
    assert scheduler["last_epoch"] == 10
    state = json.loads((second / "checkpoint-10" / "trainer_state.json").read_text())
    assert [log["step"] for log in state["log_history"] if "eval_matching" in log][-3:] == [8, 9, 10]


def test_saves_by_the_clock_and_stops_before_the_deadline(recipe, data, scripts, monkeypatch, tmp_path):
    """
    A clock that ticks when it is read: at the begin and the end of a step, and after a checkpoint.

    Step s ends at 1000 + 2s and one more for every checkpoint before it; one is due when 10 ticks have passed since
    the last was written (at 1003, 1016 and 1029), and no other step fits once 1040 is nearer than a step (1), a
    checkpoint (1.5) and the margin (5): from 1033 on.
    """
    full, recipe = scripts["full"], load_recipe(recipe, {"output_dir": str(tmp_path), "max_steps": "1000"})
    recipe.training |= full.BY_THE_CLOCK
    splits, values, _ = scripts["pack"].unpack(data, JemImageProcessor(**recipe.image_processor))
    splits = {name: full.DeviceTensors(split, torch.device("cpu")) for name, split in splits.items()}
    trainer = full.make_device_trainer(recipe, splits, values)
    saved = []
    trainer.add_callback(full.Clock(1040, 10, saved.append))
    monkeypatch.setattr(full, "time", SimpleNamespace(time=count(1001).__next__))
    trainer.train()
    assert [checkpoint.name for checkpoint in saved] == [f"checkpoint-{step}" for step in (1, 7, 13, 15)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "widht=3"], "unknown field 'widht'"),
        (["--set", "width"], "FIELD=VALUE"),
        (["--restore", "nowhere"], "nowhere is no export"),
    ],
)
def test_bad_arguments_end_with_one_line(recipe, data, scripts, monkeypatch, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(scripts, monkeypatch, recipe, data, "--output", tmp_path, *arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_not_overwritten(recipe, data, scripts, monkeypatch, tmp_path, capsys):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(SystemExit):
        run(scripts, monkeypatch, recipe, data, "--output", tmp_path)
    assert "--resume" in capsys.readouterr().err


def test_plan_fills_the_time(scripts):
    """20 minutes, 1,000 and 10 steps a second, a quarter for chains: 900 s of the first and 300 s of the second."""
    rates = {"warmup": {"images_per_second": 256_000.0}, "joint_cd": {"images_per_second": 2560.0}}
    both = scripts["full"].plan(rates, 256, 20, chain_share=0.25)
    assert both == {"max_steps": 903_000, "chain_free_steps": 900_000}
    assert scripts["full"].plan({"joint_cd": {"images_per_second": 256.0}}, 256, 2, 0.25) == {"max_steps": 120}


def test_operations_of_first_and_second_order(scripts):
    """A matrix product of 2BIO operations: two more for its gradients, and as many again through the gradient."""
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.randn(3, 5, requires_grad=True)
    with scripts["throughput"].FlopCounter() as first:
        layer(x).square().sum().backward()
    with scripts["throughput"].FlopCounter() as second:
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert (first.total, second.total) == (3 * 2 * 3 * 5 * 7, 6 * 2 * 3 * 5 * 7)


def test_throughput_of_every_objective(recipe, data, scripts):
    recipe = load_recipe(recipe)
    splits, values, _ = scripts["pack"].unpack(data, JemImageProcessor(**recipe.image_processor))
    splits = {name: scripts["full"].DeviceTensors(split, torch.device("cpu")) for name, split in splits.items()}
    speed = scripts["throughput"].measure(recipe, splits, values, num_steps=4)
    assert list(speed["objectives"]) == ["warmup", "joint_cd"]
    for rates in speed["objectives"].values():
        operations = 1e9 * rates["gflop_per_image"] * rates["images_per_second"]
        assert rates["matmul_share"] == pytest.approx(operations / speed["matmul_tflops"] / 1e12, rel=0.05)
