"""The joint energy-based model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .backbone_jem import create_backbone, init_non_persistent_buffers
from .configuration_jem import CHOICES, JemConfig, nearest_name
from .heads_jem import HEADS, cross_entropy
from .hub_jem import AUTO_MAP, CUSTOM_PIPELINES, OnHub, copy_documents, save_code, source_folder, update_json
from .image_processing_jem import JemImageProcessor
from .label_distributions_jem import InteractingDistribution, ProductDistribution
from .label_prior_jem import PairwiseLabelPrior
from .sampling_jem import ChainSettings, flow_settings, initial_noise, run_chain

PUSH_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")


@dataclass
class JemOutput(ModelOutput):
    """
    Output of [`JemModel`].

    Args:
        loss (`torch.Tensor` of shape (1,), *optional*):
            Mean of `-log p(y_k|x)` over the labels that are present, in nats.
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


class JemModel(OnHub, PreTrainedModel):
    """
    One energy over images and attributes, `E(x, y) = -log p~(x, y)` (Kelly et al. 2021, arXiv 2108.04227).

    With the head "product" that is `-sum_k f_k(x)[y_k]`; see [`heads_jem`](heads_jem.py) for the others.

    It predicts (`predict_proba`), scores (`log_joint`, `log_marginal`) and, with a chain of
    [`sampling_jem`](sampling_jem.py), draws images.
    """

    config_class = JemConfig
    checkpoint_files = ("config.json", "model.safetensors")
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

    def _init_weights(self, module):
        init_non_persistent_buffers(module)  # and nothing else: timm and torch have initialised the rest

    def save_pretrained(self, save_directory, is_main_process: bool = True, *, code: bool = True, **kwargs):
        """Save weights and config and, unless `code` is False, what makes them work without `jem_hf`."""
        push = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        to_hub = kwargs.pop("push_to_hub", False)
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        if code and is_main_process:
            save_code(save_directory)
            update_json(
                Path(save_directory) / "config.json", {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
            )
        if to_hub and is_main_process:
            self.push_to_hub(push.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **push)

    def _add_documents(self, folder: Path) -> None:
        """The image processor; card and report, where the weights are still those that they speak of."""
        source = source_folder(self)
        if source is not None:
            copy_documents(source, folder)
        if source is not None and (source / "preprocessor_config.json").is_file():
            processor = JemImageProcessor.from_pretrained(source)
        else:
            size = self.config.image_size
            processor = JemImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        processor.save_pretrained(folder)

    def potentials(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the head makes of images (B, C, H, W) in [-1, 1], float32; f(x) (B, K, V) for the head "product"."""
        config = self.config
        expected = (config.num_channels, config.image_size, config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"images of shape (batch, {', '.join(map(str, expected))}) expected, not {tuple(pixel_values.shape)}: "
                "resize them with JemImageProcessor"
            )
        return self.head(self.backbone(pixel_values.to(self.dtype)))

    def label_distribution(self, pixel_values: torch.Tensor) -> ProductDistribution | InteractingDistribution:
        """The labels given images (B, C, H, W) in [-1, 1]: all that chains, losses and predictions ask for."""
        return self.head.distribution(self.potentials(pixel_values))

    def log_joint(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Unnormalised `log p(x, y_O)` (B,); labels (B, K) of -1 are missing and marginalised."""
        return self.label_distribution(pixel_values).log_joint(self._checked(labels))

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
        labels = None if labels is None else self._checked(labels)
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
            labels = None if labels is None else self._checked(labels)
            distribution = self.head.distribution(potentials)
            logits, _ = distribution.marginal_logits()
            output = JemOutput(
                loss=None if labels is None else cross_entropy(logits, labels),
                logits=self._log_odds(logits),
                energy=-(distribution.log_marginal() if labels is None else distribution.log_joint(labels)),
                attribute_logits=logits,
                potentials=potentials,
            )
        return output if return_dict is None or return_dict else output.to_tuple()

    @torch.no_grad()
    def generate(
        self,
        labels: torch.Tensor,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        free_attributes: str | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        callback=None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draw images for requests; what is not given is as the config says.

        Args:
            labels (`torch.LongTensor` of shape (B, K)): What each image shows, -1 where that is free.
            num_inference_steps (`int`): Network evaluations.
            guidance_scale (`float`): g in `log p(x) + g log p(y|x)`; more obeys more and varies less.
            free_attributes (`str`): `"marginalise"`, `"gibbs"` or `"complete"`, see [`JemConfig`].
            noise (`torch.Tensor` of shape (B, C, H, W)): Start of the chain, drawn if not given.
            generator (`torch.Generator`): Source of all randomness, on the device of the model.
            callback: See [`run_chain`](sampling_jem.py).

        Returns:
            Images (B, C, H, W), about [-1, 1], and the labels (B, K) that they were drawn for (-1: marginalised).
        """
        config = self.config
        free_attributes = free_attributes or config.free_attributes
        if free_attributes not in CHOICES["free_attributes"]:
            known = CHOICES["free_attributes"]
            raise ValueError(f"unknown free_attributes {free_attributes!r}{nearest_name(free_attributes, known)}")
        labels = self._checked(labels.to(self.device))
        if free_attributes == "complete":
            labels = self.label_prior.sample(labels, generator=generator)
        if noise is None:
            shape = (len(labels), config.num_channels, config.image_size, config.image_size)
            noise = initial_noise(config.sampler, shape, self.device, generator)
        settings = self.chain_settings(num_inference_steps, guidance_scale, gibbs=free_attributes == "gibbs")
        return run_chain(self.label_distribution, noise, labels, settings, generator, callback)

    def chain_settings(self, num_steps: int | None = None, guidance_scale: float | None = None, gibbs=False):
        """[`ChainSettings`] of the config's sampler, with its defaults where an argument is None."""
        config = self.config
        num_steps = config.num_inference_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise ValueError(f"num_inference_steps is 1 or more, not {num_steps}")
        guidance_scale = config.guidance_scale if guidance_scale is None else guidance_scale
        kwargs = dict(num_steps=num_steps, guidance_scale=guidance_scale, gibbs_every=int(gibbs))
        if config.sampler == "flow":
            return flow_settings(flow_time=config.flow_time, **kwargs)
        return ChainSettings(step_size=config.step_size, noise_scale=config.noise_scale, **kwargs)

    def _log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        columns = []
        for k, name in enumerate(self.config.attributes):
            values = logits[:, k, : self.config.num_values[k]]
            if name not in self.config.attribute_values:
                columns.append(values[:, 1] - values[:, 0])
                continue
            for v in range(values.shape[1]):
                others = torch.cat([values[:, :v], values[:, v + 1 :]], dim=1)
                columns.append(values[:, v] - others.logsumexp(1))
        return torch.stack(columns, dim=1)

    def _checked(self, labels: torch.Tensor) -> torch.Tensor:
        num_values = torch.tensor(self.config.num_values, device=labels.device)
        if labels.ndim != 2 or labels.shape[1] != len(num_values) or labels.is_floating_point():
            raise ValueError(
                f"labels are integers of shape (batch, {len(num_values)}), one column for each attribute, "
                f"not {labels.dtype} {tuple(labels.shape)}"
            )
        wrong = ((labels < -1) | (labels >= num_values)).nonzero()
        if len(wrong):
            row, k = wrong[0].tolist()
            raise ValueError(
                f"label {labels[row, k].item()} of image {row} is not a value of {self.config.attributes[k]!r}: "
                f"use 0 to {num_values[k].item() - 1}, or -1 where the label is missing"
            )
        return labels.long()


__all__ = ["JemModel"]
