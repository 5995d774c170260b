"""Up to the Hub and back over HTTP: the real client in a process of its own, a Hub on loopback."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
from hub_client import environment, jem_hf, python
from hub_server import HubServer
from huggingface_hub import ModelCard

from jem_hf import JemConfig, JemImageProcessor, JemModel
from jem_hf.hub.cards import BEGIN, write_card
from jem_hf.models.hub_jem import code_files

pytestmark = pytest.mark.slow

REPO = "alice/tiny"
PUSH = """
import jem_hf
model = jem_hf.JemModel.from_pretrained("checkpoint")
result["first"] = model.push_to_hub("tiny", commit_message="The first", private=True).oid
result["again"] = model.push_to_hub("alice/tiny").oid
result["branch"] = model.push_to_hub("alice/tiny", revision="v2").oid
with torch.no_grad():
    next(model.parameters()).add_(1)
result["pull"] = model.push_to_hub("alice/tiny", create_pr=True).pr_revision
result["images"] = digest(jem_hf.AttributeConditionalGenerationPipeline(
    jem_hf.JemModel.from_pretrained("checkpoint"))("Smiling & Hair=red", num_images=3, seed=7))
"""
LOAD = """
from transformers import AutoModel, pipeline
AutoModel.from_pretrained("alice/tiny", **trust).save_pretrained("again")
generate = pipeline("attribute-conditional-generation", model="alice/tiny", **trust)
result["images"] = digest(generate("Smiling & Hair=red", num_images=3, seed=7))
result["sum"] = sum(p.double().sum().item() for p in AutoModel.from_pretrained("alice/tiny", **trust).parameters())
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub to which alice has pushed a model; `pushed` is what her process said."""
    folder = tmp_path_factory.mktemp("hub")
    config = JemConfig(
        attributes=["Smiling", "Hair", "Hat"],
        attribute_values={"Hair": ["black", "blond", "red"]},
        backbone_kwargs={"width": 4, "hidden_size": 8},
        image_size=8,
        num_inference_steps=4,
    )
    model = JemModel(config).eval()
    model.save_pretrained(folder / "checkpoint")
    size = {"size": {"shortest_edge": 10}, "crop_size": {"height": 8, "width": 8}}
    JemImageProcessor(**size).save_pretrained(folder / "checkpoint")
    report = {"num_parameters": model.num_parameters(), "prediction": {"accuracy": 0.8125, "ece": 0.01}}
    card = write_card(folder / "checkpoint", config, report, name="tiny", recipe=None, dataset=str(folder))
    card.write_text(card.read_text().replace(BEGIN, f"{BEGIN}\nWritten by hand."))
    (folder / "checkpoint" / "training_args.bin").write_bytes(b"private")
    with HubServer() as server:
        env = environment(folder / "home", server.url, "hf_alice")
        pushed = python(PUSH, folder, env)
        weight = sum(p.double().sum().item() for p in model.parameters())
        yield SimpleNamespace(server=server, folder=folder, env=env, pushed=pushed, sum=weight)


def test_push(hub):
    repo = hub.server.repos[REPO]
    assert repo.private
    assert repo.messages == ["initial commit", "The first", *2 * ["Upload JemModel"]]  # of the branch, the proposal
    assert hub.pushed["again"] == hub.pushed["first"] == repo.refs["main"]
    assert (
        hub.pushed["branch"] == repo.refs["v2"]
        and 'revision="v2"' in hub.server.files(REPO, "v2")["README.md"].decode()
    )
    assert (
        hub.server.files(REPO, hub.pushed["pull"])["model.safetensors"] != hub.server.files(REPO)["model.safetensors"]
    )
    files = hub.server.files(REPO)
    names = {"README.md", "config.json", "preprocessor_config.json", "model.safetensors", ".gitattributes"}
    assert set(files) - {".gitattributes"} == names - {".gitattributes"} | {path.name for path in code_files()}
    assert json.loads(files["preprocessor_config.json"])["size"] == {"shortest_edge": 10}
    texts = [content for name, content in files.items() if not name.endswith((".safetensors", ".py"))]
    assert not any(str(hub.folder).encode() in text for text in texts)


def test_the_card_that_was_pushed_is_ours(hub):
    text = hub.server.files(REPO)["README.md"].decode()
    card = ModelCard(text)
    assert card.data.repo_id == REPO and card.data.revision == "main"
    assert card.data.eval_results[0].metric_value == 0.8125
    assert {each["path"] for each in card.data.files} >= {"model.safetensors", "config.json"}
    assert "Written by hand." in text
    assert 'pipeline("attribute-conditional-generation", model="alice/tiny", trust_remote_code=True)' in text
    proposed = hub.server.files(REPO, hub.pushed["pull"])["README.md"].decode()
    assert proposed == text  # other weights: their numbers are not known, and the card there stays


@pytest.mark.parametrize("without_jem_hf", [True, False])
def test_round_trip(hub, tmp_path, without_jem_hf):
    env = environment(tmp_path, hub.server.url, "hf_alice")
    start = "trust = {'trust_remote_code': True}" if without_jem_hf else "import jem_hf\ntrust = {}"
    result = python(f"{start}\n{LOAD}", tmp_path, env, without_jem_hf)
    assert result["images"] == hub.pushed["images"]
    assert result["sum"] == hub.sum
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {path.name for path in code_files()}


def test_trouble_on_the_way(hub, tmp_path):
    """A line that breaks half way, a damaged file, names that are not there; then no network at all."""
    env = environment(tmp_path, hub.server.url, "hf_alice")
    script = """
    import jem_hf
    from huggingface_hub import constants
    constants.DOWNLOAD_CHUNK_SIZE = 1024  # a download goes on after the last whole one
    def error(load):
        try:
            load()
        except (OSError, ValueError) as e:
            return f"{type(e).__name__}: {e}"
    model = jem_hf.JemModel.from_pretrained("alice/tiny", revision="v2")
    result["sum"] = sum(p.double().sum().item() for p in model.parameters())
    result["damaged"] = error(lambda: jem_hf.JemImageProcessor.from_pretrained("alice/tiny"))
    result["again"] = error(lambda: jem_hf.JemImageProcessor.from_pretrained("alice/tiny"))
    result["weights"] = error(lambda: jem_hf.JemModel.from_pretrained("alice/tiny", revision="refs/pr/1"))
    result["repo"] = error(lambda: jem_hf.JemModel.from_pretrained("alice/nothing"))
    result["revision"] = error(lambda: jem_hf.JemModel.from_pretrained("alice/tiny", revision="v9"))
    """
    script = "\n".join(line.removeprefix("    ") for line in script.splitlines())
    hub.server.cut.add("model.safetensors")
    repo = hub.server.repos[REPO]
    hub.server.corrupt |= {
        repo.commits[repo.refs["main"]]["preprocessor_config.json"],
        repo.commits[repo.refs["refs/pr/1"]]["model.safetensors"],
    }
    result = python(script, tmp_path, env)
    hub.server.corrupt.clear()
    assert not hub.server.cut and result["sum"] == hub.sum
    half = len(hub.server.files(REPO, "v2")["model.safetensors"]) // 2
    assert ("model.safetensors", half // 1024 * 1024) in hub.server.ranges  # it went on where the line broke
    assert "not what the Hub's hash says" in result["damaged"] and "alice/tiny" in result["damaged"]
    assert "not what the Hub's hash says" in result["again"]  # nothing wrong was kept, and it still came damaged
    assert result["weights"].startswith("OSError: model.safetensors of 'alice/tiny' is not what the Hub's hash says")
    assert "alice/nothing" in result["repo"] and "v9" in result["revision"]
    cached = script[: script.index('result["damaged"]')]
    cached += 'result["zoo"] = jem_hf.JemModel.from_pretrained("jem-avatars").config.image_size\n'
    unknown = 'result["repo"] = error(lambda: jem_hf.JemModel.from_pretrained("alice/nothing"))'
    before = len(hub.server.requests)
    offline = python(cached + unknown, tmp_path, environment(tmp_path, hub.server.url, offline=True))
    unreachable = python(cached, tmp_path, environment(tmp_path, "http://127.0.0.1:9"))
    assert all(result["sum"] == hub.sum and result["zoo"] == 64 for result in (offline, unreachable))
    assert offline["repo"].startswith("OSError") and "cached files" in offline["repo"]
    assert len(hub.server.requests) == before


def test_weights_of_a_zoo_model_at_the_hub_are_those_of_its_card(hub, tmp_path):
    """Its repo may have moved on: the card in the package says which file it means."""
    files = {name: hub.server.files(REPO)[name] for name in ("README.md", "config.json", "model.safetensors")}
    for name, sha256 in (("right", hashlib.sha256(files["model.safetensors"]).hexdigest()), ("wrong", 64 * "0")):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        card = ModelCard(files["README.md"].decode())
        card.data.files = [{"path": "model.safetensors", "size": 1, "sha256": sha256}]
        card.save(tmp_path / "zoo" / name / "README.md")
    script = """
