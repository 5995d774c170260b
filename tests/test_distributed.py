"""Two real processes, launched by torchrun."""

import json
import os
import subprocess
import sys

CODE = """
import sys, torch
from jem_hf import AttributeTensors, JemConfig, JemModel, JemTrainer, JemTrainingArguments

torch.set_num_threads(1)
torch.manual_seed(0)
config = JemConfig(attributes=["A", "B"], image_size=8, backbone_kwargs={"width": 4, "hidden_size": 8})
images = torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8)
data = AttributeTensors(images, torch.randint(2, (32, 2)), config.attributes)
args = JemTrainingArguments(
    output_dir=sys.argv[1], objective="joint_cd", chain_free_steps=2, chain_steps=2, chain_step_size=0.1,
    buffer_size=16, kl_weight=1.0, per_device_train_batch_size=4, max_steps=4, save_steps=2, use_cpu=True,
    disable_tqdm=True, max_minutes=5,
)
trainer = JemTrainer(model=JemModel(config), args=args, train_dataset=data, eval_dataset=data)
trainer.train()
torch.save(trainer.model.state_dict(), f"{sys.argv[1]}/rank{args.process_index}.pt")
torch.save(trainer.negatives.buffer.images, f"{sys.argv[1]}/buffer{args.process_index}.pt")
"""


def test_two_processes_share_weights_and_have_their_own_chains(tmp_path):
    import torch

    script = tmp_path / "script.py"
    script.write_text(CODE)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, out]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(out / f"rank{i}.pt") for i in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(torch.load(out / "buffer0.pt"), torch.load(out / "buffer1.pt"))
    names = {path.name for path in (out / "checkpoint-4").iterdir()}
    assert {"chain_state_0.safetensors", "chain_state_1.safetensors", "training_weights.safetensors"} <= names
    assert json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
