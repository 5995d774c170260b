"""Every code block of the README and of docs/ is run, in a folder as a reader may have it, with a Hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fresh_process import fork_server
from hub_client import environment
from hub_server import HubServer
from PIL import Image
from run_markdown import blocks

from jem_hf import JemConfig, JemImageProcessor, JemModel

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

JEM_HF = f"""#!{sys.executable} -S
# The command with training, data and chains so small that a test can wait for them; the rest is as the page has it.
import os, sys
sys.path.append({str(Path(__file__).parent)!r})
from fresh_process import call

avatars = "--num_train 60 --num_test 20 --num_novel 20".split()
small = {{
    "train": [
        *"--max_steps 2 --per_device_train_batch_size 8 --bf16 false --eval_strategy no --save_strategy no".split(),
        *("--size", "{{shortest_edge: 16}}", "--crop_size", "{{height: 16, width: 16}}"),
        *("--backbone_kwargs", "{{width: 4, hidden_size: 8}}"),
        *(avatars if sys.argv[2:3] in (["quickstart"], ["jem-avatars"]) else []),
    ],
    "evaluate": [*"--num-images 8 --num-cas 0".split(), *(avatars if "avatars" in sys.argv else [])],
    "generate": ["--steps", "2"],
    "edit": ["--steps", "2"],
    "quickstart": "--max-steps 2 --num-train 40 --num-images 8".split(),
}}
if sys.argv[1] == "train" and "--autoencoder" not in sys.argv:
    small["train"] += ["--autoencoder", "null"]
sys.argv += small.get(sys.argv[1], [])
ask = ["from jem_hf.cli import app; app()", sys.argv, os.getcwd(), dict(os.environ)]
sys.exit(call(os.environ["SERVER_OF_COMMANDS"], ask, [0, 1, 2]))
"""


@pytest.fixture
def folder(tmp_path):
    """The folders of a clone, `photos/`, a picture and a trained model."""
    for name in ("model_cards", "training", "docs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "photos").mkdir()
    (tmp_path / "shapes").mkdir()
    rows = ["file_name,Smiling,Glasses,Hair"]
    for i in range(40):
        Image.new("RGB", (70, 80), (6 * i, 255 - 6 * i, 100)).save(tmp_path / "photos" / f"{i}.jpg")
        rows.append(
            f"{i}.jpg,{('yes', 'no', '')[i % 3]},{('yes', 'no')[i % 2]},{('black', 'blond', 'red')[i % 7 % 3]}"
        )
    (tmp_path / "photos" / "metadata.csv").write_text("\n".join(rows))
    Image.new("RGB", (64, 64), "beige").save(tmp_path / "face.png")
    torch.manual_seed(0)
    config = JemConfig(
        attributes=["Smiling", "Glasses", "Hair"],
        attribute_values={"Hair": ["black", "blond", "red"]},
        backbone_kwargs={"width": 4, "hidden_size": 8},
        image_size=16,
    )
    JemModel(config).save_pretrained(tmp_path / "runs" / "mine")
    JemImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path / "runs" / "mine"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "jem-hf").write_text(JEM_HF)
    (tmp_path / "bin" / "jem-hf").chmod(0o755)
    return tmp_path


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The environment of a reader, with a Hub and a server of processes that have imported the command."""
    with HubServer({"hf_user": "user"}) as hub:
        env = environment(tmp_path_factory.mktemp("home"), hub.url, "hf_user") | {"PYTHONPATH": str(ROOT)}
        with fork_server("jem_hf.cli", env=env) as address:
            yield env | {"SERVER_OF_COMMANDS": address}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, folder, reader):
    env = reader | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, ROOT / "tests" / "run_markdown.py", page]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-3000:]}"


def test_the_readme_has_code_that_is_run():
    languages = [language for _, language, _ in blocks((ROOT / "README.md").read_text())]
    assert languages.count("python") >= 3 and languages.count("bash") >= 2
