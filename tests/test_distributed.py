"""Two real processes, launched by torchrun, beside one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dataset_folders import write_celeba
from safetensors.torch import load_file, save_file

from jem_hf import AttributeTensors, JemConfig, JemImageProcessor, JemModel, JemTrainer, JemTrainingArguments
from jem_hf.evaluation.generation import draw
from jem_hf.training.autoencoder import train_autoencoder

pytestmark = pytest.mark.slow

KWARGS = dict(objective="joint_cd", chain_free_steps=2, chain_steps=2, buffer_size=16, kl_weight=1.0)
NUM_GRADIENTS = 150
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENV = os.environ | {"CUDA_VISIBLE_DEVICES": ""}


def make_trainer(folder, batch_size=4, **kwargs):
    torch.manual_seed(0)
    config = JemConfig(attributes=["A", "B"], image_size=8, backbone_kwargs={"width": 4, "hidden_size": 8})
    images = torch.randint(180, 256, (32, 3, 8, 8), dtype=torch.uint8)
    data = AttributeTensors(images, torch.randint(2, (32, 2)), config.attributes)
    args = JemTrainingArguments(
        output_dir=str(folder),
        chain_step_size=0.1,
        per_device_train_batch_size=batch_size,
        save_steps=2,
        logging_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        **{"max_steps": 4} | kwargs,
    )
    return JemTrainer(model=JemModel(config), args=args, train_dataset=data, eval_dataset=data)


def make_trainer_of_codes(folder):
    torch.manual_seed(0)
    codes = {"code_channels": 2, "width": 16, "depth": 1}
    network = {"width": 4, "hidden_size": 8}
    config = JemConfig(attributes=["A", "B"], image_size=16, autoencoder=codes, backbone_kwargs=network)
    images = torch.randint(256, (32, 3, 16, 16), dtype=torch.uint8)
    data = AttributeTensors(images, torch.randint(2, (32, 2)), config.attributes)
    args = JemTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=2, use_cpu=True, disable_tqdm=True,
        autoencoder_steps=3, autoencoder_feature_steps=2, autoencoder_adversarial_weight=0.5,
    )  # fmt: skip
    return JemTrainer(model=JemModel(config), args=args, train_dataset=data)


def gradients(folder, batch_size):
    """Mean and variance of the gradient at the first weights, over many steps without learning."""
    trainer = make_trainer(
        folder, batch_size, objective="jem", chain_steps=2, chain_start="noise", learning_rate=0.0, muon=False,
        max_grad_norm=0.0, max_steps=NUM_GRADIENTS, save_strategy="no", buffer_size=16, guard_steps=0,
    )  # fmt: skip
    found = []

    class Collect(type(trainer.callback_handler.callbacks[0])):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.append(torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters()]))

    trainer.add_callback(Collect())
    trainer.train()
    found = torch.stack(found).double()
    return {"mean": found.mean(0), "variance": found.var(0)}


def in_each_process(folder: Path):
    """What the processes of the launch do."""
    torch.set_num_threads(1)
    whole = make_trainer(folder / "whole", **KWARGS)
    whole.train()
    rank = whole.args.process_index
    resumed = make_trainer(folder / "resumed", **KWARGS)
    resumed.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-2"))
    for name, trainer in {"whole": whole, "resumed": resumed}.items():
        state = {
            "generator": trainer.generator.get_state(),
            **trainer.negatives.state_dict(),
            **trainer.ema.state_dict(),
        }
        state |= {f"weights.{name}": value for name, value in trainer.model.state_dict().items()}
        save_file(
            {name: value.contiguous().clone() for name, value in state.items()}, folder / f"{name}{rank}.safetensors"
        )
    grown = make_trainer(folder / "grown", **KWARGS)
    grown.train(resume_from_checkpoint=str(folder / "single" / "checkpoint-2"))
    save_file({"generator": grown.generator.get_state()}, folder / f"grown{rank}.safetensors")
    save_file(gradients(folder / "gradients", 4), folder / f"gradients{rank}.safetensors")
    of_codes = make_trainer_of_codes(folder / "codes")
    before = {f"before.{name}": value.clone() for name, value in of_codes.model.autoencoder.state_dict().items()}
    train_autoencoder(of_codes)
    of_codes.train()
    weights = before | of_codes.model.state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / f"codes{rank}.safetensors")
    images = draw(whole.ema.module, torch.tensor([[0, 1], [1, -1], [1, 1]]).repeat(3, 1), batch_size=2)
    save_file({"images": images}, folder / f"images{rank}.safetensors")
    endless = make_trainer(folder / "endless", **KWARGS | {"max_steps": 100_000, "save_strategy": "no"})
    (folder / f"ready{rank}").touch()
    endless.train()


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """The folder in which two processes have worked; torchrun is told to stop while they train without end."""
    folder = tmp_path_factory.mktemp("two")
    make_trainer(folder / "single", **KWARGS).train()
    errors = (folder / "errors").open("w+")
    process = subprocess.Popen([*TORCHRUN, __file__, str(folder)], env=ENV, stdout=subprocess.DEVNULL, stderr=errors)
    while not all((folder / f"ready{rank}").exists() for rank in range(2)):
        time.sleep(0.1)
        assert process.poll() is None, (folder / "errors").read_text()[-3000:]
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=900)
    return folder


def both(launch, name):
    return [load_file(launch / f"{name}{rank}.safetensors") for rank in range(2)]


def test_processes_share_an_autoencoder(launch):
    first, second = both(launch, "codes")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["before.decoder.0.weight"], first["autoencoder.decoder.0.weight"])
    assert first["autoencoder.standardise.num_batches_tracked"] == 3


def test_processes_share_weights_and_have_their_own_chains(launch):
    first, second = both(launch, "whole")
    own = {"generator", "images"}
    for name in first:
        assert torch.equal(first[name], second[name]) == (name not in own), name
    checkpoint = launch / "whole" / "checkpoint-4"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"chain_state_0.safetensors", "chain_state_1.safetensors", "training_weights.safetensors"} <= names
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 4


def test_resume_with_as_many_processes_is_exact(launch):
    for whole, resumed in zip(both(launch, "whole"), both(launch, "resumed")):
        assert whole.keys() == resumed.keys()
        for name, value in whole.items():
            assert torch.equal(value, resumed[name]), name


def test_resume_with_more_and_with_fewer_processes(launch, tmp_path):
    first, second = both(launch, "grown")
    assert not torch.equal(first["generator"], second["generator"])
    state = json.loads((launch / "grown" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    checkpoint = launch / "whole" / "checkpoint-4"
    fewer = make_trainer(tmp_path, **KWARGS | {"max_steps": 5})
    fewer.train(resume_from_checkpoint=str(checkpoint))
    assert fewer.state.global_step == 5
    before, after = load_file(checkpoint / "chain_state_0.safetensors"), fewer.negatives.state_dict()
    assert after["num_seen"] == before["num_seen"] + 4
    assert (after["images"] != before["images"]).flatten(1).any(1).sum() == 4  # one batch of its own chains


def test_expected_gradient_is_that_of_twice_the_batch(launch, tmp_path):
    """Mean and variance over 150 steps: chains of two processes are independent, and their gradients are averaged."""
    first, second = both(launch, "gradients")
    assert torch.equal(first["mean"], second["mean"])
    one = gradients(tmp_path, 8)
    standard_error = (one["variance"].sum() / NUM_GRADIENTS).sqrt()
    assert standard_error < 0.15 * one["mean"].norm()
    assert (one["mean"] - first["mean"]).norm() < 3 * standard_error
    assert 0.7 < first["variance"].sum() / one["variance"].sum() < 1.4  # 2 if both drew the same, .5 if not averaged


def test_drawing_is_shared(launch):
    """Batches of two of nine requests: the first process draws the 1st, 3rd and 5th, with its own noise."""
    first, second = both(launch, "images")
    assert torch.equal(first["images"], second["images"])
    model = JemModel.from_pretrained(launch / "whole" / "checkpoint-4")
    requests = torch.tensor([[0, 1], [1, -1], [1, 1]]).repeat(3, 1)
    for rank, rows in enumerate(([0, 1, 4, 5, 8], [2, 3, 6, 7])):
        alone = draw(model, requests[rows], seed=rank, batch_size=2)
        torch.testing.assert_close(alone, first["images"][rows])


def test_sigterm_to_torchrun_saves_what_all_processes_have(launch):
    (checkpoint,) = (launch / "endless").glob("*checkpoint*")
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert checkpoint.name == f"checkpoint-{step}"
    assert {f"chain_state_{rank}.safetensors" for rank in range(2)} <= set(os.listdir(checkpoint))


def test_the_whole_evaluation(tmp_path):
    """Neither process waits for ever for the other; one writes and prints."""
    data = write_celeba(tmp_path / "data")
    config = JemConfig(
        attributes=["Bald", "Hat", "Male"], image_size=8, backbone_kwargs={"width": 4, "hidden_size": 8}
    )
    JemModel(config).save_pretrained(tmp_path / "model", code=False)
    JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(
        tmp_path / "model"
    )
    command = [*TORCHRUN, "--no-python", Path(sys.executable).parent / "jem-hf", "evaluate", tmp_path / "model"]
    command += ["--dataset", data, "--num-images", 8, "--num-cas", 8, "--output", tmp_path / "report", "--json"]
    env = ENV | {"JEM_HF_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}
    finished = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    report = json.loads(finished.stdout)  # one object
    assert report["baselines"].keys() >= {"classifier"} and report["generation"]["full"]["num_images"] == 4
    assert (tmp_path / "report" / "report.md").exists()
    assert len(list((tmp_path / "cache" / "classifiers").iterdir())) == 1


if __name__ == "__main__":
    in_each_process(Path(sys.argv[1]))
