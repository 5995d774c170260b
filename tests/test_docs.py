"""
Every code block of the README and of docs/ is run, in a folder as a reader may have it, with a Hub on loopback.

Every Python block is a program of its own, every bash block stops at the first error; what they write stays. Left out
are blocks without a language, and those after a line `<!-- not run: why -->`.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from fresh_process import HEAVY, call, fork_server, write_command
from hub_client import environment
from hub_server import HubServer
from PIL import Image

from jem_hf import JemConfig, JemImageProcessor, JemModel

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

SMALL = """
# Training, data and chains so small that a test can wait for them; the rest is as the page has it.
avatars = "--num_train 60 --num_test 20 --num_novel 20".split()
small = {
    "train": [
        *"--max_steps 2 --per_device_train_batch_size 8 --bf16 false --eval_strategy no --save_strategy no".split(),
        *("--size", "{shortest_edge: 16}", "--crop_size", "{height: 16, width: 16}"),
        *("--backbone_kwargs", "{width: 4, hidden_size: 8}"),
        *(avatars if sys.argv[2:3] in (["quickstart"], ["jem-avatars"]) else []),
    ],
    "evaluate": [*"--num-images 8 --num-cas 0".split(), *(avatars if "avatars" in sys.argv else [])],
    "generate": ["--steps", "2"],
    "edit": ["--steps", "2"],
    "quickstart": "--max-steps 2 --num-train 40 --num-images 8".split(),
}
if sys.argv[1] == "train" and "--autoencoder" not in sys.argv:
    small["train"] += ["--autoencoder", "null"]
sys.argv += small.get(sys.argv[1], [])
"""


@pytest.fixture
def folder(tmp_path, reader):
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
    write_command(tmp_path / "bin" / "jem-hf", reader["SERVER_OF_COMMANDS"], SMALL)
    return tmp_path


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line number, language and code of every block that is run."""
    found = []
    for match in BLOCK.finditer(text):
        skipped, language, code = match.groups()
        if language and not skipped:
            found.append((text.count("\n", 0, match.start(3)), language, code))
    return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """
    The environment of a reader, with a Hub, and servers of processes that have imported the command, and that have
    imported what blocks of Python begin with, but not this package.
    """
    with HubServer({"hf_user": "user"}) as hub:
        env = environment(tmp_path_factory.mktemp("home"), hub.url, "hf_user") | {"PYTHONPATH": str(ROOT)}
        libraries = (*HEAVY, "transformers.trainer", "transformers.pipelines", "datasets", "timm")
        own = ("torchmetrics.image.fid", "resvg_py", "dicebear", "jem_hf.cli")
        with fork_server(*libraries, *own, env=env) as commands, fork_server(*libraries, env=env) as programs:
            yield env | {"SERVER_OF_COMMANDS": commands, "SERVER_OF_PROGRAMS": programs}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, folder, reader):
    env = reader | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for line, language, code in blocks(page.read_text()):
        with (folder / "output.txt").open("w+") as output:
            if language == "python":
                files = [os.open(os.devnull, os.O_RDONLY), output.fileno(), output.fileno()]
                returncode = call(env["SERVER_OF_PROGRAMS"], ["\n" * line + code, ["-c"], str(folder), env], files)
            else:
                assert language == "bash"
                command = ["bash", "-euo", "pipefail", "-c", code]
                returncode = subprocess.run(command, cwd=folder, env=env, stdout=output, stderr=output).returncode
            output.seek(0)
            assert returncode == 0, f"{page.name}:{line + 1} ended with {returncode}\n{output.read()[-4000:]}"


def test_the_readme_has_code_that_is_run():
    languages = [language for _, language, _ in blocks((ROOT / "README.md").read_text())]
    assert languages.count("python") >= 3 and languages.count("bash") >= 2
