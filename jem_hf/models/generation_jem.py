"""Drawing and mixing images: what a joint energy does with a request."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from .chains_jem import linear
from .configuration_jem import CHOICES, JemConfig
from .label_distributions_jem import LabelDistribution
from .label_prior_jem import PairwiseLabelPrior
from .sampling_jem import NEVER, SAMPLERS, Condition, check_arguments, flow_steps, initial_noise, run_chain
from .values_jem import as_choice, as_float, as_int


class SamplingMixin:
    """What a model with `config`, `label_prior` and `label_distribution` can draw."""

    config: JemConfig
    device: torch.device
    label_prior: PairwiseLabelPrior
    label_distribution: Callable[..., LabelDistribution]
    _checked: Callable[..., torch.Tensor]
    _check_codes: Callable[[torch.Tensor], None]
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def generate(
        self,
        labels: torch.Tensor | Condition,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        free_attributes: str | None = None,
        sampler: str | None = None,
        sampler_kwargs: dict | None = None,
        label_sampler: str | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        callback: Callable | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draw images for requests; what is not given is as the config says.

        Args:
            labels: What each image shows, (B, K) with -1 where free, or a [`Condition`](sampling_jem.py).
            num_inference_steps, guidance_scale, free_attributes, label_sampler:
                See [`JemConfig`]; a higher scale obeys more and varies less.
            sampler (`str`), sampler_kwargs (`dict`):
                One of `SAMPLERS` (sampling_jem.py), and its own arguments, which stand in for those of the config.
            noise (`torch.Tensor` of shape (B, *config.code_shape)): Start of the chain, drawn if not given.
            generator (`torch.Generator`): Source of all randomness, on the device of the model.
            batch_size (`int`): Images that the network sees at once, see [`JemModel.potentials`].
            callback: Called with the images and [`ChainInfo`](chains_jem.py) before each step; True ends the chain.

        Returns:
            Images (B, C, H, W), about [-1, 1], and the labels (B, K) that they were drawn for (-1: marginalised).

        Raises:
            ValueError: an unknown sampler or treatment of free attributes, or an argument that a sampler lacks.
        """
        config = self.config
        free_attributes = free_attributes or config.free_attributes
        label_sampler = label_sampler or config.label_sampler
        as_choice("free_attributes", free_attributes, CHOICES["free_attributes"])
        as_choice("label_sampler", label_sampler, CHOICES["label_sampler"])
        settings = self.chain_settings(num_inference_steps, guidance_scale, sampler, sampler_kwargs)
        condition = self.condition(labels, complete=free_attributes == "complete", generator=generator)
        if free_attributes == "gibbs" and condition.labels.ndim == 3:
            raise ValueError("alternatives are not drawn along the chain: free_attributes is complete or marginalise")
        if noise is None:
            noise = self.initial_noise(len(condition.labels), generator)
        self._check_codes(noise)
        codes, labels = run_chain(
            label_distribution=partial(self.label_distribution, batch_size=batch_size, label_sampler=label_sampler),
            x=noise,
            condition=condition,
            gibbs_every=int(free_attributes == "gibbs"),
            generator=generator,
            callback=self._seeing_images(callback),
            **settings,
        )
        return self._decoded(codes, batch_size), labels

    def initial_noise(self, num: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Where chains of `num` images start, (num, *config.code_shape); see `sampling_jem.initial_noise`."""
        kind = "flow" if self.config.autoencoder else self.config.sampler
        return initial_noise(kind, (num, *self.config.code_shape), self.device, generator)

    def _decoded(self, codes: torch.Tensor, batch_size: int | None) -> torch.Tensor:
        """Images, the network seeing at most `batch_size` at once."""
        return torch.cat([self.decode(part) for part in codes.split(batch_size or len(codes))])

    def _seeing_images(self, callback: Callable | None) -> Callable | None:
        """A callback that is called with images where the chain is one of codes."""
        if callback is None or self.config.autoencoder is None:
            return callback
        return lambda codes, *rest: callback(self.decode(codes), *rest)

    def mixture(self, first: torch.Tensor, second: torch.Tensor, shares: torch.Tensor) -> Condition:
        """Of labels (B, K), -1 where free, and shares s (B,): `(1 - s) log p~(x, first) + s log p~(x, second)`."""
        labels = torch.stack([self._checked(each.to(self.device)) for each in (first, second)], dim=1)
        return Condition(labels, shares=torch.stack([1 - shares, shares], dim=1).to(self.device))

    def chain_settings(
        self,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        sampler_kwargs: dict | None = None,
    ) -> dict:
        """Arguments of [`run_chain`](sampling_jem.py), the config's where one is None. Raises `ValueError`."""
        config = self.config
        sampler = sampler or config.sampler
        as_choice("sampler", sampler, SAMPLERS)
        num_steps = as_int("num_inference_steps", config.num_inference_steps if num_steps is None else num_steps)
        scale = as_float("guidance_scale", config.guidance_scale if guidance_scale is None else guidance_scale)
        defaults: dict[str, dict] = {
            "flow": {
                "step_size": flow_steps(num_steps, config.flow_time),
                "temperature": linear(config.flow_temperature, 0.0),
            },
            "ancestral": {"eta": config.eta, "reach": config.reach},
            "langevin": {"step_size": config.step_size, "noise_scale": config.noise_scale},
        }
        if self.bounds is not None:
            for name in ("ancestral", "langevin"):
                defaults[name]["bounds"] = self.bounds
        settings = defaults.get(sampler, {}) | (sampler_kwargs or {})
        check_arguments(sampler, settings)
        return {"sampler": sampler, "num_steps": num_steps, "guidance_scale": scale, **settings}

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of what the energy sees: pixels are in [-1, 1], codes anywhere."""
        return (-1.0, 1.0) if self.config.autoencoder is None else None

    def condition(
        self, labels: torch.Tensor | Condition, complete: bool = False, generator: torch.Generator | None = None
    ) -> Condition:
        """Labels checked, and completed by the model of the labels if so wished: every alternative on its own."""
        condition = Condition(labels) if isinstance(labels, torch.Tensor) else labels
        labels = condition.labels.to(self.device)
        never = labels == NEVER
        rows = self._checked(labels.masked_fill(never, -1).flatten(0, -2))
        if complete:
            rows = self.label_prior.sample(rows, generator=generator)
        return replace(condition, labels=rows.view_as(labels).masked_fill(never, NEVER))
