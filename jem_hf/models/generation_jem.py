"""Drawing, editing and mixing images: what a joint energy does with a request."""

import inspect
from dataclasses import replace
from functools import partial
from math import isfinite

import torch

from .configuration_jem import CHOICES, nearest_name
from .image_samplers_jem import IMAGE_SAMPLERS
from .mixed_hmc_jem import mixed_hmc
from .sampling_jem import (
    NEVER,
    ChainSettings,
    Condition,
    as_condition,
    flow_settings,
    initial_noise,
    run_chain,
    run_sampler,
)

EDIT_SCALE = 32.0  # of what an edit changes
EDIT_STEPS = 1.5  # times those of the config's flow: at such a scale longer ones overshoot
OF_GENERATE = (
    "log_density",
    "log_joint",
    "x",
    "labels",
    "num_values",
    "num_steps",
    "start",
    "generator",
    "callback",
    "kwargs",
)
OF_HMC = ("temperature", "bounds", "tolerance")  # that mala hands on
HOLD_SCALE = 2.0  # of what it leaves as it is


class SamplingMixin:
    """What a model with `config`, `label_prior` and `label_distribution` can draw."""

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
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        callback=None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draw images for requests; what is not given is as the config says.

        Args:
            labels (`torch.LongTensor` of shape (B, K)):
                What each image shows, -1 where that is free; or a [`Condition`](sampling_jem.py).
            num_inference_steps (`int`): Steps of the chain; for all but the Hamiltonian samplers network evaluations.
            guidance_scale (`float`): g in `log p(x) + g log p(y|x)`; more obeys more and varies less.
            free_attributes (`str`): `"marginalise"`, `"gibbs"` or `"complete"`, see [`JemConfig`].
            sampler (`str`):
                `"flow"` or `"langevin"` as the config has them; or one of [`IMAGE_SAMPLERS`](image_samplers_jem.py) or
                `"mixed_hmc"`, with its own arguments, such as the step size, in `sampler_kwargs`.
            noise (`torch.Tensor` of shape (B, C, H, W)): Start of the chain, drawn if not given.
            generator (`torch.Generator`): Source of all randomness, on the device of the model.
            batch_size (`int`): Images that the network sees at once, see [`JemModel.potentials`].
            callback: See [`run_chain`](sampling_jem.py).

        Returns:
            Images (B, C, H, W), about [-1, 1], and the labels (B, K) that they were drawn for (-1: marginalised).

        Raises:
            ValueError: an unknown sampler or treatment of free attributes, or an argument that a sampler lacks.
        """
        config, sampler = self.config, sampler or self.config.sampler
        free_attributes = _known("free_attributes", free_attributes or config.free_attributes)
        gibbs = free_attributes == "gibbs"
        condition = self.condition(labels, complete=free_attributes == "complete", generator=generator)
        if gibbs and condition.labels.ndim == 3:
            raise ValueError(
                "alternatives are not drawn along the chain: set free_attributes to complete or marginalise"
            )
        if noise is None:
            shape = (len(condition.labels), config.num_channels, config.image_size, config.image_size)
            noise = initial_noise(config.sampler, shape, self.device, generator)
        settings = self.chain_settings(num_inference_steps, guidance_scale, gibbs, sampler)
        samplers = ("flow", *IMAGE_SAMPLERS, "mixed_hmc")
        if sampler not in samplers:
            raise ValueError(f"unknown sampler {sampler!r}{nearest_name(sampler, samplers)}")
        label_distribution = partial(self.label_distribution, batch_size=batch_size)
        if sampler in CHOICES["sampler"] and not sampler_kwargs:
            return run_chain(label_distribution, noise, condition, settings, generator, callback)
        sampler_kwargs = _arguments(sampler, sampler_kwargs or {})
        if sampler == "mixed_hmc":
            return self._mixed_hmc(label_distribution, noise, condition, settings, generator, callback, sampler_kwargs)
        return run_sampler(
            sampler,
            label_distribution,
            noise,
            condition,
            num_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
            gibbs_every=settings.gibbs_every,
            generator=generator,
            callback=callback,
            **sampler_kwargs,
        )

    @torch.no_grad()
    def edit(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        *,
        strength: float = 0.5,
        mask: torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        hold_scale: float | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        callback=None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Change attributes of images; everything else is held by the energy.

        The chain of the config's sampler starts at the image with a share of noise (Meng et al. 2022, arXiv
        2108.01073), and ascends `log p(x) + g log p(asked|x) + h log p(others|x)`, the others being all other
        attributes as the model sees them in the image. With a mask it draws only inside it (in-painting), from noise,
        around what is known.

        Args:
            pixel_values (`torch.Tensor` of shape (B, C, H, W)): Images in [-1, 1].
            labels (`torch.LongTensor` of shape (B, K)): What shall change, -1 for all that shall not.
            strength (`float`): Share of noise at the start, in (0, 1]; a mask makes it 1.
            mask (`torch.BoolTensor` of shape (B, 1, H, W)): True where pixels are drawn anew.
            num_inference_steps (`int`):
                Steps from pure noise, by default the config's, without a mask one and a half times those of a flow;
                less noise takes fewer.
            guidance_scale (`float`): g, by default 32, with a mask that of the config.
            hold_scale (`float`): h, by default 2, with a mask 0; above 0 it needs the head "product".
            noise, generator, batch_size, callback: See [`generate`].

        Returns:
            Images (B, C, H, W), about [-1, 1], and the labels (B, K) that they were drawn for.

        Raises:
            ValueError: a strength out of its range, or a mask of another shape.
        """
        strength = 1.0 if mask is not None else strength
        if not 0 < strength <= 1:
            raise ValueError(f"strength is above 0 and at most 1, not {strength}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape[-2:] != pixel_values.shape[-2:]):
            raise ValueError(f"mask is bool of shape (B, 1, {self.config.image_size}, {self.config.image_size})")
        if hold_scale is None:
            hold_scale = HOLD_SCALE if mask is None else 0.0
        if guidance_scale is None:
            guidance_scale = EDIT_SCALE if mask is None else self.config.guidance_scale
        labels = self._checked(labels.to(self.device))
        label_distribution = partial(self.label_distribution, batch_size=batch_size)
        weights = torch.where(labels >= 0, guidance_scale, hold_scale)
        if hold_scale:
            labels = torch.where(labels >= 0, labels, label_distribution(pixel_values).marginal_logits()[0].argmax(-1))
            condition, guidance_scale = Condition(labels, weights), 1.0
        else:
            condition = Condition(labels)
        if noise is None:
            noise = initial_noise(self.config.sampler, pixel_values.shape, self.device, generator)
        settings = self.edit_settings(strength, mask is not None, num_inference_steps, guidance_scale)

        def known(x, progress):
            return torch.where(mask, x, torch.lerp(noise, pixel_values, min(1.0, progress / self._time_of_data())))

        start = torch.lerp(noise, pixel_values, 1 - strength)
        project = None if mask is None else known
        return run_chain(label_distribution, start, condition, settings, generator, callback, project)

    def mixture(self, first: torch.Tensor, second: torch.Tensor, shares: torch.Tensor) -> Condition:
        """
        Between two requests: `(1 - s) log p~(x, first) + s log p~(x, second)`, for [`generate`].

        Args:
            first, second (`torch.LongTensor` of shape (B, K)): Labels, -1 where free.
            shares (`torch.Tensor` of shape (B,)): s in [0, 1].
        """
        labels = torch.stack([self._checked(each.to(self.device)) for each in (first, second)], dim=1)
        return Condition(labels, shares=torch.stack([1 - shares, shares], dim=1).to(self.device))

    def chain_settings(
        self,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        gibbs: bool = False,
        sampler: str | None = None,
    ) -> ChainSettings:
        """[`ChainSettings`] of a sampler, with the config's defaults where an argument is None."""
        config = self.config
        num_steps = config.num_inference_steps if num_steps is None else num_steps
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"num_inference_steps is a whole number from 1 on, not {num_steps!r}")
        guidance_scale = config.guidance_scale if guidance_scale is None else guidance_scale
        if not isinstance(guidance_scale, int | float) or not isfinite(guidance_scale):
            raise ValueError(f"guidance_scale is a finite number, not {guidance_scale!r}")
        kwargs = dict(num_steps=num_steps, guidance_scale=guidance_scale, gibbs_every=int(gibbs))
        if (sampler or config.sampler) == "flow":
            return flow_settings(flow_time=config.flow_time, **kwargs)
        return ChainSettings(step_size=config.step_size, noise_scale=config.noise_scale, **kwargs)

    def edit_settings(
        self, strength: float, masked: bool, num_steps: int | None = None, guidance_scale: float | None = None
    ) -> ChainSettings:
        """[`ChainSettings`] of [`edit`]: the end of the chain, from a share `strength` of noise on."""
        if num_steps is None and not masked and self.config.sampler == "flow":
            num_steps = round(EDIT_STEPS * self.config.num_inference_steps)
        settings = self.chain_settings(num_steps, guidance_scale)
        steps_done = round((1 - strength) * settings.num_steps * self._time_of_data())
        return replace(settings, num_steps=max(1, settings.num_steps - steps_done))

    def condition(self, labels: torch.Tensor | Condition, complete: bool = False, generator=None) -> Condition:
        """Labels checked, and completed by the model of the labels if so wished: every alternative on its own."""
        condition = as_condition(labels)
        labels = condition.labels.to(self.device)
        never = labels == NEVER
        rows = self._checked(labels.masked_fill(never, -1).flatten(0, -2))
        if complete:
            rows = self.label_prior.sample(rows, generator=generator)
        return replace(condition, labels=rows.view_as(labels).masked_fill(never, NEVER))

    def _mixed_hmc(self, label_distribution, x, condition, settings, generator, callback, sampler_kwargs):
        """Images and free labels in one chain."""
        if condition.labels.ndim == 3 or condition.weights is not None:
            raise ValueError("mixed_hmc draws labels: it takes neither alternatives nor weights")
        guidance_scale = settings.guidance_scale

        def log_joint(x, encoded):
            distribution = label_distribution(x)
            joint = distribution.score(encoded)
            if guidance_scale == 1:
                return joint
            return guidance_scale * joint + (1 - guidance_scale) * distribution.log_marginal()

        x, labels, _ = mixed_hmc(
            log_joint,
            x,
            condition.labels,
            self.config.num_values,
            num_steps=settings.num_steps,
            generator=generator,
            callback=callback and (lambda x, labels, info: callback(x, info)),
            **sampler_kwargs,
        )
        return x, labels

    def _time_of_data(self) -> float:
        """The share of the chain after which a flow that kept its first pace would be at the data; 1 for Langevin."""
        return 1 / max(1.0, self.config.flow_time) if self.config.sampler == "flow" else 1.0


def _known(field: str, value: str) -> str:
    if value not in CHOICES[field]:
        raise ValueError(f"unknown {field} {value!r}{nearest_name(value, CHOICES[field])}")
    return value


def _arguments(sampler: str, given: dict) -> dict:
    """`sampler_kwargs` that the sampler takes, with all that it needs."""
    if sampler == "flow":
        raise ValueError("the sampler 'flow' takes no sampler_kwargs: 'gradient_flow' does")
    function = mixed_hmc if sampler == "mixed_hmc" else IMAGE_SAMPLERS[sampler]
    parameters = inspect.signature(function).parameters
    known = {*parameters, *(OF_HMC if sampler == "mala" else ())} - {*OF_GENERATE}
    for name, value in given.items():
        if name not in known:
            nearest = nearest_name(str(name), sorted(known))
            raise ValueError(f"the sampler {sampler!r} has no argument {name!r}{nearest}")
        if isinstance(value, str | dict | None):
            raise ValueError(f"{name} of the sampler {sampler!r} is a number, not {value!r}")
    for name, parameter in parameters.items():
        needed = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if needed and name not in ("num_steps", *given):
            raise ValueError(f"the sampler {sampler!r} needs {name}: pass sampler_kwargs={{{name!r}: ...}}")
    return given
