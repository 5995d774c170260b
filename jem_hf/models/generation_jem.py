"""Drawing, editing and mixing images: what a joint energy does with a request."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .chains_jem import Schedule, linear, progress_of
from .configuration_jem import CHOICES, JemConfig
from .label_distributions_jem import LabelDistribution
from .label_prior_jem import PairwiseLabelPrior
from .sampling_jem import FLOW_TIME, NEVER, SAMPLERS, Condition, check_arguments, flow_steps, initial_noise, run_chain
from .values_jem import as_choice, as_float, as_int


class Edits(NamedTuple):
    """
    How images are edited: the share of noise at the start, what the scales of what is asked for and of all others are,
    and how many steps it takes from pure noise, for so steep an energy overshoots in longer ones. docs/how_to_edit.md
    has the measurements.
    """

    strength: float
    guidance_scale: float
    hold_scale: float
    steps: int


EDITS_OF_PIXELS = Edits(0.5, 32.0, 2.0, 24)
EDITS_OF_CODES = Edits(0.7, 64.0, 4.0, 36)


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

    @torch.no_grad()
    def edit(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        *,
        strength: float | None = None,
        mask: torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        hold_scale: float | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        callback: Callable | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Change attributes of images; everything else is held by the energy.

        The end of the config's chain starts at the image with a share of noise (Meng et al. 2022, arXiv 2108.01073),
        and ascends `log p(x) + g log p(asked|x) + h log p(others|x)`, the others as the model sees them in the image.
        With a mask it draws only inside it (in-painting), from noise, around what is known: pixels outside stay. Where
        the energy is one of codes, all codes that the mask touches are drawn anew.

        Args:
            pixel_values (`torch.Tensor` of shape (B, C, H, W)): Images in [-1, 1].
            labels (`torch.LongTensor` of shape (B, K)): What shall change, -1 for all that shall not.
            strength (`float`): Share of noise at the start, in (0, 1], by default .5, of codes .7; a mask makes it 1.
            mask (`torch.BoolTensor` of shape (B, 1, H, W)): True where pixels are drawn anew.
            num_inference_steps (`int`):
                From pure noise; less noise takes fewer. By default 24, of codes 36; of Langevin chains, and with a
                mask, the config's. A flow is short and without noise, whatever the config has for drawings.
            guidance_scale (`float`): g, by default 32, of codes 64, with a mask that of the config.
            hold_scale (`float`): h, by default 2, of codes 4, with a mask 0; above 0 it needs the head "product".
            noise, generator, batch_size, callback: See [`generate`].

        Returns:
            Images (B, C, H, W), about [-1, 1], and the labels (B, K) that they were drawn for.

        Raises:
            ValueError: a strength out of its range, or a mask of another shape.
        """
        known = self.encode(pixel_values)
        strength = 1.0 if mask is not None else self.edits.strength if strength is None else strength
        if not 0 < strength <= 1:
            raise ValueError(f"strength is above 0 and at most 1, not {strength}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape[-2:] != pixel_values.shape[-2:]):
            raise ValueError(f"mask is bool of shape (B, 1, {self.config.image_size}, {self.config.image_size})")
        default = self.edits
        if mask is not None:
            default = default._replace(guidance_scale=self.config.guidance_scale, hold_scale=0.0)
        guidance_scale = default.guidance_scale if guidance_scale is None else guidance_scale
        hold_scale = default.hold_scale if hold_scale is None else hold_scale
        labels = self._checked(labels.to(self.device))
        label_distribution = partial(self.label_distribution, batch_size=batch_size)
        condition = Condition(labels)
        if hold_scale:
            seen = label_distribution(known).marginal_logits()[0].argmax(-1)
            weights = torch.where(labels >= 0, guidance_scale, hold_scale)
            condition, guidance_scale = Condition(torch.where(labels >= 0, labels, seen), weights), 1.0
        if noise is None:
            noise = self.initial_noise(len(known), generator)
        settings = self.edit_settings(strength, mask is not None, num_inference_steps, guidance_scale)
        if mask is not None:
            way, at_data = self._way(settings)
            inside = F.adaptive_max_pool2d(mask.float(), known.shape[-2:]) > 0

            def project(x, step):  # what is outside the mask is on its way from noise to the image
                return torch.where(inside, x, torch.lerp(noise, known, min(1.0, way[step] / at_data)))

            settings["project"] = project
        codes, labels = run_chain(
            label_distribution=label_distribution,
            x=torch.lerp(noise, known, 1 - strength),
            condition=condition,
            generator=generator,
            callback=self._seeing_images(callback),
            **settings,
        )
        x = self._decoded(codes, batch_size)
        return x if mask is None else torch.where(mask, x, pixel_values), labels

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
    def edits(self) -> Edits:
        """How images are edited where nothing else is asked for."""
        return EDITS_OF_PIXELS if self.config.autoencoder is None else EDITS_OF_CODES

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of what the energy sees: pixels are in [-1, 1], codes anywhere."""
        return (-1.0, 1.0) if self.config.autoencoder is None else None

    def edit_settings(
        self, strength: float | None, masked: bool, num_steps: int | None = None, guidance_scale: float | None = None
    ) -> dict:
        """Arguments of [`run_chain`](sampling_jem.py) for [`edit`]: the end of a chain, from this much noise on."""
        is_flow = self.config.sampler != "langevin"
        if num_steps is None and not masked and is_flow:
            num_steps = self.edits.steps
        settings = self.chain_settings(num_steps, guidance_scale, "flow" if is_flow else None)
        if is_flow:  # short and cold: what is kept of an image would be lost in noise
            time = min(self.config.flow_time, FLOW_TIME)
            settings |= {"step_size": flow_steps(settings["num_steps"], time), "temperature": 0.0}
        way, at_data = self._way(settings)
        strength = 1.0 if masked else self.edits.strength if strength is None else strength
        done = [share for share in way[:-1] if share <= (1 - strength) * at_data]
        return _end_of(settings, len(done))

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

    def _way(self, settings: dict) -> tuple[list[float], float]:
        """
        The share of the way that is done after each step, all of it where the steps are 0; and the share at which a
        flow that kept its first pace would be at the data, 1 for Langevin.
        """
        num_steps, size = settings["num_steps"], settings["step_size"]
        sizes = [size(progress_of(step, num_steps)) if callable(size) else size for step in range(num_steps)]
        total = sum(sizes)
        at_data = 1 / max(1.0, total) if settings["sampler"] == "flow" else 1.0
        return [sum(sizes[: step + 1]) / total if total else 1.0 for step in range(num_steps)], at_data


def _end_of(settings: dict, first: int) -> dict:
    """The same chain from step `first` on, its schedules going on where they were."""
    num_steps = settings["num_steps"]
    low, high = progress_of(first, num_steps), progress_of(num_steps - 1, num_steps)

    def rest(schedule: Schedule) -> Schedule:
        # the progress of a single step is .5
        return lambda progress: schedule(low + (high - low) * progress if high > low else high)

    schedules = {name: rest(value) for name, value in settings.items() if callable(value)}
    return settings | schedules | {"num_steps": num_steps - first}
