"""Every command as a user runs it, most of them in the process of the tests: to start one takes seconds."""

import json
import os
import subprocess
from pathlib import Path

import fresh_process
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from jem_hf import load_attribute_dataset
from jem_hf.cli import app

AVATAR = str(Path(__file__).parents[1] / "model_cards" / "jem-avatars" / "samples.png")


def jem_hf(*args, cwd=None, code=0, cache=None):
    """Run a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd or Path.cwd())
        if cache:
            patch.setenv("JEM_HF_CACHE", str(cache))
            patch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache / "datasets"))
        result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == code, result.stderr[-2000:]
    return result


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """Runs a line of bash, in which `jem-hf` is the command, in a process of its own."""
    folder = tmp_path_factory.mktemp("bin")
    fresh_process.write_command(folder / "jem-hf")
    env = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}

    def run(line, cwd=None):
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=cwd, env=env)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained by the quickstart at tiny size."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        "dataset: {name_or_path: avatars, num_train: 60, num_test: 20, num_novel: 20}\n"
        "image_processor: {size: {shortest_edge: 16}, crop_size: {height: 16, width: 16}}\n"
        "model: {backbone_kwargs: {width: 4}}\n"
        "training: {output_dir: out, max_steps: 3, per_device_train_batch_size: 8, save_strategy: 'no'}\n"
    )
    result = jem_hf("train", recipe, "--learning_rate", "1e-3", "--max_steps=4", "--json", cwd=folder, cache=folder)
    summary = json.loads(result.stdout)
    assert summary["output_dir"] == "out" and 0 <= summary["eval_accuracy"] <= 1
    return folder


@pytest.mark.slow
def test_help_of_every_command(process):
    commands = process("jem-hf --help").stdout
    for name in ("quickstart", "train", "generate", "edit", "predict", "evaluate", "models", "push"):
        assert name in commands
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0 and "--json" in result.stdout


def test_train_writes_a_checkpoint(trained):
    names = {path.name for path in (trained / "out").iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= names


def test_generate(trained):
    result = jem_hf(
        "generate", trained / "out", "Eyeglasses & ~Beard", "--num-images", "4", "--steps", "2", "--json",
        "--output", "grid.png", cwd=trained,
    )  # fmt: skip
    content = json.loads(result.stdout)
    assert len(content["images"]) == 4
    assert all(item["attributes"]["Eyeglasses"] and not item["attributes"]["Beard"] for item in content["images"])
    assert Image.open(trained / "grid.png").width > 4 * 16


def drawn(result) -> list[dict]:
    return json.loads(result.stdout)["images"]


def test_generate_a_composition(trained):
    """Either of two: every image is drawn for one of them or both, and never for a hat."""
    common = ("--steps", "2", "--json", "--output", "either.png")
    request = "(Beard | Smiling) & ~Hat"
    images = drawn(jem_hf("generate", trained / "out", request, "--num-images", "8", *common, cwd=trained))
    assert len(images) == 8 and Image.open(trained / "either.png").width > 8 * 16
    weighted = drawn(jem_hf("generate", trained / "out", "Smiling:20 & ~Hat", *common, cwd=trained))
    plain = drawn(jem_hf("generate", trained / "out", "Smiling & ~Hat", *common, cwd=trained))
    assert mean_of(weighted, "Smiling") > mean_of(plain, "Smiling")


def mean_of(images, name):
    return sum(each["probabilities"][name] for each in images) / len(images)


def test_generate_from_one_request_to_another(trained):
    common = ("--num-images", "3", "--steps", "2", "--json", "--output", "way.png")
    way = drawn(jem_hf("generate", trained / "out", "Smiling", "--to", "~Smiling & Hat", *common, cwd=trained))
    assert [each["attributes"]["Smiling"] for each in way] == [True, True, False]
    assert way[2]["attributes"]["Hat"] and way[0]["probabilities"] != way[2]["probabilities"]


def test_generate_a_grid_of_two_attributes(trained):
    common = ("--steps", "2", "--json", "--output", "cross.png")
    axes = ("--rows", "Hat", "--columns", "Smiling in (True, False)")
    cells = drawn(jem_hf("generate", trained / "out", "Beard", *axes, *common, cwd=trained))
    shown = [tuple(each["attributes"][name] for name in ("Hat", "Smiling", "Beard")) for each in cells]
    assert shown == [(False, False, True), (False, True, True), (True, False, True), (True, True, True)]
    assert cells[3]["request"] == "(Beard) & Hat & Smiling"
    picture = Image.open(trained / "cross.png")
    assert picture.width > picture.height > 2 * 96
    for wrong, message in (
        (axes[:2], "--rows and --columns go together"),
        ((*axes, "--num-images", "3"), "one image a cell"),
        (("--rows", "Hat", "--columns", "Hat"), "both of 'Hat'"),
    ):
        assert message in jem_hf("generate", trained / "out", *wrong, *common, cwd=trained, code=2).stderr


def test_generate_the_best_candidates_with_a_sampler(trained):
    common = ("--num-images", "2", "--steps", "3", "--json", "--output", "best.png")
    sampler = ("--sampler", "mala", "--sampler-kwargs", "{step_size: 0.01, temperature: 0.1}")
    plain = drawn(jem_hf("generate", trained / "out", "Hat", *sampler, *common, cwd=trained))
    best = drawn(jem_hf("generate", trained / "out", "Hat", *sampler, "--candidates", "8", *common, cwd=trained))
    fits = [each["probabilities"]["Hat"] for each in best]
    assert fits == sorted(fits, reverse=True) and sum(fits) > sum(each["probabilities"]["Hat"] for each in plain)


def test_edit(trained):
    photo = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    photo.save(trained / "photo.png")
    mask = Image.new("L", (40, 40))
    mask.paste(255, (0, 0, 40, 20))
    mask.save(trained / "mask.png")
    common = ("photo.png", "Smiling & ~Hat", "--steps", "4", "--json", "--output", "edited.png")
    images = drawn(jem_hf("edit", trained / "out", *common, "--num-images", "2", "--strength", "0.4", cwd=trained))
    assert len(images) == 2 and Image.open(trained / "edited.png").width > 2 * 16
    jem_hf("edit", trained / "out", *common, "--mask", "mask.png", cwd=trained)
    grid = Image.open(trained / "edited.png").convert("L")  # below the mask it is the photograph, from dark to bright
    rows = [grid.getpixel((grid.width // 2, round(y * grid.height))) for y in (0.6, 0.75, 0.9)]
    assert rows == pytest.approx([153, 191, 230], abs=12)
    jem_hf("edit", trained / "out", *common, "--mask", "mask.png", "--crop", "0.5,0.55,0.25", cwd=trained)
    grid = Image.open(trained / "edited.png").convert("L")  # rows 17 to 27, of which the mask leaves the last seven
    assert grid.getpixel((grid.width // 2, round(0.9 * grid.height))) == pytest.approx(166, abs=12)


def test_predict_with_known_labels(trained):
    Image.new("RGB", (40, 40), "red").save(trained / "red.png")
    arguments = ("predict", trained / "out", "red.png", "--json")
    (known,) = json.loads(jem_hf(*arguments, "--given", "Smiling & ~Hat", cwd=trained).stdout)
    (free,) = json.loads(jem_hf(*arguments, cwd=trained).stdout)
    assert known["probabilities"]["Smiling"] == 1 and known["probabilities"]["Hat"] == 0
    assert known["probabilities"]["Beard"] == pytest.approx(free["probabilities"]["Beard"])  # the head is a product
    assert known["energy"] > free["energy"]  # p(x, y) < p(x)


def test_predict(trained):
    Image.new("RGB", (40, 40), "red").save(trained / "red.png")
    Image.new("RGB", (40, 40), "red").save(trained / "again.png")
    files = ("red.png", "again.png", "red.png")
    content = json.loads(jem_hf("predict", trained / "out", *files, "--json", cwd=trained).stdout)
    assert [item["image"] for item in content] == ["red.png", "again.png"]  # each once
    assert content[0]["energy"] == pytest.approx(content[1]["energy"], abs=1e-3)
    assert len(content[0]["probabilities"]) == 23
    assert "Eyeglasses" in jem_hf("predict", trained / "out", "red.png", cwd=trained).stdout


@pytest.fixture(scope="module")
def data(trained):
    """A folder of images with boolean columns, as datasets loads it."""
    cache = str(trained / "datasets")
    splits = load_attribute_dataset("avatars", num_train=40, num_test=12, num_novel=12, cache_dir=cache)
    folder = trained / "data"
    (folder / "data").mkdir(parents=True)
    for name in ("train", "test"):
        splits[name].to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.mark.slow
def test_evaluate(trained, data):
    result = jem_hf(
        "evaluate", trained / "out", "--dataset", data, "--num-images", "8", "--output", "report", "--json",
        cwd=trained, cache=trained,
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert 0 <= report["prediction"]["accuracy"] <= 1
    assert report["generation"]["full"]["num_images"] == 8
    assert {"report.md", "report.json", "reliability.png"} <= {path.name for path in (trained / "report").iterdir()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """What a user has: a folder of images and a table of three attributes, with gaps."""
    folder = tmp_path_factory.mktemp("user") / "photos"
    folder.mkdir()
    lines = ["file_name,Smiling,Age,Hair"]
    for i in range(60):
        Image.new("RGB", (20, 24), (4 * i, 255 - 4 * i, 100)).save(folder / f"{i}.png")
        smiling, hair = ("yes", "no", "")[i % 3], ("black", "blond", "red", "")[i % 4]
        lines.append(f"{i}.png,{smiling},{i % 5},{hair}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_users_folder_of_images(photos):
    """Train, evaluate and generate; what was held out of training is asked for in evaluation."""
    where = dict(cwd=photos.parent, cache=photos.parent / "cache")
    size = ["--size", "{shortest_edge: 16}", "--crop_size", "{height: 16, width: 16}"]
    small = ["--backbone_kwargs", "{width: 4, hidden_size: 8}", "--max_steps", "2", "--bf16", "false"]
    small += ["--autoencoder", "null", "--outlier_score", "false"]
    novel = ["--novel", "[{Smiling: true, Hair: red}]"]
    jem_hf("train", "own-data", "--name_or_path", "photos", "--output_dir", "mine", *size, *small, *novel, **where)
    config = json.loads((photos.parent / "mine" / "config.json").read_text())
    assert config["attributes"] == ["Smiling", "Age", "Hair"]
    assert config["attribute_values"] == {"Age": list("01234"), "Hair": ["black", "blond", "red"]}
    assert config["novel_combinations"] == [{"Smiling": True, "Hair": "red"}]
    arguments = ["--dataset", "photos", "--num-images", "8", "--num-cas", "0", "--json"]
    report = json.loads(jem_hf("evaluate", "mine", *arguments, **where).stdout)
    assert report["prediction"]["per_attribute"].keys() == {"Smiling", "Age", "Hair"}
    assert report["generation"]["novel"]["num_images"] == 8
    jem_hf("generate", "mine", "Smiling & Hair=red", "--num-images", "2", "--steps", "2", **where)
    assert (photos.parent / "grid.png").exists()


@pytest.mark.slow
def test_release_makes_a_zoo_folder(trained, data):
    script = Path(__file__).parents[1] / "training" / "release.py"
    command = [script, "out", "jem-avatars", "--dataset", data, "--num-images", "8", "--output", "zoo"]
    code = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    run = fresh_process.run(code, *map(str, command), cwd=trained)
    assert run.returncode == 0, run.stderr
    zoo = trained / "zoo" / "jem-avatars"
    assert ModelCard.load(zoo / "README.md").data.image_size == 16
    names = {path.name for path in zoo.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "samples.png"} <= names


@pytest.mark.slow
def test_quickstart_at_tiny_size(trained):
    result = jem_hf(
        "quickstart", "--max-steps", "2", "--num-train", "40", "--num-images", "8", "--output", "quick", "--json",
        cwd=trained, cache=trained,
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert {"full", "seen"} <= report["generation"].keys()
    names = {path.name for path in (trained / "quick").iterdir()}
    assert {"README.md", "report.json", "report.md", "samples.png", "model.safetensors", "config.json"} <= names


def test_models():
    assert "jem-avatars" in jem_hf("models").stdout
    entry = json.loads(jem_hf("models", "jem-avatars", "--json").stdout)
    assert entry["trained"] and "Eyeglasses" in entry["attributes"]
    assert "## Results" in jem_hf("models", "jem-avatars").stdout


@pytest.mark.slow
def test_bad_input_in_a_process_has_no_traceback(process, tmp_path):
    result = process("jem-hf generate jem-avatars 'Hat & ~Hat'", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "contradicts itself: 'Hat'" in result.stderr


@pytest.mark.parametrize("ending", ["png", "JPG", "webp", "bmp", "tiff", "gif"])
def test_outputs_of_many_kinds(trained, ending):
    name = f"new/folder/grid.{ending}"
    jem_hf("generate", trained / "out", "Hat", "--num-images", "1", "--steps", "1", "-o", name, cwd=trained)
    assert Image.open(trained / name).width == 100


@pytest.mark.parametrize(
    "args, path",
    [
        (("generate", "~/model", "Hat"), "model"),
        (("edit", "~/model", AVATAR, "Hat"), "model"),
        (("edit", "jem-avatars", "~/a.png", "Hat"), "a.png"),
        (("edit", "jem-avatars", AVATAR, "Hat", "--mask=~/mask.png"), "mask.png"),
        (("predict", "~/model", AVATAR), "model"),
        (("predict", "jem-avatars", AVATAR, "~/a.png"), "a.png"),
        (("evaluate", "~/model"), "model"),
        (("evaluate", "jem-avatars", "--dataset=~/photos"), "photos"),
        (("evaluate", "jem-avatars", "--output=~/file.txt/report"), "file.txt/report"),
        (("quickstart", "--output=~/file.txt/run"), "file.txt/run"),
        (("generate", "jem-avatars", "Hat", "--output=~/file.txt/a.png"), "file.txt"),
        (("train", "~/recipe.yaml"), "recipe.yaml"),
        (("push", "~/model", "user/name"), "model"),
        (("demo", "~/model", "--no-browser"), "model"),
    ],
)
def test_the_users_folder_is_known_in_every_path(args, path, tmp_path, monkeypatch):
    """The error names it whole: nothing is there."""
    (tmp_path / "file.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    result = jem_hf(*args, cwd=tmp_path, code=2)
    assert str(tmp_path / path) in result.stderr and "~" not in result.stderr


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(process, tmp_path):
    for i in range(150):  # more words than a pipe holds
        (tmp_path / f"{i}.png").symlink_to(AVATAR)
    result = process("jem-hf predict jem-avatars *.png | head -1; echo ${PIPESTATUS[0]}", cwd=tmp_path)
    assert result.stdout.splitlines()[1:] == ["141"] and "energy" in result.stdout
    assert result.stderr == ""


@pytest.fixture
def colours(tmp_path):
    """Files of 20 colours."""
    files = [tmp_path / f"{i}.png" for i in range(20)]
    for i, file in enumerate(files):
        Image.new("RGB", (40, 40), (12 * i, 100, 0)).save(file)
    return files


def test_many_images_are_predicted_as_each_is(trained, colours):
    together = json.loads(jem_hf("predict", trained / "out", *colours, "--json").stdout)
    assert [each["image"] for each in together] == list(map(str, colours))
    (last,) = json.loads(jem_hf("predict", trained / "out", colours[-1], "--json").stdout)
    assert together[-1]["energy"] == pytest.approx(last["energy"], abs=1e-3)


def test_what_comes_before_a_broken_file_is_printed(trained, colours):
    colours[18].write_bytes(colours[18].read_bytes()[:40])
    result = jem_hf("predict", trained / "out", *colours, code=2)
    assert result.stdout.count("energy") == 18
    assert str(colours[18]) in result.stderr and result.stderr.count("\n") == 1
    result = jem_hf("predict", trained / "out", *colours, "--json", code=2)
    assert [each["image"] for each in json.loads(result.stdout)] == list(map(str, colours[:18]))
    colours[19].unlink()
    result = jem_hf("predict", trained / "out", *colours, code=2)
    assert str(colours[19]) in result.stderr and not result.stdout  # seen before any work


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photographs(tmp_path):
    photograph = Image.effect_noise((100, 100), 60).resize((3000, 2000)).convert("RGB")
    for i in range(12):
        photograph.save(tmp_path / f"{i}.png", compress_level=1)  # no format that is decoded at a part of its size
    code = f"""
import resource
from typer.testing import CliRunner
from jem_hf.cli import app
for num in (1, 12):
    files = [f"{tmp_path}/{{i}}.png" for i in range(num)]
    assert CliRunner().invoke(app, ["predict", "jem-avatars", *files]).exit_code == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = fresh_process.run(code, cwd=tmp_path)
    one, many = map(int, run.stdout.split())
    assert many - one < 60  # MiB, of 206 that the photographs have together
