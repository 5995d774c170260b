"""The wheel holds the zoo, and works without network or clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hub_client import environment, jem_hf, python

pytestmark = pytest.mark.slow

CLONE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=CLONE, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_size_and_files(wheel):
    assert wheel.stat().st_size < 40e6  # 29 of them are the weights of three models
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (CLONE / "jem_hf").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    code = {path.relative_to(CLONE).as_posix() for path in files}
    recipes = {f"jem_hf/recipes/{path.name}" for path in (CLONE / "training" / "recipes").glob("*.yaml")}
    zoo = {f"jem_hf/{path.relative_to(CLONE).as_posix()}" for path in CLONE.glob("model_cards/*/*")}
    assert names == code | recipes | zoo


def test_the_zoo_of_an_installed_wheel(wheel, tmp_path):
    """The wheel before the clone on the path, and a Hub that nobody answers for."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    env = environment(tmp_path / "home", "http://127.0.0.1:9", offline=True) | {"PYTHONPATH": str(site)}
    listed = jem_hf("models", cwd=tmp_path, env=env).stdout
    for name in ("jem-avatars", "jem-celeba", "jem-shoes", "jem-utzappos"):
        assert name in listed
    script = """
import jem_hf
from jem_hf.training.recipes import load_recipe
from transformers import pipeline
model = jem_hf.JemModel.from_pretrained("jem-celeba")
result["folders"] = [jem_hf.__file__, model.name_or_path]
result["size"] = jem_hf.JemImageProcessor.from_pretrained("jem-celeba").crop_size.height
result["recipe"] = load_recipe("own-data").name
generate = pipeline("attribute-conditional-generation")
result["images"] = digest(generate("Eyeglasses & ~Beard", num_images=2, num_inference_steps=2, seed=0))
"""
    result = python(script, tmp_path, env)
    assert all(Path(folder).is_relative_to(site) for folder in result["folders"]) and result["size"] == 64
    assert result["recipe"] == "own-data"
    of_clone = python(script, tmp_path, environment(tmp_path / "home", "http://127.0.0.1:9", offline=True))
    assert result["images"] == of_clone["images"]
