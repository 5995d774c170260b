"""The joint energy-based model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .autoencoder_jem import create_autoencoder, load_diffusers, read_config
from .backbone_jem import create_backbone, init_non_persistent_buffers
from .calibration_jem import Calibration
from .configuration_jem import JemConfig
from .editing_jem import EditingMixin
from .heads_jem import HEADS, cross_entropy
from .hub_jem import AUTO_MAP, TASK, OnHub, copy_documents, source_folder
from .image_processing_jem import JemImageProcessor, to_pixels
from .inputs_jem import CheckedInputs
from .label_distributions_jem import LabelDistribution
from .label_prior_jem import PairwiseLabelPrior
from .loading_jem import CheckedWeights
from .outliers_jem import OutlierScore, image_scores, num_scores
from .pipeline_jem import AttributeConditionalGenerationPipeline
from .resizing_jem import resize

# that it is imported, not only named, makes transformers take its file along where it loads the code of a checkpoint
IMPLEMENTATION = f"pipeline_jem.{AttributeConditionalGenerationPipeline.__name__}"
CUSTOM_PIPELINES = {TASK: {"impl": IMPLEMENTATION, "pt": ["AutoModel"], "type": "multimodal"}}


@dataclass
class JemOutput(ModelOutput):
    """
    Output of [`JemModel`].

    Args:
        loss (`torch.Tensor` of shape (1,), *optional*): Mean of `-log p(y_k | x, all other labels)` in nats over the
            labels present, with interactions the pseudo-likelihood (Besag 1975).
        logits (`torch.Tensor` of shape (B, L)): Log-odds of every entry of `config.id2label`.
        energy (`torch.Tensor` of shape (B,)): `E(x, y_O)`; without labels `E(x)`. Lower is more probable. With an
            autoencoder it is that of the code.
        attribute_logits (`torch.Tensor` of shape (B, K, V)): Their softmax is `p(y_k|x)`; -inf without a value.
        potentials (`torch.Tensor` of shape (B, ...)): What the head made of the images, see [`Head`](heads_jem.py).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    energy: torch.Tensor | None = None
    attribute_logits: torch.Tensor | None = None
    potentials: torch.Tensor | None = None


