"""The joint energy-based model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .backbone_jem import create_backbone, init_non_persistent_buffers
from .configuration_jem import JemConfig
from .generation_jem import SamplingMixin
from .heads_jem import HEADS, cross_entropy
from .hub_jem import AUTO_MAP, TASK, OnHub, copy_documents, source_folder
from .image_processing_jem import JemImageProcessor
from .label_distributions_jem import LabelDistribution
from .label_prior_jem import PairwiseLabelPrior
from .loading_jem import CheckedWeights
from .pipeline_jem import AttributeConditionalGenerationPipeline
from .resizing_jem import resize

# that it is imported, not only named, makes transformers take its file along where it loads the code of a checkpoint
CUSTOM_PIPELINES = {
    TASK: {
        "impl": f"pipeline_jem.{AttributeConditionalGenerationPipeline.__name__}",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
PUSH_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")


@dataclass
class JemOutput(ModelOutput):
    """
    Output of [`JemModel`].

    Args:
        loss (`torch.Tensor` of shape (1,), *optional*):
            Mean of `-log p(y_k | x, all other labels)` over the labels that are present, in nats: for the head
            "product" the likelihood, for heads with interactions the pseudo-likelihood (Besag 1975).
        logits (`torch.Tensor` of shape (B, L)):
            Log-odds of every entry of `config.id2label`: one for a binary attribute, one a value for others.
        energy (`torch.Tensor` of shape (B,)): `E(x, y_O)`; without labels `E(x)`. Lower is more probable.
        attribute_logits (`torch.Tensor` of shape (B, K, V)):
            Their softmax is `p(y_k|x)`; -inf where an attribute has fewer than V values. f(x) for the head "product".
        potentials (`torch.Tensor` of shape (B, ...)): What the head made of the images, see [`Head`](heads_jem.py).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    energy: torch.Tensor | None = None
    attribute_logits: torch.Tensor | None = None
    potentials: torch.Tensor | None = None


