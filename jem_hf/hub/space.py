"""A Hugging Face Space: the page `demo/page.py` as its app, the model and the code that it needs."""

import re
import shutil
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, ModelCard, SpaceCardData

from ..models.modeling_jem import JemModel

PACKAGES = "torch|torchvision|transformers|timm|huggingface-hub|safetensors"  # that the page needs
LICENSE = ("license", "license_name", "license_link")
TEXT = """
A page to make, tag and edit images with a joint energy-based model. `model/` is its checkpoint, `jem_hf/` the code
that reads it, and `app.py` the page.
"""


def write_space(model: JemModel, folder: str | Path, title: str) -> None:
    """
    Write the files of a Space: `app.py` (the file demo/page.py), `model/`, `jem_hf/`, `requirements.txt`, `README.md`.

    Args:
        model ([`JemModel`]): What it draws with.
        folder (`str` or `Path`): Where to; made if there is none.
        title (`str`): What the Space is called.
    """
    folder, package = Path(folder), Path(__file__).parents[1]
    model.save_pretrained(folder / "model", code=False)
    model._add_documents(folder / "model")
    skipped = shutil.ignore_patterns("__pycache__", "cli", "model_cards", "recipes")
    shutil.copytree(package, folder / "jem_hf", ignore=skipped)
    shutil.copyfile(package / "demo" / "page.py", folder / "app.py")
    needed = [line for line in requires("jem_hf") if re.match(rf"({PACKAGES})\b(?!.*extra ==)", line)]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
    path = folder / "model" / "README.md"
    declared = ModelCard.load(path).data.to_dict() if path.is_file() else {}
    card = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version="3.11",
        app_file="app.py",
        short_description="Images for any combination of attributes",
        tags=["jem", "energy-based-model"],
        **{name: declared[name] for name in LICENSE if name in declared},
    )
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n\n# {title}\n{TEXT}")


def push_space(
    model: JemModel,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> CommitInfo:
    """
    Upload a Space that runs on the Hub's free processors; arguments as [`JemModel.push_to_hub`] has them.

    Args:
        repo_id: `"user/name"` of the Space, or a name in your own namespace; made where there is none.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, repo_type="space", branch=revision, exist_ok=True)
    settings = dict(revision=revision, create_pr=create_pr, commit_message=commit_message or "Upload the page")
    with TemporaryDirectory() as folder:
        write_space(model, folder, repo_id.split("/")[-1])
        return api.upload_folder(repo_id=repo_id, repo_type="space", folder_path=folder, **settings)