class JemModel(EditingMixin, CheckedInputs, OnHub, CheckedWeights, PreTrainedModel):
    """
    One energy over images and attributes, `E(x, y) = -log p~(x, y)` (Kelly et al. 2021, arXiv 2108.04227), by one of
    the heads of [`heads_jem`](heads_jem.py).

    It predicts (`predict_proba`), scores (`log_joint`, `log_marginal`), draws (`generate`) and edits (`edit`) images.
    """

    config_class = JemConfig
    checkpoint_files = ("config.json", "model.safetensors")
    remote_code = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    base_model_prefix = "jem"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    accepts_loss_kwargs = False
    _no_split_modules = ["JemModel"]

    def __init__(self, config: JemConfig):
        super().__init__(config)
        settings = config.backbone_kwargs or {}
        channels, size, _ = config.code_shape
        self.autoencoder: Any = None
        codes: Any = config.autoencoder
        if codes is not None:
            self.autoencoder = create_autoencoder(codes, config.image_size, config.num_channels)
            if name := codes.pop("from_pretrained", None):
                self._load_autoencoder(name)
            self.autoencoder.eval().requires_grad_(False)  # what an energy is of must not change while it is trained
        self.backbone = create_backbone(config.backbone, size, channels, **settings)
        self.head = HEADS[config.head](self.backbone.head_hidden_size, config.num_values)
        self.label_prior = PairwiseLabelPrior(config.num_values)
        self.expect_outlier_score(bool(config.outlier_score))
        self.expect_calibration(bool(config.calibrated))
        self.post_init()
        self.to_channels_last()

    def _load_autoencoder(self, name: str) -> None:
        """Take over the autoencoder of another `JemModel`, or one of diffusers."""
        if read_config(name).get("model_type") == self.config.model_type:
            self.autoencoder.load_state_dict(JemModel.from_pretrained(name).autoencoder.state_dict())
        else:
            load_diffusers(self.autoencoder, name)

    def to_channels_last(self) -> None:
        """Convolutions follow the layout of their weights, and are faster in this one."""
        for network in filter(None, (self.autoencoder, self.backbone)):
            network.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "JemModel":
        """As torch's; an autoencoder stays in evaluation mode, with the statistics of the codes that it has."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    def _init_weights(self, module):
        init_non_persistent_buffers(module)  # and nothing else: timm and torch have initialised the rest

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

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        What the energy sees, (B, *config.code_shape), of images (B, C, H, W) in [-1, 1]: their codes, about
        standard normal, or without an autoencoder the images themselves.
        """
        self._check_pixels(pixel_values)
        return pixel_values if self.autoencoder is None else self.autoencoder.encode(pixel_values.to(self.dtype))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W), about [-1, 1], of codes (B, *config.code_shape)."""
        return codes if self.autoencoder is None else self.autoencoder.decode(codes.to(self.dtype)).to(codes.dtype)

    def potentials(self, codes: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """
        What the head makes of codes (B, *config.code_shape), float32; f(x) (B, K, V) for the head "product".

        With `batch_size` the network sees at most so many at once, and a backward pass goes through it once more
        instead of keeping what it computed (Chen et al. 2016, arXiv 1604.06174): less memory, more time.
        """
        if batch_size is not None and len(codes) > batch_size:
            parts = codes.split(batch_size)
            potentials = [checkpoint(self.potentials, x, use_reentrant=False, preserve_rng_state=False) for x in parts]
            return torch.cat(potentials)
        self._check_codes(codes)
        potentials = self.head(self.backbone(codes.to(self.dtype)))
        return potentials if self.calibration is None else self.calibration(potentials)

    def label_distribution(
        self, codes: torch.Tensor, batch_size: int | None = None, label_sampler: str | None = None
    ) -> LabelDistribution:
        """The labels given codes (B, *config.code_shape), see `encode`: what chains, losses and predictions use."""
        potentials = self.potentials(codes, batch_size)
        return self.head.distribution(potentials, label_sampler or self.config.label_sampler)

    def log_joint(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Unnormalised `log p(x, y_O)` (B,) of images (B, C, H, W) in [-1, 1], or of their codes where the energy is of
        these; labels (B, K) of -1 are missing and marginalised.
        """
        distribution = self.label_distribution(self.encode(pixel_values))
        return distribution.log_joint(self._checked(labels, len(pixel_values)))

    def log_marginal(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Unnormalised `log p(x)` (B,), as [`log_joint`]."""
        return self.label_distribution(self.encode(pixel_values)).log_marginal()

    def predict_proba(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """
        `p(y_k = v | x)` (B, K, V) of images (B, C, H, W), or `p(y_k = v | x, y_O)` of labels (B, K), -1 where missing.

        Exact for the head "product" and for few attributes, else by Gibbs sampling.
        """
        labels = None if labels is None else self._checked(labels, len(pixel_values))
        return self.label_distribution(self.encode(pixel_values)).marginal_logits(labels)[0].softmax(-1)

    @property
    def has_outlier_score(self) -> bool:
        """Whether it has one, with statistics of training images."""
        return self.outliers is not None and self.outliers.is_fitted

    def outlier_distance(self, pixel_values: torch.Tensor, quick: bool = False) -> torch.Tensor:
        """
        How strange images (B, C, H, W) in [-1, 1] are, (B,), 0 or more: see [`OutlierScore`]. With `quick` by fewer
        scores, ten times sooner: less sure, and on another scale.
        """
        if not self.has_outlier_score:
            raise ValueError("this model has no outlier score: set outlier_score in its config and train it")
        return self.outliers.distance(image_scores(self, pixel_values, quick), quick)

    def outlier_score(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The share (B,), 0 to 1, of training images that are less strange than images (B, C, H, W) in [-1, 1]."""
        distance = self.outlier_distance(pixel_values)  # which says so where there is none
        return self.outliers.percentile(distance)

    def expect_outlier_score(self, expect: bool = True) -> None:
        """Have an outlier score, which [`fit_outlier_score`] fits, or none; one that is there already stays."""
        self.config.outlier_score = expect
        if not expect:
            self.outliers: Any = None
        elif getattr(self, "outliers", None) is None:
            self.outliers = OutlierScore(num_scores(self.autoencoder is not None))

    def expect_calibration(self, expect: bool = True) -> None:
        """Have a [`Calibration`](calibration_jem.py), which changes nothing before it is fitted, or none."""
        self.config.calibrated = expect
        self.config.check_settings()
        self.calibration: Any = Calibration(self.config.num_values).to(self.device) if expect else None

    @torch.no_grad()
    def fit_outlier_score(self, images: torch.Tensor, batch_size: int = 250) -> None:
        """Take the statistics of training images (N, C, H, W), uint8 or in [-1, 1]; a thousand or more are enough."""
        parts = (to_pixels(batch.to(self.device)) for batch in images.split(batch_size))
        self.outliers.fit(torch.cat([image_scores(self, part) for part in parts]))

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        potentials_only: bool = False,
        codes: torch.Tensor | None = None,
    ) -> JemOutput | tuple:
        """
        Args:
            pixel_values (`torch.Tensor` of shape (B, C, H, W)): Images in [-1, 1].
            labels (`torch.LongTensor` of shape (B, K), *optional*): Value indices, -1 where missing.
            potentials_only (`bool`, defaults to False): Leave out all that sums over labels, as training does.
            codes (`torch.Tensor` of shape (B, *config.code_shape)): What `encode` makes of images, in their place.

        Raises:
            ValueError: images or labels of a wrong shape, or a label that its attribute does not have.
        """
        if codes is None:
            if pixel_values is None:
                raise ValueError("pixel_values are expected, images (B, C, H, W) in [-1, 1]: use JemImageProcessor")
            codes = self.encode(pixel_values)
        potentials = self.potentials(codes)
        output = JemOutput(potentials=potentials)
        if not potentials_only:
            labels = None if labels is None else self._checked(labels, len(codes))
            distribution = self.head.distribution(potentials)
            logits, _ = distribution.marginal_logits()
            loss = None
            if labels is not None:
                generator = torch.Generator(labels.device).manual_seed(0)  # draws the same missing labels each time
                loss = cross_entropy(distribution.conditional_logits(labels, generator), labels)
            energy = -(distribution.log_marginal() if labels is None else distribution.log_joint(labels))
            output = JemOutput(loss, self.log_odds(logits), energy, logits, potentials)
        return output.to_tuple() if return_dict is False else output

    def resize_attributes(
        self, attributes: list[str], attribute_values: dict[str, list[str]] | None = None
    ) -> "JemModel":
        """
        Add, drop and reorder attributes of a trained model, in place; before an optimiser or a trainer has it.

        - Attributes and values that stay keep their weights, wherever they stand.
        - A new attribute is uniform: `log p~(x, y)` of the others stays, `log p~(x)` changes by a constant.
        - A new value of an old attribute starts at the mean of the old values (Hewitt 2021, "Initializing New Word
          Embeddings for Pretrained Language Models"), 5 nats lower: `p(new|x)` is below `e^-5 / V_k` for every image.
          The heads "dot" and "mlp" cannot lower a value for all images: there it has a share like the old ones.
        - What a dropped attribute contributed to `log p~(x)` is lost. In heads with interactions, and in the model of
          the labels, the others stay as if it stood at the mean of its values.

        Args:
            attributes (`list[str]`): The new attributes, in order.
            attribute_values (`dict[str, list[str]]`, *optional*): As of [`JemConfig`], by default the old ones.

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


__all__ = ["JemModel"]
