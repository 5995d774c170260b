"""`pipeline("attribute-conditional-generation")`."""

import torch
from transformers import Pipeline
from transformers.image_utils import load_image

from .image_processing_jem import JemImageProcessor
from .requests_jem import Request, parse_composition, parse_request
from .sampling_jem import NEVER, Condition, initial_noise

CHAIN_ARGUMENTS = ("num_inference_steps", "guidance_scale", "free_attributes", "sampler", "sampler_kwargs", "callback")
EDIT_ARGUMENTS = ("strength", "mask", "hold_scale")


class AttributeConditionalGenerationPipeline(Pipeline):
    """
    Draws images for any combination of attributes, and edits images.

    ```python
    >>> generate = pipeline("attribute-conditional-generation")
    >>> generate("Eyeglasses & (Beard | Moustache) & ~Hat", num_images=4)[0]["image"]
    >>> generate("Smiling & ~Eyeglasses", image="face.png")[0]["image"]
    >>> generate("Smiling", to="~Smiling & Hat", num_images=8)
    ```
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, requests: Request | list[Request], batch_size: int | None = None, **kwargs):
        """
        Draw images.

        Args:
            requests: A dict of attribute to value, a string such as `"Eyeglasses & (Beard | ~Hat)"`, or a list of
                either; see [`parse_composition`](requests_jem.py). `{}` and `""` leave all open.
            batch_size (`int`, defaults to 1): Requests of a list that share a chain.
            num_images (`int`, defaults to 1): Images for each request.
            num_candidates (`int`, defaults to 1):
                Images drawn for each one that is returned: those of the lowest energy, lowest first.
            num_inference_steps, guidance_scale, free_attributes: See [`JemConfig`], which holds the defaults.
            sampler, sampler_kwargs: See [`JemModel.generate`].
            to: Another request: the images go from the one to the other by equal steps, from the same noise.
            image (`PIL.Image`, path or URL): Edited as each request says, what it does not name being held.
            strength, mask, hold_scale: Of the edit, see [`JemModel.edit`]; the mask is an image, white where pixels
                are drawn anew.
            seed (`int`): Seed of each request's noise: requests of one call start from the same noise.
            generator (`torch.Generator`): Source of randomness instead of a seed.
            return_tensors (`bool`, defaults to False): Return `pixel_values` (C, H, W) in [-1, 1], not PIL images.
            callback: Called with the images (B, C, H, W) and [`ChainInfo`] before each step; True stops the chain.

        Returns:
            For each request a list of dicts: `image` (or `pixel_values`), `energy` E(x, y) of image and request,
            `probabilities` that the model sees in the image (p(True) of a binary attribute, a dict of others) and
            `attributes`, what it was drawn for.

        Raises:
            ValueError: an empty list, an unknown attribute or value, a contradiction, an argument out of its range.
        """
        if not isinstance(requests, list):
            return super().__call__((requests,), **kwargs)[0]
        if not requests:
            raise ValueError("no request to draw: give one such as 'Eyeglasses & ~Beard'")
        size = batch_size or self._batch_size or 1
        batches = [tuple(requests[i : i + size]) for i in range(0, len(requests), size)]
        return [images for batch in super().__call__(batches, batch_size=1, **kwargs) for images in batch]

    def save_pretrained(self, save_directory, **kwargs):
        """Save the model, with all that this pipeline needs to be loaded from there."""
        self.model.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id, **kwargs):
        """Upload the model, see [`JemModel.push_to_hub`]."""
        return self.model.push_to_hub(repo_id, **kwargs)

    def _sanitize_parameters(
        self,
        return_tensors=None,
        num_images=None,
        num_candidates=None,
        seed=None,
        generator=None,
        to=None,
        image=None,
        **arguments,
    ):
        own = dict(num_images=num_images, num_candidates=num_candidates, seed=seed, generator=generator)
        for name in arguments:
            if name not in (*CHAIN_ARGUMENTS, *EDIT_ARGUMENTS):
                known = ", ".join((*own, "to", "image", "return_tensors", *CHAIN_ARGUMENTS, *EDIT_ARGUMENTS))
                raise TypeError(f"unknown argument {name!r}; known: {known}")
        for name in ("num_images", "num_candidates"):
            if own[name] is not None and (not isinstance(own[name], int) or own[name] < 1):
                raise ValueError(f"{name} is a whole number from 1 on, not {own[name]!r}")
        if seed is not None and generator is not None:
            raise ValueError("give a seed or a generator, not both")
        if image is None and (unused := [name for name in EDIT_ARGUMENTS if arguments.get(name) is not None]):
            raise ValueError(f"{', '.join(unused)}: only with an image to edit")
        if to is not None and (image is not None or num_candidates is not None):
            raise ValueError("to goes with requests alone: leave image and num_candidates out")
        if to is not None:
            arguments["to"] = parse_request(to, self.model.config)
        if image is not None:
            arguments["image"] = self._pixels(image)
        if arguments.get("mask") is not None:
            arguments["mask"] = self._pixels(arguments["mask"]).mean(1, keepdim=True) > 0
        forward = {name: value for name, value in (own | arguments).items() if value is not None}
        return {}, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def _pixels(self, image):
        """(1, C, H, W) in [-1, 1]; an image that has the model's size already is taken as it is."""
        image, size = load_image(image), self.model.config.image_size
        cut = {} if image.size != (size, size) else {"do_resize": False, "do_center_crop": False}
        return self.model.image_processor()(image, return_tensors="pt", **cut)["pixel_values"].to(self.model.device)

    def preprocess(self, requests):
        compositions = [parse_composition(request, self.model.config) for request in requests]
        num = max(len(each.alternatives) for each in compositions)
        never = [NEVER] * len(self.model.config.attributes)
        alternatives = [each.alternatives + [never] * (num - len(each.alternatives)) for each in compositions]
        return {"labels": torch.tensor(alternatives), "weights": torch.tensor([each.weights for each in compositions])}

    def _forward(self, inputs, num_images=1, num_candidates=1, seed=None, generator=None, **arguments):
        requested, weights = inputs["labels"], inputs["weights"]
        if (weights == 1).all():
            weights = [None] * len(requested)
        starts = []
        for labels, weight in zip(requested, weights):
            if generator is None or seed is not None:
                generator = torch.Generator(self.model.device).manual_seed(_fresh_seed() if seed is None else seed)
            starts.append(self._start(labels, weight, num_images * num_candidates, generator, arguments))
        x, labels = self._draw(starts, arguments)
        x = x.clamp(-1, 1)
        distribution = self.model.label_distribution(x)
        if "to" in arguments:  # each image is closer to the one or the other
            first = torch.linspace(0, 1, num_images, device=x.device).repeat(len(requested)) <= 0.5
            requested = labels = torch.where(first[:, None], labels[:, 0], labels[:, 1])
        else:
            requested = requested.repeat_interleave(num_images * num_candidates, 0)
            labels = Condition(labels).most_probable(distribution)
        fields = {
            "pixel_values": x,
            "energy": -Condition(requested).log_joint(distribution),
            "labels": labels,
            "probabilities": distribution.marginal_logits()[0].softmax(-1),
        }
        fields = {name: value.unflatten(0, (len(starts), -1)) for name, value in fields.items()}
        if num_candidates > 1:
            best = fields["energy"].argsort(1)[:, :num_images]
            rows = torch.arange(len(best), device=x.device)[:, None]
            fields = {name: value[rows, best] for name, value in fields.items()}
        return fields

    def _start(self, labels, weights, num, generator, arguments):
        """Condition and noise of one request, for `num` images."""
        model, config = self.model, self.model.config
        shape = (num, config.num_channels, config.image_size, config.image_size)
        complete = arguments.get("free_attributes", config.free_attributes) == "complete"
        if "to" in arguments:
            if (labels[1:] != NEVER).any() or weights is not None:
                raise ValueError("to goes with requests that have neither alternatives nor weights")
            ends = torch.stack([labels[0], torch.tensor(arguments["to"], device=labels.device)])
            if complete:
                ends = model.label_prior.sample(ends, generator=generator)
            noise = initial_noise(config.sampler, (1, *shape[1:]), model.device, generator).expand(shape)
            first, second = ends[:, None].expand(-1, num, -1)
            return model.mixture(first, second, torch.linspace(0, 1, num)), noise, generator
        noise = initial_noise(config.sampler, shape, model.device, generator)
        labels = labels[0] if len(labels) == 1 else labels
        condition = Condition(labels.expand(num, *labels.shape), None if weights is None else weights.expand(num, -1))
        return model.condition(condition, complete and "image" not in arguments, generator), noise, generator

    def _draw(self, starts, arguments):
        """Images and labels of all requests, in one chain where no randomness is left."""
        arguments = {name: value for name, value in arguments.items() if name != "to"}
        image, sampler = arguments.pop("image", None), arguments.get("sampler") or self.model.config.sampler
        mask, free = arguments.pop("mask", None), arguments.get("free_attributes", self.model.config.free_attributes)
        if sampler == "flow" and free != "gibbs":
            conditions, noise, _ = zip(*starts)
            starts = [(_concatenated(conditions), torch.cat(noise), None)]
        ends = []
        for condition, noise, generator in starts:
            call = dict(noise=noise, generator=generator, **arguments)
            if image is None:
                ends.append(self.model.generate(condition, **call))
                continue
            if condition.labels.ndim == 3 or condition.weights is not None:
                raise ValueError("an image is edited by requests that have neither alternatives nor weights")
            masks = None if mask is None else mask.expand(len(noise), -1, -1, -1)
            ends.append(self.model.edit(image.expand_as(noise), condition.labels, mask=masks, **call))
        return (torch.cat(parts) for parts in zip(*ends))

    def postprocess(self, outputs, return_tensors=False):
        fields = ("pixel_values", "energy", "labels", "probabilities")
        return [self._describe(*request, return_tensors) for request in zip(*(outputs[name] for name in fields))]

    def _describe(self, x, energy, labels, probabilities, return_tensors):
        """The dicts of one request's images."""
        config = self.model.config
        images = x if return_tensors else JemImageProcessor.to_pil(x)
        return [
            {
                "pixel_values" if return_tensors else "image": images[i],
                "energy": energy[i].item(),
                "probabilities": _named_probabilities(probabilities[i], config),
                "attributes": {
                    name: _value(label, name, config) for name, label in zip(config.attributes, labels[i].tolist())
                },
            }
            for i in range(len(x))
        ]


def _concatenated(conditions):
    """One condition for the images of all."""
    fields = zip(*((each.labels, each.weights, each.shares) for each in conditions))
    return Condition(*(None if parts[0] is None else torch.cat(parts) for parts in fields))


def _fresh_seed():
    """Another seed each time, from the global generator: `transformers.set_seed` makes it repeatable."""
    return torch.randint(2**62, ()).item()


def _named_probabilities(probabilities, config):
    """{attribute: p(True)} of binary attributes, {attribute: {value: p}} of others, from (K, V)."""
    return {
        name: dict(zip(config.values(name), row)) if name in config.attribute_values else row[1]
        for name, row in zip(config.attributes, probabilities.tolist())
    }


def _value(label, name, config):
    """A label as users write it: True, False, the name of a value, or None where it was left open."""
    if label < 0:
        return None
    return config.values(name)[label] if name in config.attribute_values else bool(label)