class JemModel(SamplingMixin, OnHub, CheckedWeights, PreTrainedModel):
    """
    One energy over images and attributes, `E(x, y) = -log p~(x, y)` (Kelly et al. 2021, arXiv 2108.04227).

    With the head "product" that is `-sum_k f_k(x)[y_k]`; see [`heads_jem`](heads_jem.py) for the others.

    It predicts (`predict_proba`), scores (`log_joint`, `log_marginal`), draws (`generate`) and edits (`edit`) images.
    """

    config_class = JemConfig
    checkpoint_files = ("config.json", "model.safetensors")
    remote_code = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    base_model_prefix = "jem"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    _no_split_modules = ["JemModel"]

    def __init__(self, config: JemConfig):
        super().__init__(config)
        self.backbone = create_backbone(
            config.backbone, config.image_size, config.num_channels, **config.backbone_kwargs
        )
        self.head = HEADS[config.head](self.backbone.head_hidden_size, config.num_values)
        self.label_prior = PairwiseLabelPrior(config.num_values)
        self.post_init()
        self.backbone.to(memory_format=torch.channels_last)  # convolutions of images follow their weights

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.backbone.to(memory_format=torch.channels_last)
        return loaded

    def _init_weights(self, module):
        init_non_persistent_buffers(module)  # and nothing else: timm and torch have initialised the rest

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """Save weights and config and, unless `code` is False, what makes them work without `jem_hf`."""
        push = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        to_hub = kwargs.pop("push_to_hub", False)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if to_hub and is_main_process:
            self.push_to_hub(push.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **push)

    def _add_documents(self, folder: Path) -> None:
        """The image processor; card and report, where the weights are still those that they speak of."""
        source = source_folder(self)
        if source is not None:
            copy_documents(source, folder)
        self.image_processor().save_pretrained(folder)

    def image_processor(self) -> JemImageProcessor:
        """The one that the model was loaded beside, else one that brings images to its size."""
        source = source_folder(self)
        if source is not None and (source / "preprocessor_config.json").is_file():
            return JemImageProcessor.from_pretrained(source)
        size = self.config.image_size
        return JemImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    def potentials(self, pixel_values: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """
        What the head makes of images (B, C, H, W) in [-1, 1], float32; f(x) (B, K, V) for the head "product".

        With `batch_size` the network sees at most so many images at once, and a backward pass goes through it once
        more instead of keeping what it computed (Chen et al. 2016, arXiv 1604.06174): less memory, more time.
        """
        if batch_size is not None and len(pixel_values) > batch_size:
            parts = pixel_values.split(batch_size)
            settings = dict(use_reentrant=False, preserve_rng_state=False)
            return torch.cat([checkpoint(self.potentials, part, **settings) for part in parts])
        self._check_pixels(pixel_values)
        return self.head(self.backbone(pixel_values.to(self.dtype)))

    def label_distribution(
        self, pixel_values: torch.Tensor, batch_size: int | None = None, label_sampler: str | None = None
    ) -> LabelDistribution:
        """The labels given images (B, C, H, W) in [-1, 1]: all that chains, losses and predictions ask for."""
        return self.head.distribution(
            self.potentials(pixel_values, batch_size), label_sampler or self.config.label_sampler
        )

    def log_joint(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Unnormalised `log p(x, y_O)` (B,); labels (B, K) of -1 are missing and marginalised."""
        return self.label_distribution(pixel_values).log_joint(self._checked(labels, len(pixel_values)))

    def log_marginal(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Unnormalised `log p(x)` (B,)."""
        return self.label_distribution(pixel_values).log_marginal()

    def predict_proba(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_standard_error: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        `p(y_k = v | x)` of shape (B, K, V), or `p(y_k = v | x, y_O)`, and its standard error if asked for.

        Exact (error 0) for the head "product" and for few attributes, else by Gibbs sampling.

        Args:
            pixel_values (`torch.Tensor` of shape (B, C, H, W)): Images in [-1, 1].
            labels (`torch.LongTensor` of shape (B, K), *optional*): What is known, -1 where missing.
        """
        labels = None if labels is None else self._checked(labels, len(pixel_values))
        logits, error = self.label_distribution(pixel_values).marginal_logits(labels)
        return (logits.softmax(-1), error) if return_standard_error else logits.softmax(-1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        potentials_only: bool = False,
    ) -> JemOutput | tuple:
        """
        Args:
            pixel_values (`torch.Tensor` of shape (B, C, H, W)): Images in [-1, 1].
            labels (`torch.LongTensor` of shape (B, K), *optional*): Value indices, -1 where missing.
            potentials_only (`bool`, defaults to False): Leave out all that sums over labels, as training does.

        Raises:
            ValueError: images or labels of a wrong shape, or a label that its attribute does not have.
        """
        potentials = self.potentials(pixel_values)
        output = JemOutput(potentials=potentials)
        if not potentials_only:
            labels = None if labels is None else self._checked(labels, len(pixel_values))
            distribution = self.head.distribution(potentials)
            logits, _ = distribution.marginal_logits()
            output = JemOutput(
                loss=None if labels is None else _loss(distribution, labels),
                logits=self.log_odds(logits),
                energy=-(distribution.log_marginal() if labels is None else distribution.log_joint(labels)),
                attribute_logits=logits,
                potentials=potentials,
            )
        return output if return_dict is None or return_dict else output.to_tuple()

    def resize_attributes(
        self, attributes: list[str], attribute_values: dict[str, list[str]] | None = None
    ) -> "JemModel":
        """
        Add, drop and reorder attributes of a trained model, in place; before an optimiser or a trainer has it.

        - Attributes and values that stay keep their weights, wherever they stand.
        - A new attribute changes `log p~(x, y)` of the others by nothing and `log p~(x)` by a constant. It is uniform,
          given the image and in the model of the labels.
        - A new value of an old attribute starts at the mean of the old values, 5 nats lower: `p(new|x)` is below
          `e^-5 / V_k` for every image, as a mean is below its log-mean-exp. (So are new embeddings in Hewitt 2021,
          "Initializing New Word Embeddings for Pretrained Language Models".) The heads "dot" and "mlp" cannot lower a
          value for all images: there it has a share like the old ones.
        - What a dropped attribute contributed to `log p~(x)` is lost. In heads with interactions, and in the model of
          the labels, the others stay as if it stood at the mean of its values.

        Args:
            attributes (`list[str]`): The new attributes, in order.
            attribute_values (`dict[str, list[str]]`, *optional*):
                Values of attributes that are not binary; those of old attributes stay where they are not given.

        Raises:
            ValueError: as [`JemConfig`] does, and for an attribute that keeps none of its values.
        """
        resize(self, attributes, attribute_values)
        return self

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, L), one for each of `config.id2label`, from logits (B, K, V) whose softmax is the prediction."""
        num_values = logits.shape[-1]
        own = torch.eye(num_values, dtype=torch.bool, device=logits.device)
        others = logits[:, :, None].expand(-1, -1, num_values, -1).masked_fill(own, -torch.inf).logsumexp(-1)
        shown = [range(1, 2) if names is None else range(len(names)) for names in self.config.named_values.values()]
        places = [(k, v) for k, values in enumerate(shown) for v in values]
        k, v = torch.tensor(places, device=logits.device).unbind(1)
        return logits[:, k, v] - others[:, k, v]

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        """Raise `ValueError` unless these can be images (B, C, H, W) in [-1, 1], or such images on their way."""
        config = self.config
        expected = (config.num_channels, config.image_size, config.image_size)
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.shape[1:] != expected:
            raise ValueError(
                f"images of shape (batch, {', '.join(map(str, expected))}) expected, not "
                f"{tuple(getattr(pixel_values, 'shape', ()))}: resize them with JemImageProcessor"
            )
        remedy = "scale those of 0 to 255 by x / 127.5 - 1, or use JemImageProcessor"
        if not pixel_values.is_floating_point():
            raise ValueError(f"images are floats in [-1, 1], not {pixel_values.dtype}: {remedy}")
        # The images of a chain have a gradient, and a look at their values would wait for the device in every step.
        # They leave [-1, 1] too, but they are noisy: none has no pixel below 0 and one above 2.
        if pixel_values.numel() and not pixel_values.requires_grad:
            lowest, highest = pixel_values.aminmax()
            if lowest >= 0 and highest > 2:
                raise ValueError(f"images are in [-1, 1], not from {lowest:g} to {highest:g}: {remedy}")

    def _checked(self, labels: torch.Tensor, num_images: int | None = None) -> torch.Tensor:
        sizes = self.config.num_values
        found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else repr(labels)
        if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels are a tensor of integers of shape (batch, {len(sizes)}), not {found}")
        if labels.ndim != 2 or labels.shape[1] != len(sizes) or num_images not in (None, len(labels)):
            raise ValueError(
                f"labels are integers of shape ({'batch' if num_images is None else num_images}, {len(sizes)}), "
                f"one column for each attribute, not {found}"
            )
        num_values, labels = torch.tensor(sizes, device=labels.device), labels.long()
        wrong = ((labels < -1) | (labels >= num_values)).nonzero()
        if len(wrong):
            row, k = wrong[0].tolist()
            raise ValueError(
                f"label {labels[row, k].item()} of image {row} is not a value of {self.config.attributes[k]!r}: "
                f"use 0 to {num_values[k].item() - 1}, or -1 where the label is missing"
            )
        return labels


def _loss(distribution: LabelDistribution, labels: torch.Tensor) -> torch.Tensor:
    """Mean of `-log p(y_k | x, all other labels)`, which are the labels' own given, and missing ones drawn alike."""
    generator = torch.Generator(labels.device).manual_seed(0)
    return cross_entropy(distribution.conditional_logits(labels, generator), labels)


__all__ = ["JemModel"]
