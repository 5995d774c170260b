"""Editing images: what a joint energy does with a request and an image."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .ancestral_jem import first_step, replay
from .chains_jem import Schedule, progress_of
from .generation_jem import SamplingMixin
from .sampling_jem import FLOW_TIME, Condition, ConditionalDensity, flow_steps, run_chain
from .values_jem import as_int


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
EDITS_BY_REPLAY = Edits(0.8, 32.0, 4.0, 24)


class EditingMixin(SamplingMixin):
    """What a model that draws images can do with given ones."""

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

        The end of a chain starts at the image with a share of noise (Meng et al. 2022, arXiv 2108.01073), and follows
        `log p(x) + g log p(asked|x) + h log p(others|x)`, the others as the model sees them in the image. Where the
        config's sampler is "ancestral" it uses the noise again that would have led to the image, which keeps all that
        the request does not touch: see [`replay`](ancestral_jem.py).
        With a mask it draws only inside it (in-painting), from noise, around what is known: pixels outside stay. Where
        the energy is one of codes, all codes that the mask touches are drawn anew.

        Other defaults are those of `edits`.

        Args:
            pixel_values (`torch.Tensor` of shape (B, C, H, W)): Images in [-1, 1].
            labels (`torch.LongTensor` of shape (B, K)): What shall change, -1 for all that shall not.
            strength (`float`): Share of noise at the start, in (0, 1]; a mask makes it 1.
            mask (`torch.BoolTensor` of shape (B, 1, H, W)): True where pixels are drawn anew.
            num_inference_steps (`int`):
                From pure noise; less noise takes fewer. With a mask the config's, and of Langevin chains. A flow is
                short and without noise, whatever the config has for drawings.
            guidance_scale (`float`): g, with a mask by default that of the config.
            hold_scale (`float`): h, with a mask by default 0; above 0 it needs the head "product".
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
        condition, before = Condition(labels), Condition(torch.full_like(labels, -1))
        if hold_scale:
            seen = label_distribution(known).marginal_logits()[0].argmax(-1)
            weights = torch.where(labels >= 0, guidance_scale, hold_scale)
            before = Condition(seen, torch.full_like(weights, hold_scale))
            condition, guidance_scale = Condition(torch.where(labels >= 0, labels, seen), weights), 1.0
        if noise is None:
            noise = self.initial_noise(len(known), generator)
        if mask is None and self.config.sampler == "ancestral":
            density = partial(ConditionalDensity, label_distribution, generator=generator)
            codes, _ = replay(
                density(before),
                density(condition, guidance_scale),
                known,
                noise,
                num_steps=self._num_edit_steps(num_inference_steps),
                strength=strength,
                generator=generator,
                callback=self._seeing_images(callback),
            )
            return self._decoded(codes, batch_size), condition.labels
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

    @property
    def edits(self) -> Edits:
        """How images are edited where nothing else is asked for."""
        if self.config.sampler == "ancestral":
            return EDITS_BY_REPLAY
        return EDITS_OF_PIXELS if self.config.autoencoder is None else EDITS_OF_CODES

    def edit_settings(
        self, strength: float | None, masked: bool, num_steps: int | None = None, guidance_scale: float | None = None
    ) -> dict:
        """Arguments of [`run_chain`](sampling_jem.py) for [`edit`]: the end of a chain, from this much noise on."""
        if self.config.sampler == "ancestral" and not masked:
            strength, num_steps = strength or self.edits.strength, self._num_edit_steps(num_steps)
            return {"num_steps": num_steps - first_step(num_steps, strength)}
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

    def _num_edit_steps(self, num_steps: int | None) -> int:
        return as_int("num_inference_steps", self.edits.steps if num_steps is None else num_steps)

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