import jem_hf, jem_hf.hub.zoo, pathlib
jem_hf.hub.zoo.CARDS = pathlib.Path("zoo")
load = jem_hf.JemModel.from_pretrained
result["sum"] = sum(p.double().sum().item() for p in load("right").parameters())
result["v2"] = sum(p.double().sum().item() for p in load("wrong", revision="v2").parameters())
try:
    load("wrong")
except OSError as error:
    result["error"] = str(error)
"""
    result = python(script, tmp_path, environment(tmp_path / "home", hub.server.url, "hf_alice"))
    assert result["sum"] == result["v2"] == hub.sum
    assert "is not the file that the card in the zoo declares" in result["error"]


def test_a_model_from_the_hub_takes_its_card_along(hub, tmp_path):
    script = """
import jem_hf
model = jem_hf.JemModel.from_pretrained("alice/tiny", revision="v2")
model.push_to_hub("alice/copy")
"""
    python(script, tmp_path, environment(tmp_path / "home", hub.server.url, "hf_alice"))
    original, copy = hub.server.files(REPO, "v2"), hub.server.files("alice/copy")
    assert {name for name in original if original[name] != copy.get(name)} == {"README.md"}
    text = copy["README.md"].decode()
    assert "Written by hand." in text and "alice/tiny" not in text and "v2" not in text
    assert text.count("trust_remote_code=True` runs") == 1


def test_push_of_a_folder_by_command(hub, tmp_path):
    shutil.copytree(hub.folder / "checkpoint", tmp_path / "mine")
    (tmp_path / "mine" / "README.md").unlink()
    env = environment(tmp_path / "home", hub.server.url, "hf_alice")
    answers = []
    for _ in range(2):
        run = jem_hf("push", "mine", "alice/mine", "--message", "Mine", "--json", cwd=tmp_path, env=env)
        answers.append(json.loads(run.stdout))
    assert answers[0] == answers[1] and answers[0]["repo_id"] == "alice/mine"
    assert hub.server.repos["alice/mine"].messages == ["initial commit", "Mine"]
    text = hub.server.files("alice/mine")["README.md"].decode()
    lines = [line for line in text.split("```python\n")[1].split("```")[0].splitlines() if line]
    assert len(lines) == 3  # an import, and the reader's two lines
    assert "Hair (black, blond, red)" in text and "`import jem_hf`" in text
    env = environment(tmp_path / "reader", hub.server.url)
    for without_jem_hf in (True, False):
        code = "\n".join(lines) + '\nresult["n"] = len(images)\nresult["size"] = images[0]["image"].size'
        assert python(code, tmp_path, env, without_jem_hf) == {"n": 4, "size": [8, 8]}


def test_a_token_that_is_refused(hub, tmp_path):
    env = environment(tmp_path, hub.server.url, "hf_expired")
    run = jem_hf("push", hub.folder / "checkpoint", "alice/other", cwd=tmp_path, env=env, code=2)
    lines = [line for line in run.stderr.splitlines() if line.startswith("jem-hf:")]
    assert len(lines) == 1 and "401" in lines[0] and "Traceback" not in run.stderr
    assert "alice/other" not in hub.server.repos
    run = jem_hf("generate", REPO, "Hat", cwd=tmp_path, env=env, code=2)
    lines = [line for line in run.stderr.splitlines() if line.startswith("jem-hf:")]
    assert len(lines) == 1 and "401" in lines[0] and "Traceback" not in run.stderr


def test_who_may_not_write_may_propose(hub, tmp_path):
    alice = environment(tmp_path / "alice", hub.server.url, "hf_alice")
    bob = environment(tmp_path / "bob", hub.server.url, "hf_bob")
    push = ("push", hub.folder / "checkpoint")
    jem_hf(*push, "alice/open", cwd=tmp_path, env=alice)
    before = dict(hub.server.repos["alice/open"].refs)
    run = jem_hf(*push, "alice/open", "--revision", "bobs", cwd=tmp_path, env=bob, code=2)
    lines = [line for line in run.stderr.splitlines() if line.startswith("jem-hf:")]
    assert len(lines) == 1 and "403" in lines[0] and hub.server.repos["alice/open"].refs == before
    shutil.copytree(hub.folder / "checkpoint", tmp_path / "changed")
    config = json.loads((tmp_path / "changed" / "config.json").read_text())
    (tmp_path / "changed" / "config.json").write_text(json.dumps({**config, "guidance_scale": 5.0}))
    run = jem_hf("push", "changed", "alice/open", "--create-pr", cwd=tmp_path, env=bob)
    assert run.stdout.strip().endswith("/alice/open/discussions/1")
    refs = hub.server.repos["alice/open"].refs
    assert set(refs) - set(before) == {"refs/pr/1"} and refs["main"] == before["main"]
    assert json.loads(hub.server.files("alice/open", "refs/pr/1")["config.json"])["guidance_scale"] == 5.0


def test_trainer_pushes_model_and_card(hub, tmp_path):
    script = """
