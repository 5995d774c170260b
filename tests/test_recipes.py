import pytest
import yaml

from jem_hf import JemTrainingArguments
from jem_hf.training.fields import MODEL_FIELDS
from jem_hf.training.recipes import RECIPES, load_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    recipe = load_recipe(path.stem)
    training = recipe.training | {"bf16": False, "use_cpu": True}
    args = JemTrainingArguments(**training)
    assert args.learning_rate == pytest.approx(recipe.training["learning_rate"])
    assert set(recipe.model) <= set(MODEL_FIELDS)


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


def test_yaml_no_is_a_strategy():
    recipe = load_recipe("quickstart", {"eval_strategy": "no"})
    assert JemTrainingArguments(**recipe.training, use_cpu=True).eval_strategy == "no"


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe 'nowhere'.*quickstart"):
        load_recipe("nowhere")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(tmp_path / "broken.yaml")
    with pytest.raises(ValueError, match="did you mean 'max_steps'"):
        load_recipe("quickstart", {"max_step": "3"})
