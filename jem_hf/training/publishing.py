"""What a run publishes: the card of its model, and the way to the Hub."""

import os
import shutil
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..data.tensors import AttributeTensors
from ..hub.cards import without_folders, write_card
from ..models.hub_jem import describe_files
from ..models.modeling_jem import JemModel
from .resume import ResumableTrainer, failure_is_a_warning

METRICS = ("accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece")  # on the card of a run


class PublishingTrainer(ResumableTrainer):
    """
    A trainer that writes a card beside each model that it saves, and pushes what `JemModel.push_to_hub` pushes, never
    arguments, logs or a template of a card.

    `card` takes what the trainer cannot know: further arguments of [`write_card`] such as name, dataset or recipe.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.card = {}

    def document(self, folder: Path) -> None:
        """Write the card of the model in a folder; one that declares its very weights stays: it may know more."""
        with failure_is_a_warning("the model card"):
            if not _declares_weights(folder):
                _copy_last_grid(self.args.output_dir, folder)
                card = {name: value for name, value in self.card.items() if name != "requests"}
                write_card(folder, self.model.config, self._report(), **self._facts() | card)

    def _report(self) -> dict:
        """The numbers of the last evaluation."""
        metrics = next((log for log in reversed(self.state.log_history) if "eval_accuracy" in log), {})
        prediction = {name: metrics[f"eval_{name}"] for name in METRICS if f"eval_{name}" in metrics}
        return {"num_parameters": self.model.num_parameters(), "prediction": prediction}

    def _facts(self) -> dict:
        args, config = self.args, self.model.config
        network = ", ".join(f"{name}={value}" for name, value in config.backbone_kwargs.items())
        return {
            "name": args.hub_model_id or args.output_dir,
            "recipe": None,
            "dataset": None,
            "data": self._data(),
            "cost": f"Objective `{args.objective}`, {self.state.global_step} steps of {args.train_batch_size} images, "
            f"learning rate {args.learning_rate:g}, network `{config.backbone}({network})`.",
            "caption": "*Drawn for the labels of images kept out of training.*",
        }

    def _data(self) -> str:
        """Name of the data and numbers of images, as far as they are known."""
        name = self.card.get("dataset")
        uses = ((self.train_dataset, "to train on"), (self.eval_dataset, "kept out of training"))
        known = [f"`{without_folders(name)}`"] if name else []
        known += [f"{len(rows):,} images {use}" for rows, use in uses if isinstance(rows, AttributeTensors)]
        return f"{', '.join(known)}." if known else ""

    # The Hub

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card of `output_dir`, unless there is one of these weights."""
        if self.is_world_process_zero():
            self.document(Path(self.args.output_dir))

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """Save, and upload model, image processor, code and card; see `Trainer`. Returns the commit, or a Future."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._push(self.args.output_dir, commit_message, blocking, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder):
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._push(checkpoint_folder, message, blocking=False)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else os.path.basename(checkpoint_folder)
            jobs.append(
                HfApi(token=self.args.hub_token).upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=checkpoint_folder,
                    path_in_repo=name,
                    commit_message=f"{message}, checkpoint",
                    revision=self.args.hub_revision,
                    ignore_patterns=["training_args.bin"],
                    run_as_future=True,
                )
            )
        self.push_in_progress = PushInProgress(jobs)

    def _push(self, folder, commit_message, blocking, token=None, revision=None):
        arguments = dict(
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
        )
        model = JemModel.from_pretrained(folder)
        if blocking:
            return model.push_to_hub(self.hub_model_id, **arguments)
        return HfApi().run_as_future(model.push_to_hub, self.hub_model_id, **arguments)


def _declares_weights(folder: Path) -> bool:
    if not (folder / "README.md").is_file():
        return False
    declared = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("files") or []
    return all(each in declared for each in describe_files(folder) if each["path"].endswith(".safetensors"))


def _copy_last_grid(output_dir: str, folder: Path) -> None:
    grids = sorted(Path(output_dir).glob("samples-*.png"), key=lambda path: path.stat().st_mtime)
    if grids:
        shutil.copyfile(grids[-1], folder / "samples.png")
