"""A checkpoint for others: the files that make it work anywhere, and its way to and from the Hub."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file
from transformers.utils.hub import extract_commit_hash

TASK = "attribute-conditional-generation"
AUTO_MAP = {
    "AutoConfig": "configuration_jem.JemConfig",
    "AutoModel": "modeling_jem.JemModel",
    "AutoModelForImageClassification": "modeling_jem.JemModel",
}
# by backend: from a plain string AutoVideoProcessor, which pipelines try as well, infers a class that is not there
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": {"torchvision": "image_processing_jem.JemImageProcessor"}}
TRUST = """\
`trust_remote_code=True` runs the code beside the weights; it needs transformers and timm, not `jem_hf`. Where that is
installed, `import jem_hf` does as well. `pipeline("image-classification", ...)` takes the same arguments."""
FILES = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json")
PUSH_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
IS_REMOTE_CODE = __name__.startswith("transformers_modules.")


class OnHub:
    """Mixin of configuration, model and image processor: names of the zoo, downloads that are checked, uploads."""

    checkpoint_files: tuple[str, ...] = ()
    remote_code: dict = {}  # what the first of these files says of the code beside it
    # hub.zoo sets both: (name, files, arguments) -> (folder or Hub id, arguments, SHA-256 by file), and
    # (folder, config, name) -> a card for a model that has none
    resolve: Callable | None = None
    write_card: Callable | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        Load from a folder, by a name of the zoo (where `jem_hf` is installed) or by a Hub id; see transformers.

        Raises:
            ValueError: a model of the zoo that has no weights yet.
            OSError: nothing of that name, a file in place of its folder, or one that is not what its hash says.
        """
        name, declared = pretrained_model_name_or_path, {}
        if name is not None:
            name = os.path.expanduser(name)
            if OnHub.resolve is not None:
                name, kwargs, declared = OnHub.resolve(name, cls.checkpoint_files, kwargs)
            folder = Path(name, kwargs.get("subfolder") or "")
            if not Path(name).exists():
                kwargs = _checked_download(name, cls.checkpoint_files, kwargs, declared)
            elif Path(name).is_file():
                raise OSError(f"{name} is a file: give the folder that it is in, {Path(name).parent}")
            elif not (folder / cls.checkpoint_files[0]).is_file():
                raise OSError(f"{folder} has no {cls.checkpoint_files[0]}: give the folder of a checkpoint")
        return super().from_pretrained(name, *args, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, code: bool = True, push_to_hub: bool = False, **kwargs
    ):
        """
        Save to a folder, see transformers; unless `code` is False with all that makes it work without `jem_hf`.

        Raises:
            OSError: a file in place of the folder.
        """
        folder = Path(save_directory).expanduser()
        if folder.is_file():
            raise OSError(f"{folder} is a file: give a folder to save to")
        push = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        saved = super().save_pretrained(folder, **kwargs)
        is_main_process = kwargs.get("is_main_process", True)
        if self.remote_code and code and is_main_process:
            for path in code_files():
                shutil.copyfile(path, folder / path.name)
            path = folder / self.checkpoint_files[0]
            content = json.loads(path.read_text()) | self.remote_code
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        if push_to_hub and is_main_process:
            self.push_to_hub(push.pop("repo_id", folder.name), token=kwargs.get("token"), **push)
        return saved

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs,
    ) -> CommitInfo:
        """
        Upload to the Hub; files that the repo has already are not sent again.

        Args:
            repo_id, private, token, commit_message, commit_description, create_pr: As of transformers.
            revision: Branch, made where there is none.
            kwargs: Of `save_pretrained`.

        Returns:
            The commit, or the last one where nothing has changed.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            try:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            except HfHubHTTPError as error:
                if not (create_pr and error.response.status_code == 403):  # to propose takes no right to write
                    raise
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            self._add_documents(Path(folder))
            card = Path(folder, "README.md")
            lacks_card = "model.safetensors" in self.checkpoint_files and not card.is_file()
            if lacks_card and OnHub.write_card and not api.file_exists(repo_id, "README.md", revision=revision):
                OnHub.write_card(Path(folder), self, repo_id.split("/")[-1])
            if card.is_file():
                address_card(Path(folder), repo_id, revision)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    def _add_documents(self, folder: Path) -> None:
        """Put into `folder` what belongs beside the files of `save_pretrained`."""


def _checked_download(repo_id: str, files, kwargs: dict, declared: dict[str, str]) -> dict:
    """Download files of one commit and compare them with the Hub's hashes and `declared`.

    transformers finds them in the cache, and is told not to ask again: without network a question takes half a minute.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    for name in files:
        try:
            path = Path(hf_hub_download(repo_id, name, subfolder=kwargs.get("subfolder") or None, **hub))
        except LocalEntryNotFoundError:
            return {**kwargs, "local_files_only": True}
        except (OSError, ValueError):
            return kwargs  # transformers asks again and says what is wrong
        hub["revision"] = extract_commit_hash(str(path), None)
        blob = path.resolve()  # the cache names a file by its hash: SHA-256 of a large one, else git's
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) and file_hash(blob, blob.name) != blob.name:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise OSError(f"{name} of {repo_id!r} is not what the Hub's hash says, and is removed: load it again")
        if name in declared and file_hash(path) != declared[name]:
            raise OSError(f"{name} of {repo_id!r} is not the file that the card in the zoo declares")
    return {**kwargs, "revision": hub["revision"], "local_files_only": True, "force_download": False}


