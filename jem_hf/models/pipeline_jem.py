"""`pipeline("attribute-conditional-generation")`."""

from pathlib import Path

import torch
from transformers import Pipeline
from transformers.image_utils import load_image

from .image_processing_jem import JemImageProcessor, read_image
from .requests_jem import Request, parse_composition, parse_request
from .sampling_jem import NEVER, Condition, initial_noise

BATCH_SIZE = 64
CHAIN_ARGUMENTS = ("num_inference_steps", "guidance_scale", "free_attributes", "sampler", "sampler_kwargs", "callback")
NOT_FOR_EDITS = ("free_attributes", "sampler", "sampler_kwargs")
EDIT_ARGUMENTS = ("strength", "mask", "hold_scale")


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
            batch_size (`int`, defaults to 64):
                Images that the network sees at once: it bounds the memory, and changes no result. It is halved until
                the memory suffices.
            num_images (`int`, defaults to 1): Images for each request.
            num_candidates (`int`, defaults to 1):
                Images drawn for each one that is returned: those of the lowest energy given the image,
                `E(x, y) - E(x) = -log p(y|x)`, lowest first.
            num_inference_steps, guidance_scale, free_attributes:
                See [`JemConfig`], which holds the defaults; of edits [`JemModel.edit`].
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
        size = next(each for each in (batch_size, self._batch_size, BATCH_SIZE) if each is not None)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size is a whole number from 1 on, not {size!r}")
        kwargs["chain_size"] = size
        if not isinstance(requests, list):
            return super().__call__((requests,), **kwargs)[0]
        if not requests:
            raise ValueError("no request to draw: give one such as 'Eyeglasses & ~Beard'")
        forward = self._forward_params | self._sanitize_parameters(**kwargs)[1]
        together = max(1, size // (forward.get("num_images", 1) * forward.get("num_candidates", 1)))
        batches = [tuple(requests[i : i + together]) for i in range(0, len(requests), together)]
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
        chain_size=None,
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
        if image is not None and (unused := [name for name in NOT_FOR_EDITS if arguments.get(name) is not None]):
            raise ValueError(f"{', '.join(unused)}: only without an image to edit")
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
        arguments["chain_size"] = chain_size
        forward = {name: value for name, value in (own | arguments).items() if value is not None}
        return {}, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def _pixels(self, image):
        """(1, C, H, W) in [-1, 1]; an image that has the model's size already is taken as it is."""
        size = self.model.config.image_size
        if isinstance(image, str | Path):
            image = load_image(image) if str(image).startswith(("http://", "https://", "data:")) else read_image(image)
        cut = {} if image.size != (size, size) else {"do_resize": False, "do_center_crop": False}
        return self.model.image_processor()(image, return_tensors="pt", **cut)["pixel_values"].to(self.model.device)

    def preprocess(self, requests):
        compositions = [parse_composition(request, self.model.config) for request in requests]
        num = max(len(each.alternatives) for each in compositions)
        never = [NEVER] * len(self.model.config.attributes)
        alternatives = [each.alternatives + [never] * (num - len(each.alternatives)) for each in compositions]
        return {"labels": torch.tensor(alternatives), "weights": torch.tensor([each.weights for each in compositions])}

    def _forward(
        self, inputs, num_images=1, num_candidates=1, chain_size=BATCH_SIZE, seed=None, generator=None, **arguments
    ):
        """Draws in chains of `chain_size` images, and anew in chains of half the size where these do not fit."""
        num_requests, num_drawn = len(inputs["labels"]), num_images * num_candidates
        seeds = [_fresh_seed() if seed is None else seed for _ in range(num_requests if generator is None else 0)]
        state = None if generator is None else generator.get_state()
        chain_size = min(chain_size, num_requests * num_drawn)
        while True:
            generators = [torch.Generator(self.model.device).manual_seed(each) for each in seeds]
            try:
                drawn = self._draw(inputs, num_drawn, generators or [generator] * num_requests, chain_size, arguments)
                return _best(drawn, num_images)
            except (RuntimeError, MemoryError) as error:
                if chain_size == 1 or not _is_out_of_memory(error):
                    raise
            # here the exception, and with it all that the chain had allocated, is gone
            chain_size //= 2
            if generator is not None:
                generator.set_state(state)

    def _draw(self, inputs, num, generators, chain_size, arguments):
        requested, weights = inputs["labels"], inputs["weights"]
        if (weights == 1).all():
            weights = [None] * len(requested)
        starts = [self._start(*each, num, arguments) for each in zip(requested, weights, generators)]
        ends = [self._run(*chain, arguments, chain_size) for chain in self._chains(starts, arguments, chain_size)]
        x, labels = (torch.cat(parts) for parts in zip(*ends))
        if "to" in arguments:  # each image is closer to the one or the other
            first = torch.linspace(0, 1, num, device=x.device).repeat(len(requested)) <= 0.5
            requested = labels = torch.where(first[:, None], labels[:, 0], labels[:, 1])
        else:
            requested = requested.repeat_interleave(num, 0)
        parts = zip(*(each.split(chain_size) for each in (x.clamp(-1, 1), requested, labels)))
        fields = [self._scores(*part) for part in parts]
        return {name: torch.cat([part[name] for part in fields]).unflatten(0, (-1, num)) for name in fields[0]}

    def _scores(self, x, requested, labels):
        """All that is told of images (B, C, H, W)."""
        distribution = self.model.label_distribution(x)
        log_joint = Condition(requested).log_joint(distribution)
        return {
            "pixel_values": x,
            "energy": -log_joint,
            "log_conditional": log_joint - distribution.log_marginal(),
            "labels": Condition(labels).most_probable(distribution),
            "probabilities": distribution.marginal_logits()[0].softmax(-1),
        }

    def _start(self, labels, weights, generator, num, arguments):
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

    def _chains(self, starts, arguments, chain_size):
        """Conditions and noise of at most `chain_size` images a chain; one chain a request that draws along it."""
        config = self.model.config
        free = arguments.get("free_attributes", config.free_attributes)
        if (arguments.get("sampler", config.sampler), config.head) != ("flow", "product") or free == "gibbs":
            return starts
        conditions, noise, _ = zip(*starts)
        parts = zip(_split(_concatenated(conditions), chain_size), torch.cat(noise).split(chain_size))
        return [(condition, noise, None) for condition, noise in parts]

    def _run(self, condition, noise, generator, arguments, chain_size):
        """Images and labels at the end of one chain."""
        call = {name: value for name, value in arguments.items() if name not in ("to", "image", "mask")}
        call |= dict(noise=noise, generator=generator, batch_size=chain_size)
        if "image" not in arguments:
            return self.model.generate(condition, **call)
        if condition.labels.ndim == 3 or condition.weights is not None:
            raise ValueError("an image is edited by requests that have neither alternatives nor weights")
        if "mask" in arguments:
            call["mask"] = arguments["mask"].expand(len(noise), -1, -1, -1)
        return self.model.edit(arguments["image"].expand_as(noise), condition.labels, **call)

    def postprocess(self, outputs, return_tensors=False):
        fields, values = ("pixel_values", "energy", "labels", "probabilities"), self.model.config.named_values
        requests = zip(*(outputs[name] for name in fields))
        return [self._describe(*request, values, return_tensors) for request in requests]

    def _describe(self, x, energy, labels, probabilities, values, return_tensors):
        """The dicts of one request's images; `values` are the config's `named_values`."""
        images = x if return_tensors else JemImageProcessor.to_pil(x)
        return [
            {
                "pixel_values" if return_tensors else "image": images[i],
                "energy": energy[i].item(),
                "probabilities": {
                    name: row[1] if names is None else dict(zip(names, row))
                    for (name, names), row in zip(values.items(), probabilities[i].tolist())
                },
                "attributes": {
                    name: _value(label, names) for (name, names), label in zip(values.items(), labels[i].tolist())
                },
            }
            for i in range(len(x))
        ]


def _concatenated(conditions):
    """One condition for the images of all."""
    fields = zip(*((each.labels, each.weights, each.shares) for each in conditions))
    return Condition(*(None if parts[0] is None else torch.cat(parts) for parts in fields))


def _split(condition, size):
    """Conditions for `size` images each."""
    fields = (condition.labels, condition.weights, condition.shares)
    num = -(-len(condition.labels) // size)
    return [Condition(*part) for part in zip(*([None] * num if each is None else each.split(size) for each in fields))]


def _best(drawn, num):
    """Of the images of each request those that meet it best, the best first; all of them in the order drawn."""
    log_conditional = drawn["log_conditional"]
    if num == log_conditional.shape[1]:
        return drawn
    best = log_conditional.argsort(1, descending=True)[:, :num]
    rows = torch.arange(len(best), device=best.device)[:, None]
    return {name: value[rows, best] for name, value in drawn.items()}


def _is_out_of_memory(error):
    """Of a GPU, or of the machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _fresh_seed():
    """Another seed each time, from the global generator: `transformers.set_seed` makes it repeatable."""
    return torch.randint(2**62, ()).item()


def _value(label, names):
    """A label as users write it: True, False, the name of a value, or None where it was left open."""
    if label < 0:
        return None
    return bool(label) if names is None else names[label]
