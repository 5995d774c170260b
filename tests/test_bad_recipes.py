"""Recipes and cards of every content: each is understood, or refused by one line that names the place."""

import json
import shutil

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jem_hf import JemTrainingArguments
from jem_hf.cli import app
from jem_hf.hub import zoo
from jem_hf.training.fields import SECTIONS
from jem_hf.training.recipes import load_recipe

quick = settings(max_examples=200, derandomize=True, deadline=None, database=None)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text("ab1e-.: ", max_size=5)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(scalars, inner, max_size=2)
)
fields = st.sampled_from([(section, name) for section, names in SECTIONS.items() for name in names])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


def refused(call):
    """What a call returns, or None and one message where it raises `ValueError`."""
    try:
        return call()
    except ValueError as error:
        assert str(error).strip()


@pytest.mark.slow
@quick
@given(st.text() | st.text("[]{}:&*!|>-? \n\t'\"ab1") | st.binary(max_size=40))
def test_any_text_is_a_recipe_or_refused(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="replace"))
    recipe = refused(lambda: load_recipe(path))
    assert recipe is None or recipe.name == "recipe"


@settings(quick, max_examples=200)
@given(anything | st.dictionaries(st.sampled_from(list(SECTIONS)), anything))
def test_any_content_is_a_recipe_or_refused(path, content):
    path.write_text(yaml.safe_dump(content))
    refused(lambda: load_recipe(path))


@settings(quick, max_examples=300)
@given(fields, anything)
def test_a_field_has_its_type_or_is_refused_by_name(path, field, value):
    section, name = field
    path.write_text(yaml.safe_dump({section: {name: value}}))
    try:
        found = getattr(load_recipe(path), section)[name]
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error)
        return
    kinds = {str: str, int: int, float: (int, float), bool: bool}
    kind = kinds.get(SECTIONS[section][name])
    auto = (name == "bf16" and value == "auto") or name.endswith("_strategy")  # resolved later
    assert kind is None or auto or isinstance(found, kind)
    assert kind is bool or kind is None or not isinstance(found, bool)


@pytest.mark.slow
@quick
@given(fields, st.text("ab1e-.:[]{}&*!'\" ", max_size=9))
def test_any_override_is_understood_or_refused(field, text):
    refused(lambda: load_recipe("quickstart", {field[1]: text}))


@pytest.mark.parametrize("section", list(SECTIONS))
def test_every_misspelt_field_is_named_with_the_right_one(section, path):
    for name in SECTIONS[section]:
        wrong = name[:-1] + "x" + name[-1]
        path.write_text(yaml.safe_dump({section: {wrong: 1}}))
        with pytest.raises(ValueError, match=f"unknown field '{wrong}' in {section}; did you mean '{name}'"):
            load_recipe(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("training: [1]", "the section training has lines such as 'field: value'"),
        ("training: 3", "the section training"),
        ("training: {learning_rate: fast}", "learning_rate is of type float, not 'fast'"),
        ("training: {learning_rate: .nan}", "learning_rate is of type float, not nan"),
        ("training: {max_steps: 1.5}", "max_steps is of type int, not 1.5"),
        ("training: {muon: 1}", "muon is of type bool, not 1"),
        ("training: {output_dir: 3}", "output_dir"),
        ("dataset: {num_train: lots}", "num_train is of type int, not 'lots'"),
        ("dataset: {attributes: Hat}", "attributes is of type .*list.*, not 'Hat'"),
        ("dataset: {attributes: [Hat, 3]}", "attributes"),
        ("image_processor: {size: large}", "size is of type int"),
        ("image_processor: {size: {shortest_edge: big}}", "size is of type int"),
        ("model: {backbone: 3}", "backbone is of type str, not 3"),
        ("model: {guidance_scale: [2]}", "guidance_scale"),
        ("card: {requests: Hat}", "requests is of type list"),
        ("1: {}", "unknown section 1"),
        ("training: {1: 2}", "unknown field 1 in training"),
        ("[[[", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: &a [*a]", "unknown section"),
        ("!!python/object/apply:os.system ['touch unpickled']", "is not YAML"),
    ],
)
def test_wrong_recipes_end_the_command(path, text, message, monkeypatch):
    path.write_text(text)
    monkeypatch.chdir(path.parent)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)
    run = CliRunner().invoke(app, ["train", str(path)])
    assert run.exit_code == 2 and run.stderr.startswith("jem-hf: ") and len(run.stderr.splitlines()) == 1
    assert [each.name for each in path.parent.iterdir()] == ["recipe.yaml"] and path.read_text() == text