def file_hash(path: str | Path, like: str = 64 * "0") -> str:
    """SHA-256 of a file, or git's SHA-1 of it where `like` is 40 characters long."""
    is_git = len(like) == 40
    start = hashlib.sha1(b"blob %d\0" % Path(path).stat().st_size) if is_git else hashlib.sha256()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: start).hexdigest()


def describe_files(folder: str | Path) -> list[dict]:
    """`path`, `size` in bytes and `sha256` of weights and configurations."""
    paths = [path for pattern in FILES for path in sorted(Path(folder).glob(pattern))]
    return [{"path": path.name, "size": path.stat().st_size, "sha256": file_hash(path)} for path in paths]


def code_files() -> list[Path]:
    """The files that read a checkpoint: this one and those beside it."""
    return sorted(Path(__file__).parent.glob("*_jem.py"))


def address_card(folder: Path, repo_id: str, revision: str | None = None) -> None:
    """Let the card say where the model is, how it is loaded from there, and what its files are."""
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    card.data.repo_id, card.data.revision = repo_id, revision or "main"
    card.data.files = describe_files(folder)
    usage = f'model="{repo_id}", trust_remote_code=True'
    if card.data.revision != "main":
        usage += f', revision="{revision}"'
    text = card.text.replace("import jem_hf\nfrom transformers", "from transformers").replace(f"{TRUST}\n\n", "")
    example = rf'(pipeline\("{TASK}", )[^\n]*\)\n(.*?```\n\n)'
    card.text = re.sub(example, rf"\g<1>{usage})\n\g<2>{TRUST}\n\n", text, count=1, flags=re.DOTALL)
    card.save(folder / "README.md")


def source_folder(model) -> Path | None:
    """The folder that a model was loaded from; of one from the Hub its snapshot in the cache, whole."""
    name = model.name_or_path
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    revision = getattr(model, "_revision", None)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*FILES, "*.md", "*.json", "*.png"]))
    except (OSError, ValueError):
        return None


def copy_documents(source: Path, folder: Path) -> None:
    """The card and what it shows and refers to: all that holds for the very same weights only."""
    if not (source / "README.md").is_file() or not _same_weights(source, folder):
        return
    text = (source / "README.md").read_text()
    if "(report.md)" in text and (source / "report.md").is_file():
        text += (source / "report.md").read_text()
    names = {name for name in re.findall(r"\]\(([^()/]+)\)", text) if (source / name).is_file()}
    for name in ("README.md", *sorted(names)):
        shutil.copyfile(source / name, folder / name)


def _same_weights(one: Path, other: Path) -> bool:
    for path in other.glob("model*.safetensors"):
        if not (one / path.name).is_file():
            return False
        a, b = load_file(one / path.name), load_file(path)
        if a.keys() != b.keys() or not all(a[name].to(b[name].dtype).equal(b[name]) for name in a):
            return False
    return True
