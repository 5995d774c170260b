"""What is imported when: no package of data and evaluation by training and drawing; registrations follow any order."""

import fresh_process
import pytest

pytestmark = pytest.mark.slow


def run(code: str, *arguments: str) -> list[str]:
    """What a process that has imported nothing of ours prints, by lines."""
    done = fresh_process.run(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_training_and_drawing_import_no_package_of_evaluation_and_data():
    """Of our own imports: what transformers itself imports is not ours to choose."""
    code = """
import builtins
asked, import_of_python = set(), builtins.__import__
def recorded(name, globals=None, *args, **kwargs):
    if (globals or {}).get("__name__", "").startswith("jem_hf"):
        asked.add(name.split(".")[0])
    return import_of_python(name, globals, *args, **kwargs)
builtins.__import__ = recorded
import jem_hf.training.trainer, jem_hf.models.pipeline_jem, jem_hf.training.recipes
print(" ".join(asked))
"""
    asked = set(run(code)[-1].split())
    assert "timm" in asked
    assert asked & {"scipy", "sklearn", "torchmetrics", "matplotlib", "datasets", "evaluate", "accelerate"} == set()


KNOWN = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY
config = AutoConfig.for_model("jem", attributes=["Hat"], image_size=8, backbone_kwargs={"width": 4})
for auto in (AutoModel, AutoModelForImageClassification):
    assert type(auto.from_config(config)).__module__ == "jem_hf.models.modeling_jem"
task = PIPELINE_REGISTRY.check_task("attribute-conditional-generation")[1]
assert task["impl"].__module__ == "jem_hf.models.pipeline_jem" and task["default"]["model"][0].endswith("jem-avatars")
from jem_hf.models.hub_jem import OnHub
from jem_hf.hub.zoo import resolve
assert OnHub.resolve is resolve
assert type(AutoImageProcessor.from_pretrained(task["default"]["model"][0])).__module__.startswith("jem_hf")
"""


@pytest.mark.parametrize(
    "first",
    [
        "import jem_hf",
        "from transformers import pipeline; import jem_hf",
        "import jem_hf.models.pipeline_jem",
        "import jem_hf.models.image_processing_jem",
    ],
)
def test_transformers_knows_the_classes_whatever_comes_first(first):
    run(first + KNOWN)


def test_package_gives_its_names():
    import jem_hf

    assert all(getattr(jem_hf, name) is not None for name in jem_hf.__all__) and set(jem_hf.__all__) <= set(
        dir(jem_hf)
    )
    with pytest.raises(AttributeError, match="JemModell"):
        _ = jem_hf.JemModell