import jem_hf
torch.manual_seed(0)
config = jem_hf.JemConfig.from_pretrained(FOLDER)
data = jem_hf.AttributeTensors(torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8),
    torch.stack([torch.randint(0, v, (16,)) for v in config.num_values], 1), config.attributes)
args = jem_hf.JemTrainingArguments(output_dir="run", max_steps=2, per_device_train_batch_size=8, use_cpu=True,
    push_to_hub=True, hub_model_id="alice/trained", hub_strategy="every_save", save_steps=1, eval_strategy="steps",
    eval_steps=1, disable_tqdm=True, sample_grid=2, hub_always_push=True)
trainer = jem_hf.JemTrainer(model=jem_hf.JemModel(config), args=args, train_dataset=data, eval_dataset=data,
    processing_class=jem_hf.JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}))
trainer.card = {"dataset": "avatars", "recipe": "quickstart"}
trainer.train()
result["oid"] = trainer.push_to_hub().oid
result["again"] = trainer.push_to_hub().oid
result["sum"] = sum(p.double().sum().item() for p in trainer.ema.module.parameters())
"""
    env = environment(tmp_path / "home", hub.server.url, "hf_alice")
    result = python(f"FOLDER = {str(hub.folder / 'checkpoint')!r}\n{script}", tmp_path, env)
    assert result["oid"] == result["again"]
    files = hub.server.files("alice/trained")
    assert "model.safetensors" in files and "samples.png" in files and "pipeline_jem.py" in files
    assert not {name for name in files if "args" in name or "state" in name or name.startswith(("samples-", "check"))}
    assert "Training in progress, step 1" in hub.server.repos["alice/trained"].messages
    card = ModelCard(files["README.md"].decode())
    assert card.data.repo_id == "alice/trained" and card.data.recipe == "quickstart"
    assert 0 <= card.data.eval_results[0].metric_value <= 1
    assert str(tmp_path) not in card.content
