"""What a run publishes: the card of its model, and the way to the Hub."""

import shutil
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..data.tensors import AttributeTensors
from ..hub.cards import without_folders, write_card
from ..models.hub_jem import describe_files
from ..models.modeling_jem import JemModel
from .averaging import AveragingTrainer
from .resume import failure_is_a_warning

METRICS = ("accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece")  # on the card of a run


class PublishingTrainer(AveragingTrainer):
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
                grids = Path(self.args.output_dir).glob("samples-*.png")
                if last := max(grids, key=lambda path: path.stat().st_mtime, default=None):
                    shutil.copyfile(last, folder / "samples.png")
                metrics = next((log for log in reversed(self.state.log_history) if "eval_accuracy" in log), {})
                prediction = {name: metrics[f"eval_{name}"] for name in METRICS if f"eval_{name}" in metrics}
                report = {"num_parameters": self.model.num_parameters(), "prediction": prediction}
                card = {name: value for name, value in self.card.items() if name not in ("requests", "grid")}
                write_card(folder, self.model.config, report, **self._facts() | card)

    def _facts(self):
        args, config, dataset = self.args, self.model.config, self.card.get("dataset")
        network = ", ".join(f"{name}={value}" for name, value in config.backbone_kwargs.items())
        uses = ((self.train_dataset, "to train on"), (self.eval_dataset, "kept out of training"))
        data = [f"`{without_folders(dataset)}`"] if dataset else []
        data += [f"{len(rows):,} images {use}" for rows, use in uses if isinstance(rows, AttributeTensors)]
        return {
            "name": args.hub_model_id or args.output_dir,
            "recipe": None,
            "dataset": None,
            "data": f"{', '.join(data)}." if data else "",
            "cost": f"Objective `{args.objective}`, {self.state.global_step} steps of {args.train_batch_size} images, "
            f"learning rate {args.learning_rate:g}, network `{config.backbone}({network})`.",
            "caption": "*Drawn for the labels of images kept out of training.*",
        }

    # The Hub

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card of `output_dir`, unless there is one of these weights."""
        if self.is_world_process_zero():
            self.document(Path(self.args.output_dir))

    def push_to_hub(self, commit_message="End of training", blocking=True, token=None, revision=None, **kwargs):
        """Save, and upload model, image processor, code and card; see `Trainer`. Returns the commit, or a Future."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=kwargs.get("private"))
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
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            upload = HfApi(token=self.args.hub_token).upload_folder(
                repo_id=self.hub_model_id,
                folder_path=checkpoint_folder,
                path_in_repo=name,
                commit_message=f"{message}, checkpoint",
                revision=self.args.hub_revision,
                ignore_patterns=["training_args.bin"],
                run_as_future=True,
            )
            jobs.append(upload)
        self.push_in_progress = PushInProgress(jobs)

    def _push(self, folder, message, blocking, token=None, revision=None):
        push = JemModel.from_pretrained(folder).push_to_hub
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        settings = dict(repo_id=self.hub_model_id, commit_message=message, token=token, revision=revision)
        return push(**settings) if blocking else HfApi().run_as_future(push, **settings)


def _declares_weights(folder: Path) -> bool:
    if not (folder / "README.md").is_file():
        return False
    declared = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("files") or []
    return all(each in declared for each in describe_files(folder) if each["path"].endswith(".safetensors"))