@pytest.mark.parametrize(
    "option", ["--max_steps=[", "--size={", "--learning_rate=&", "--max_stepz=3", "--muon=!!python/name:os"]
)
def test_wrong_overrides_end_the_command(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["train", "quickstart", option])
    assert run.exit_code == 2 and len(run.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_numbers_that_yaml_reads_as_text_are_numbers_and_names_stay_text(path):
    path.write_text(
        "training: {learning_rate: 1e-3, output_dir: '7', bf16: auto, eval_strategy: no}\ncard: {name: '2024'}"
    )
    recipe = load_recipe(path)
    assert recipe.training["learning_rate"] == 1e-3 and recipe.training["output_dir"] == "7"
    assert recipe.card["name"] == "2024"
    args = JemTrainingArguments(**recipe.training | {"bf16": False, "use_cpu": True})
    assert args.learning_rate == 1e-3 and args.eval_strategy == "no"


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A zoo of two cards, one of which a test breaks."""
    for name in ("jem-utzappos", "broken"):
        (tmp_path / name).mkdir()
        shutil.copyfile(zoo.CARDS / "jem-utzappos" / "README.md", tmp_path / name / "README.md")
    monkeypatch.setattr(zoo, "CARDS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "front, message",
    [
        ("---\n[\n---\n", "cannot be read"),
        ("---\n- 1\n---\n", "cannot be read"),
        ("---\nimage_size: &a [*a]\n---\n", "image_size"),
        ("---\nname: x\n---\n", "image_size: None, which is no number"),
        ("---\nimage_size: big\n---\n", "image_size: 'big'"),
        ("---\nimage_size: 8\nattributes: [1]\n---\n", r"attributes: \[1\], no list of str"),
        ("---\nimage_size: 8\nfiles: [model.safetensors]\n---\n", "files: .* no list of dict"),
        ("---\nimage_size: 8\nfiles: [{path: config.json}]\n---\n", "files without path and sha256"),
        ("---\nimage_size: 8\nfiles: 3\n---\n", "files: 3"),
        ("---\n!!python/object/apply:os.system ['true']\n---\n", "cannot be read"),
        ("no front matter\n", "image_size"),
    ],
)
def test_broken_cards_are_named(cards, front, message):
    (cards / "broken" / "README.md").write_text(front)
    with pytest.raises(ValueError, match=f"(?s)broken.README.md.*{message}"):
        zoo.model_info("broken")
    for command in (["models"], ["models", "--json"], ["models", "broken"], ["generate", "broken", "Hat"]):
        run = CliRunner().invoke(app, command)
        assert run.exit_code == 2 and "README.md" in run.stderr and len(run.stderr.splitlines()) == 1
    assert (cards / "broken" / "README.md").read_text() == front
    assert zoo.model_info("jem-utzappos").card["image_size"] == 64


@pytest.mark.slow
@settings(quick, max_examples=300)
@given(
    st.dictionaries(st.sampled_from(["image_size", "tags", "attributes", "files", "model-index", "license"]), anything)
)
def test_any_front_matter_is_understood_or_refused(tmp_path_factory, front):
    path = tmp_path_factory.getbasetemp() / "README.md"
    path.write_text(f"---\n{yaml.safe_dump(front)}---\n")
    card = refused(lambda: zoo._read_card(path))
    assert card is None or (isinstance(card["image_size"], int) and json.dumps(card, default=str))
