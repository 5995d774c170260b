"""`pipeline("attribute-conditional-generation")`: requests and noise, a chain, images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import Pipeline

from .image_processing_jem import (
    ImageSource,
    JemImageProcessor,
    cropped,
    cut_square,
    open_image,
    read_image,
    subject_square,
    to_mask,
)
from .requests_jem import Composition, Request, parse_composition, parse_request
from .sampling_jem import NEVER, Condition
from .values_jem import as_float, as_int, as_python, nearest_name, shown, value_of

BATCH_SIZE = 64
MAX_SEED = 2**64 - 1
WHOLE_NUMBERS = ("num_images", "num_candidates", "num_inference_steps", "batch_size")
OF_DRAWINGS = ("free_attributes", "sampler", "sampler_kwargs", "label_sampler")
OF_EDITS = ("strength", "hold_scale", "mask", "crop_to")
OF_ALL = (*WHOLE_NUMBERS, "guidance_scale", "to", "image", "seed", "generator", "callback", "outlier_score")


class AttributeConditionalGenerationPipeline(Pipeline):
    """
    Draws images for any combination of attributes, and edits images. Threads can share one: a call changes nothing.

    ```python
    >>> generate = pipeline("attribute-conditional-generation")
    >>> generate("Eyeglasses & (Beard | Moustache) & ~Hat", num_images=4)[0]["image"]
    >>> generate("Smiling & ~Eyeglasses", image="face.png")[0]["image"]
    >>> generate("Smiling", to="~Smiling & Hat", num_images=8)
    ```
    """

    _load_processor = _load_image_processor = _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = _load_tokenizer = False  # type: ignore[assignment]
    model: Any  # a JemModel

    def __call__(self, requests: Request | list[Request], batch_size: int | None = None, **kwargs):
        """
        Draw images.

        Args:
            requests (`str`, `dict` or a list of either):
                Such as `"Eyeglasses & (Beard | ~Hat)"`, see [`parse_composition`](requests_jem.py); `""` leaves all
                open.
            batch_size (`int`, defaults to 64):
                Images that the network sees at once: it changes no result, and is halved until the memory suffices.
            num_images (`int`, defaults to 1): Images for each request.
            num_candidates (`int`, defaults to 1):
                Images drawn for each one that is returned: those of the highest `log p(y|x)`, highest first.
            num_inference_steps, guidance_scale, free_attributes, sampler, sampler_kwargs, label_sampler:
                See [`JemModel.generate`], of edits [`JemModel.edit`].
            to (`str` or `dict`): Another request: the images go from the one to it by equal steps, from one noise.
            image (`PIL.Image`, path, URL, array or tensor):
                Edited as each request says, what it does not name being held; see [`open_image`].
            mask (as `image`): Of the image's size, white where pixels are drawn anew.
            crop_to (`Sequence[float]`): The square of the image that is edited, see [`square_at`].
            strength, hold_scale (`float`): See [`JemModel.edit`].
            seed (`int`) or generator (`torch.Generator`): Of all randomness; every request starts from one seed.
            outlier_score (`bool`, defaults to False): Add the `outlier_score` of each image, where the model has it.
            return_tensors (`bool`, defaults to False): Return `pixel_values` (C, H, W) in [-1, 1], not PIL images.
            callback: Called with the images (B, C, H, W) and [`ChainInfo`] before each step; True stops the chain.

        Returns:
            For each request a list of dicts: `image` (or `pixel_values`), `energy` E(x, y) of image and request,
            `probabilities` that the model sees in the image (p(True) of a binary attribute, a dict of others) and
            `attributes`, what it was drawn for.

        Raises:
            ValueError: an empty list, an unknown attribute or value, a contradiction, an argument out of its range.
        """
        if batch_size is None:
            batch_size = BATCH_SIZE if self._batch_size is None else self._batch_size
        _, forward, postprocess = self._sanitize_parameters(batch_size=batch_size, **kwargs)
        forward, postprocess = self._forward_params | forward, self._postprocess_params | postprocess
        is_one = isinstance(requests, str) or hasattr(requests, "keys") or not hasattr(requests, "__iter__")
        given: list[Any] = [requests] if is_one else list(requests)
        compositions = [parse_composition(each, self.model.config) for each in given]
        if "to" in forward or "image" in forward:
            for each in given:
                parse_request(each, self.model.config)  # refuses alternatives and weights
        if not compositions:
            raise ValueError("no request to draw: give one such as 'Eyeglasses & ~Beard'")
        together = max(1, forward["batch_size"] // (forward.get("num_images", 1) * forward.get("num_candidates", 1)))
        drawn = []
        for start in range(0, len(compositions), together):
            drawn += self.run_single(compositions[start : start + together], {}, forward, postprocess)
        return drawn[0] if is_one else drawn

    def save_pretrained(self, save_directory, **kwargs):
        """Save the model, with all that this pipeline needs to be loaded from there."""
        self.model.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id, **kwargs):
        """Upload the model, see [`JemModel.push_to_hub`]."""
        return self.model.push_to_hub(repo_id, **kwargs)

    def _sanitize_parameters(self, return_tensors: bool | None = None, **given):
        given = _checked({name: value for name, value in given.items() if value is not None})
        if given.get("outlier_score") and not self.model.has_outlier_score:
            raise ValueError("this model has no outlier score: train it with outlier_score: true, or leave it out")
        if "to" in given:
            given["to"] = parse_request(given["to"], self.model.config)
        if "image" in given:
            image, size = read_image(given["image"]), (self.model.config.image_size,) * 2
            crop_to = given.pop("crop_to", None if image.size == size else self.model.image_processor().crop_to)
            given["image"] = self._pixels(cropped(image, crop_to))
            if "mask" in given:
                given["mask"] = self._mask(given["mask"], image, crop_to)
        return {}, given, {} if return_tensors is None else {"return_tensors": return_tensors}

    def _pixels(self, image: Image.Image, like: Image.Image | None = None) -> torch.Tensor:
        """(1, C, H, W) in [-1, 1]; an image of the model's size is taken as it is, a mask is cut `like` its image."""
        processor, pixels = self.model.image_processor(), pil_to_tensor(image)
        cut: dict[str, bool | None] = {"crop_to": None}
        if image.size == (self.model.config.image_size,) * 2:
            cut |= {"do_resize": False, "do_center_crop": False, "do_trim": False}
        elif like is not None and processor.do_trim:
            pixels, cut["do_trim"] = cut_square(pixels, subject_square(pil_to_tensor(like))), False
        return processor(pixels, return_tensors="pt", **cut)["pixel_values"].to(self.model.device)

    def _mask(self, mask: ImageSource, image: Image.Image, crop_to: Sequence[float] | None = None) -> torch.Tensor:
        """(1, 1, H, W), True where pixels are drawn anew: cut and resized as the image is."""
        opened = open_image(mask)
        if opened.size != image.size:
            sizes = "{}x{} pixels and its image {}x{}".format(*opened.size, *image.size)
            raise ValueError(f"the mask has {sizes}: make both of one size")
        like = cropped(image, crop_to)
        inside = self._pixels(cropped(to_mask(opened), crop_to), like).mean(1, keepdim=True) > 0
        if not inside.any():
            raise ValueError("the mask has nothing white in the part of the image that the model sees")
        return inside

    def preprocess(self, compositions: list[Composition]) -> dict[str, torch.Tensor]:
        """Labels (R, M, K) of the alternatives, `NEVER` where there are fewer than M, and weights (R, K)."""
        num = max(len(each.alternatives) for each in compositions)
        never = [NEVER] * len(self.model.config.attributes)
        labels = [each.alternatives + [never] * (num - len(each.alternatives)) for each in compositions]
        return {"labels": torch.tensor(labels), "weights": torch.tensor([each.weights for each in compositions])}

    def _forward(self, inputs, batch_size, num_images=1, num_candidates=1, seed=None, generator=None, **arguments):
        """Draws in chains of `batch_size` images, and anew in chains of half the size where these do not fit."""
        num_requests, num = len(inputs["labels"]), num_images * num_candidates
        generators = [generator] * num_requests
        if generator is None:
            # from the global generator, so that `transformers.set_seed` makes it repeatable
            seeds = [int(torch.randint(2**62, ())) if seed is None else seed for _ in range(num_requests)]
            generators = [torch.Generator(self.model.device).manual_seed(each) for each in seeds]
        states = [each.get_state() for each in generators]
        batch_size = min(batch_size, num_requests * num)
        while True:
            try:
                return _best(self._draw(inputs, num, generators, batch_size, **arguments), num_images)
            except (RuntimeError, MemoryError) as error:
                is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
                if batch_size == 1 or not (is_memory or "can't allocate memory" in str(error)):
                    raise
            # here the exception, and with it all that the chain had allocated, is gone
            batch_size //= 2
            for each, state in zip(generators, states):
                each.set_state(state)

    def _draw(
        self, inputs, num, generators, batch_size, to=None, image=None, mask=None, outlier_score=False, **arguments
    ):
        """Noise, chains, images, and what the model says of them: fields of shape (R, num, ...)."""
        config, requested, weights = self.model.config, inputs["labels"], inputs["weights"]
        weights = [None] * len(requested) if (weights == 1).all() else weights
        free = arguments.get("free_attributes", config.free_attributes)
        complete = free == "complete" and image is None
        requests = zip(requested, weights, generators)
        starts = [self._start(*request, num=num, to=to, complete=complete) for request in requests]
        is_flow = arguments.get("sampler", config.sampler) in ("flow", "ancestral")
        if is_flow and config.head == "product" and free != "gibbs":
            # what draws nothing along its chain, or by its start alone, can share one with others
            starts = _regrouped(starts, batch_size)
            generators = [None] * len(starts)
        arguments |= dict(image=image, mask=mask, batch_size=batch_size)
        chains = [self._chain(start, generator=each, **arguments) for start, each in zip(starts, generators)]
        x, labels = (torch.cat(ends) for ends in zip(*chains))
        requested = requested.repeat_interleave(num, 0)
        if to is not None:  # each image is closer to the one or the other
            is_first = torch.linspace(0, 1, num, device=x.device).repeat(len(weights)) <= 0.5
            requested = labels = torch.where(is_first[:, None], labels[:, 0], labels[:, 1])
        parts = zip(*(each.split(batch_size) for each in (x.clamp(-1, 1), requested, labels)))
        scores = [self._scores(*part, outlier_score) for part in parts]
        return {name: torch.cat([each[name] for each in scores]).unflatten(0, (-1, num)) for name in scores[0]}

    def _start(self, labels, weights, generator, num, to, complete) -> dict[str, torch.Tensor]:
        """Noise for `num` images of one request, and what they are to show: fields of a [`Condition`]."""
        model, config = self.model, self.model.config
        if to is None:
            noise = model.initial_noise(num, generator)
            labels = labels[0] if len(labels) == 1 else labels
            weights = None if weights is None else weights.expand(num, -1)
            condition = Condition(labels.expand(num, *labels.shape), weights)
            condition = model.condition(condition, complete, generator)
        else:
            ends = torch.stack([labels[0], torch.tensor(to, device=labels.device)])
            ends = model.label_prior.sample(ends, generator=generator) if complete else ends
            noise = model.initial_noise(1, generator).expand(num, *config.code_shape)
            condition = model.mixture(*ends[:, None].expand(-1, num, -1), torch.linspace(0, 1, num))
        return {"noise": noise} | {name: field for name, field in vars(condition).items() if field is not None}

    def _chain(self, start, image, mask, **arguments) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels at the end of one chain."""
        noise = start.pop("noise")
        condition = Condition(**start)
        if image is None:
            return self.model.generate(condition, noise=noise, **arguments)
        mask = None if mask is None else mask.expand(len(noise), -1, -1, -1)
        return self.model.edit(
            image.expand(len(noise), -1, -1, -1), condition.labels, mask=mask, noise=noise, **arguments
        )

    def _scores(self, x, requested, labels, outlier_score) -> dict[str, torch.Tensor]:
        """What the model says of images (B, C, H, W)."""
        distribution = self.model.label_distribution(self.model.encode(x))
        log_joint = Condition(requested).log_joint(distribution)
        return {
            "pixel_values": x,
            "energy": -log_joint,
            "log_conditional": log_joint - distribution.log_marginal(),
            "labels": Condition(labels).most_probable(distribution),
            "probabilities": distribution.marginal_logits()[0].softmax(-1),
        } | ({"outlier_score": self.model.outlier_score(x)} if outlier_score else {})

    def postprocess(self, outputs, return_tensors=False) -> list[list[dict]]:
        values, num = self.model.config.named_values, outputs["energy"].shape[1]
        x = outputs["pixel_values"].flatten(0, 1)
        images = x if return_tensors else JemImageProcessor.to_pil(x)
        fields = (outputs[name].flatten(0, 1).tolist() for name in ("energy", "probabilities", "labels"))
        drawn = [
            {
                "pixel_values" if return_tensors else "image": image,
                "energy": energy,
                "probabilities": {
                    name: row[1] if names is None else dict(zip(names, row))
                    for (name, names), row in zip(values.items(), probabilities)
                },
                "attributes": {name: value_of(label, names) for (name, names), label in zip(values.items(), labels)},
            }
            for image, energy, probabilities, labels in zip(images, *fields)
        ]
        for each, score in zip(drawn, outputs.get("outlier_score", torch.empty(0)).flatten().tolist()):
            each["outlier_score"] = score
        return [drawn[start : start + num] for start in range(0, len(drawn), num)]


def _checked(given: dict) -> dict:
    """The arguments of a call, with numbers as Python has them. Raises `ValueError` for what does not go together."""
    for name in given.keys() - {*OF_ALL, *OF_DRAWINGS, *OF_EDITS}:
        raise TypeError(f"unknown argument {name!r}{nearest_name(name, (*OF_ALL, *OF_DRAWINGS, *OF_EDITS))}")
    if "seed" in given and "generator" in given:
        raise ValueError("give a seed or a generator, not both")
    if unused := [name for name in (OF_DRAWINGS if "image" in given else OF_EDITS) if name in given]:
        raise ValueError(f"{', '.join(unused)}: only {'without' if 'image' in given else 'with'} an image to edit")
    if "to" in given and ("image" in given or "num_candidates" in given):
        raise ValueError("to goes with requests alone: leave image and num_candidates out")
    for name, value in given.items():
        if name in WHOLE_NUMBERS:
            given[name] = as_int(name, value)
        elif name in ("guidance_scale", "strength", "hold_scale"):
            given[name] = as_float(name, value)
        elif name == "seed":
            given[name] = as_int(name, value, 0, MAX_SEED)
        elif name == "generator" and not isinstance(value, torch.Generator):
            raise ValueError(f"generator is a torch.Generator, not {shown(value)}: give a number as seed")
        elif name == "sampler_kwargs":
            if not isinstance(value, Mapping):
                raise ValueError(f"sampler_kwargs is a dict such as {{'step_size': 0.01}}, not {shown(value)}")
            given[name] = {key: as_python(each) for key, each in value.items()}
    return given


def _regrouped(starts: list[dict], size: int) -> list[dict]:
    """The images of all in chains of `size`."""
    fields = {name: torch.cat([start[name] for start in starts]).split(size) for name in starts[0]}
    return [dict(zip(fields, parts)) for parts in zip(*fields.values())]


def _best(drawn: dict, num: int) -> dict:
    """Of the images of each request those that meet it best, the best first; all of them in the order drawn."""
    log_conditional = drawn["log_conditional"]
    if num == log_conditional.shape[1]:
        return drawn
    best = log_conditional.argsort(1, descending=True)[:, :num]
    rows = torch.arange(len(best), device=best.device)[:, None]
    return {name: value[rows, best] for name, value in drawn.items()}
