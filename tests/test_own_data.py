"""As a new user: a folder of images, `jem-hf train`, `jem-hf push`, and the lines of the card that it made."""

import json
import re

import pytest
from dataset_folders import write_image_folder
from hub_client import environment, jem_hf, python
from hub_server import HubServer
from huggingface_hub import ModelCard

from jem_hf.hub.cards import BEGIN, END

pytestmark = pytest.mark.slow

TRAIN = """
--name_or_path photos --output_dir runs/mine --max_steps 4 --eval_steps 2 --per_device_train_batch_size 4
--warmup_steps 1 --min_frequency 0 --sample_grid 2
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The Hub with the model on it, the folder of the user, and the text of the card."""
    folder = tmp_path_factory.mktemp("user")
    write_image_folder(folder / "photos")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "README.md").write_text(f"An old card.\n{BEGIN}\nFaces of my friends.\n{END}\n")
    with HubServer() as server:
        env = environment(folder / "home", server.url, "hf_alice") | {"JEM_HF_CACHE": str(folder / "cache")}
        size = ("--size", "{shortest_edge: 16}", "--crop_size", "{height: 16, width: 16}")
        network = ("--backbone_kwargs", "{width: 4, hidden_size: 8}", "--autoencoder", "null")
        jem_hf("train", "own-data", *TRAIN.split(), *size, *network, cwd=folder, env=env)
        jem_hf("push", "runs/mine", "alice/my-faces", "--private", cwd=folder, env=env)
        yield server, folder, server.files("alice/my-faces")["README.md"].decode()


def test_the_card_tells_what_the_run_knows(pushed):
    server, folder, text = pushed
    card = ModelCard(text).data
    assert card.repo_id == "alice/my-faces" and card.recipe == "own-data" and card.dataset == "photos"
    assert card.attributes == ["Hat", "Happy", "Male", "Bald", "Color", "Size"] and card.image_size == 16
    assert "16 images to train on, 2 images kept out of training" in text
    assert "4 steps of 4 images" in text and "learning rate 0.0015" in text and "width=4" in text
    local = json.loads((folder / "runs" / "mine" / "trainer_state.json").read_text())
    measured = [row["eval_accuracy"] for row in local["log_history"] if "eval_accuracy" in row]
    assert [each.metric_value for each in card.eval_results if each.metric_type == "accuracy"] == [
        round(measured[-1], 4)
    ]
    assert f"{BEGIN}\nFaces of my friends.\n{END}" in text and "An old card." not in text
    files = server.files("alice/my-faces")
    assert "(samples.png)" in text and "samples.png" in files
    assert server.repos["alice/my-faces"].private
    assert not any(str(folder).encode() in content for content in files.values())


@pytest.mark.parametrize("without_jem_hf", [True, False])
def test_the_lines_of_the_card_work(pushed, tmp_path, without_jem_hf):
    server, _, text = pushed
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    env = environment(tmp_path, server.url, "hf_alice")
    result = python(
        f'{lines}\nresult["sizes"] = [each["image"].size for each in images]', tmp_path, env, without_jem_hf
    )
    assert result["sizes"] == 4 * [[16, 16]]
    assert "it needs transformers and timm, not `jem_hf`" in text
