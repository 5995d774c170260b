"""A Hugging Face Space: the page `demo/page.py` as its app, the model and the code that it needs."""

import re
import shutil
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, ModelCard, SpaceCardData

from ..models.modeling_jem import JemModel

PACKAGES = ("torch", "torchvision", "transformers", "timm", "huggingface-hub", "safetensors")
TEXT = """
# {title}

A page to make, tag and edit images with a joint energy-based model. `model/` is its checkpoint, `jem_hf/` the code
that reads it, and `app.py` the page.
"""


def write_space(model: JemModel, folder: str | Path, title: str) -> None:
    """
    Write the files of a Space: `app.py` (the file demo/page.py), `model/`, `jem_hf/`, `requirements.txt`, `README.md`.

    Args:
        folder: Where to; made if there is none.
        title: What the Space is called.
    """
    folder, package = Path(folder), Path(__file__).parents[1]
    model.save_pretrained(folder / "model", code=False)
    model._add_documents(folder / "model")
    skipped = shutil.ignore_patterns("__pycache__", "cli", "model_cards", "recipes")
    shutil.copytree(package, folder / "jem_hf", ignore=skipped)
    shutil.copyfile(package / "demo" / "page.py", folder / "app.py")
    needed = [line for line in requires("jem_hf") if re.match(r"[\w-]+", line)[0].lower() in PACKAGES]
    (folder / "requirements.txt").write_text("\n".join(line for line in needed if "extra ==" not in line) + "\n")
    card = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version="3.11",
        app_file="app.py",
        short_description="Images for any combination of attributes",
        tags=["jem", "energy-based-model"],
        **_license(folder / "model" / "README.md"),
    )
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n{TEXT.format(title=title)}")


def _license(card: Path) -> dict:
    """What the model's card says of its licence."""
    data = ModelCard.load(card).data.to_dict() if card.is_file() else {}
    return {name: data[name] for name in ("license", "license_name", "license_link") if name in data}


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
    repo = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo.repo_id, repo_type="space", branch=revision, exist_ok=True)
    with TemporaryDirectory() as folder:
        write_space(model, folder, repo.repo_id.split("/")[-1])
        return api.upload_folder(
            repo_id=repo.repo_id,
            repo_type="space",
            folder_path=folder,
            commit_message=commit_message or "Upload the page",
            revision=revision,
            create_pr=create_pr,
        )
