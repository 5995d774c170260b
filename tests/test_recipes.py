import pytest
import yaml
from transformers.utils import logging

from jem_hf import JemTrainingArguments
from jem_hf.training.devices import has_native_bfloat16
from jem_hf.training.fields import PATHS, SECTIONS, read_yaml
from jem_hf.training.recipes import RECIPES, load_recipe, make_trainer, train


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    recipe = load_recipe(path.stem)
    training = recipe.training | {"bf16": False, "use_cpu": True}
    args = JemTrainingArguments(**training)
    assert args.learning_rate == pytest.approx(recipe.training["learning_rate"])
    assert set(recipe.model) <= set(SECTIONS["model"])


def test_paper_settings():
    """DESIGN's table of the authors' settings."""
    celeba, shoes = load_recipe("paper-celeba").training, load_recipe("paper-ut-zap50k").training
    for settings in (celeba, shoes):
        assert (settings["chain_steps"], settings["chain_step_size"], settings["chain_noise"]) == (40, 4.0, 0.002)
        assert (settings["kl_weight"], settings["entropy_weight"]) == (1.0, 0.3)
        assert (settings["per_device_train_batch_size"], settings["learning_rate"]) == (100, 1e-4)
    assert (celeba["buffer_policy"], celeba["gibbs_every"]) == ("fifo", 2)
    assert (shoes["buffer_policy"], shoes["gibbs_every"]) == ("reservoir", 1)
    assert not celeba["muon"] and not shoes["muon"]
    assert celeba["lr_drop_step"] == 26_000 and celeba["max_grad_norm"] == 0.5


def test_overrides_go_where_they_belong():
    recipe = load_recipe(
        "quickstart",
        {"learning_rate": "5e-4", "num_train": "64", "guidance_scale": "3", "crop_size": "{height: 16, width: 16}"},
    )
    assert recipe.training["learning_rate"] == 5e-4
    assert recipe.dataset["num_train"] == 64
    assert recipe.model["guidance_scale"] == 3
    assert recipe.image_processor["crop_size"] == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"trainign": {}}, "unknown section 'trainign'; did you mean 'training'"),
        ({"training": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"model": {"bakcbone": "jem_cnn"}}, "did you mean 'backbone'"),
        ([1], "not a recipe"),
    ],
)
def test_wrong_recipes(content, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_no_is_a_strategy():
    recipe = load_recipe("quickstart", {"eval_strategy": "no"})
    assert JemTrainingArguments(**recipe.training, use_cpu=True).eval_strategy == "no"


@pytest.mark.parametrize(
    "text, value",
    [
        *((word, word) for word in ("no", "Yes", "on", "OFF", "y", "08:30", "1_000", "2024-01-01", "0b1", "=", "1e")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, None) for word in ("null", "~", "")),
        *(("1e-3", 1e-3), ("-1.5E+2", -150.0), (".5", 0.5), ("1.", 1.0), ("-.inf", float("-inf"))),
        *(("010", 10), ("0x10", 16), ("0o10", 8), ("-3", -3), ("+0", 0)),
    ],
)
def test_yaml_is_that_of_version_1_2(text, value):
    found = read_yaml(f"[{text}]" if text else text, "text")
    assert found == ([value] if text else None) and (not text or type(found[0]) is type(value))


def test_words_of_the_data_stay_words(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset: {values: {Lamp: [off, on], no: [y, n]}, attributes: [yes, no]}")
    recipe = load_recipe(path, {"novel": "[{Beard: no, Smiling: yes}]", "name": "2024", "license": "null"})
    assert recipe.dataset["values"] == {"Lamp": ["off", "on"], "no": ["y", "n"]}
    assert recipe.dataset["attributes"] == ["yes", "no"]
    assert recipe.dataset["novel"] == [{"Beard": "no", "Smiling": "yes"}]
    assert recipe.card == {"name": "2024", "license": None}


def test_home_and_odd_names_in_every_path(tmp_path, monkeypatch):
    """In a file, in an override and by `Recipe.override`; what YAML would read otherwise is a name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [(section, name) for section, fields in SECTIONS.items() for name in fields if name in PATHS]
    content = {section: {name: "~/x" for _, name in paths if name in SECTIONS[section]} for section in SECTIONS}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipes = [load_recipe("~/recipe.yaml"), load_recipe("quickstart", {name: "~/x" for _, name in paths})]
    recipes.append(load_recipe("quickstart"))
    for _, name in paths:
        recipes[-1].override(name, "~/x")
    for recipe in recipes:
        assert {getattr(recipe, section)[name] for section, name in paths} == {str(tmp_path / "x")}
    for name in ("photos [2024]", "[2024]", "{a}", "a: b", "photos #2", "#2", "7", "no", "!x", "*"):
        assert load_recipe("quickstart", {"name_or_path": name}).dataset["name_or_path"] == name


def test_bf16_is_decided_by_the_hardware(tmp_path):
    args = JemTrainingArguments(str(tmp_path), bf16="auto")
    assert args.bf16 == has_native_bfloat16(args.device)
    with pytest.raises(ValueError, match="bf16 is true, false or auto, not 'maybe'"):
        JemTrainingArguments(str(tmp_path), bf16="maybe")


def test_the_best_model_is_that_of_a_metric_there_is(tmp_path):
    recipe = load_recipe("quickstart", {"metric_for_best_model": "acuracy"})
    with pytest.raises(ValueError, match=r"unknown metric_for_best_model 'acuracy'; choose from loss, .*accuracy"):
        train(recipe)
    for metric, greater in (("ap", True), ("eval_accuracy", True), ("ece_positive", False), ("eval_nll", False)):
        assert JemTrainingArguments(str(tmp_path), metric_for_best_model=metric).greater_is_better is greater


# Splits


def tiny(tensors, folder, splits, **training):
    recipe = load_recipe("own-data", {"output_dir": str(folder), "max_steps": "1", "backbone_kwargs": "{width: 4}"})
    recipe.model |= {"autoencoder": None}
    recipe.training |= training
    return make_trainer(recipe, {name: tensors for name in splits}, {"Hair": ["black", "blond", "red"]})


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "test"])
def test_what_is_evaluated_on(tensors, tmp_path, name):
    assert tiny(tensors, tmp_path, ["train", name]).eval_dataset is tensors


def test_without_a_split_to_evaluate_on(tensors, tmp_path, caplog):
    logging.enable_propagation()
    trainer = tiny(tensors, tmp_path, ["train", "extra"], max_minutes=1e-6, eval_on_start=True)
    assert trainer.args.eval_strategy == "no"
    assert "no split to evaluate on" in caplog.text and "it has train, extra" in caplog.text
    logging.disable_propagation()
    trainer.train()  # which ends by the clock, and asks for no evaluation
    with pytest.raises(ValueError, match=r"no split to evaluate on.* no best model"):
        tiny(tensors, tmp_path, ["train"], load_best_model_at_end=True)
    with pytest.raises(ValueError, match=r"has no split 'train' to train on; it has test"):
        tiny(tensors, tmp_path, ["test"])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe 'nowhere'.*quickstart"):
        load_recipe("nowhere")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(tmp_path / "broken.yaml")
    with pytest.raises(ValueError, match="did you mean 'max_steps'"):
        load_recipe("quickstart", {"max_step": "3"})
