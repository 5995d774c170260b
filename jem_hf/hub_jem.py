"""A checkpoint for others: the files that make it work anywhere, and its way to and from the Hub."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file

TASK = "attribute-conditional-generation"
CODE = (
    "backbone_jem configuration_jem heads_jem hub_jem image_processing_jem label_prior_jem modeling_jem pipeline_jem "
    "requests_jem sampling_jem"
).split()
AUTO_MAP = {
    "AutoConfig": "configuration_jem.JemConfig",
    "AutoModel": "modeling_jem.JemModel",
    "AutoModelForImageClassification": "modeling_jem.JemModel",
}
# by backend: from a plain string AutoVideoProcessor, which pipelines try as well, infers a class that is not there
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": {"torchvision": "image_processing_jem.JemImageProcessor"}}
CUSTOM_PIPELINES = {
    TASK: {"impl": "pipeline_jem.AttributeConditionalGenerationPipeline", "pt": ["AutoModel"], "type": "multimodal"}
}
FILES = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json")
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
IS_REMOTE_CODE = __name__.startswith("transformers_modules.")


class OnHub:
    """Mixin of configuration, model and image processor: names of the zoo, downloads that are checked, uploads."""

    checkpoint_files = ()
    resolve = None  # jem_hf.zoo sets it: (name, files, arguments) -> (folder or Hub id, arguments)
    write_card = None  # jem_hf.zoo sets it: (folder, config, name) -> a card for a model that has none

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        Load from a folder, by a name of the zoo (where `jem_hf` is installed) or by a Hub id; see transformers.

        Raises:
            ValueError: a model of the zoo that has no weights yet.
            OSError: nothing of that name, or a file that is not what its hash says.
        """
        name = pretrained_model_name_or_path
        if name is not None and OnHub.resolve is not None:
            name, kwargs = OnHub.resolve(name, cls.checkpoint_files, kwargs)
        if name is not None and not Path(name).exists():
            kwargs = _checked_download(str(name), cls.checkpoint_files, kwargs)
        return super().from_pretrained(name, *args, **kwargs)

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
            repo_id: `"user/name"`, or a name in your own namespace; made where there is none, `private` if so wished.
            commit_message, commit_description: What the history says.
            token: Of a user who may write; by default the one of `hf auth login`.
            revision: Branch, made where there is none.
            create_pr: Propose the change, write nothing.
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
            if (Path(folder) / "README.md").is_file():
                address_card(Path(folder), repo_id, revision)
            elif self._needs_card(api, repo_id, revision):
                OnHub.write_card(Path(folder), self, repo_id.split("/")[-1])
                address_card(Path(folder), repo_id, revision)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    def _needs_card(self, api, repo_id, revision) -> bool:
        is_model = "model.safetensors" in self.checkpoint_files and OnHub.write_card is not None
        return is_model and not api.file_exists(repo_id, "README.md", revision=revision)

    def _add_documents(self, folder: Path) -> None:
        """Put into `folder` what belongs beside the files of `save_pretrained`."""


def _checked_download(repo_id: str, files, kwargs: dict) -> dict:
    """Download files into the cache and compare them with the Hub's hashes; transformers finds them there."""
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    for name in files:
        try:
            path = Path(hf_hub_download(repo_id, name, subfolder=kwargs.get("subfolder") or None, **hub))
        except (OSError, ValueError):
            return kwargs  # transformers asks again and says what is wrong
        blob = path.resolve()  # the cache names a file by its hash: SHA-256 of a large one, else git's
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) and file_hash(blob, blob.name) != blob.name:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise OSError(
                f"{name} of {repo_id!r} is not what the Hub's hash says: it was damaged on the way or in the cache, "
                "and has been removed; load it again"
            )
    return {**kwargs, "force_download": False} if "force_download" in kwargs else kwargs


def file_hash(path: str | Path, like: str = 64 * "0") -> str:
    """SHA-256 of a file, or git's SHA-1 of it where `like` is 40 characters long."""
    path = Path(path)
    is_git = len(like) == 40
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if is_git else hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe_files(folder: str | Path) -> list[dict]:
    """`path`, `size` in bytes and `sha256` of weights and configurations."""
    paths = [path for pattern in FILES for path in sorted(Path(folder).glob(pattern))]
    return [{"path": path.name, "size": path.stat().st_size, "sha256": file_hash(path)} for path in paths]


def save_code(folder: str | Path) -> None:
    """Put the code that reads a checkpoint beside it."""
    for name in CODE:
        source = Path(__file__).with_name(f"{name}.py")
        if source.is_file():
            shutil.copyfile(source, Path(folder) / source.name)


def update_json(path: str | Path, content: dict) -> None:
    """Set entries of a JSON file."""
    path = Path(path)
    content = json.loads(path.read_text()) | content
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def address_card(folder: Path, repo_id: str, revision: str | None = None) -> None:
    """Let the card say where the model is, how it is loaded from there, and what its files are."""
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    card.data.repo_id, card.data.revision = repo_id, revision or "main"
    card.data.files = describe_files(folder)
    usage = f'model="{repo_id}", trust_remote_code=True'
    if card.data.revision != "main":
        usage += f', revision="{revision}"'
    text = re.sub(rf'(pipeline\("{TASK}", )[^\n]*\)\n', rf"\g<1>{usage})\n", card.text)
    card.text = text.replace("import jem_hf\nfrom transformers", "from transformers")
    card.save(folder / "README.md")


def source_folder(model) -> Path | None:
    """The folder that a model was loaded from; of one from the Hub its snapshot in the cache, whole."""
    name = model.name_or_path
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    revision = getattr(model.config, "_commit_hash", None)
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
        if a.keys() != b.keys() or not all(a[name].dtype == b[name].dtype and a[name].equal(b[name]) for name in a):
            return False
    return True
