"""`pipeline("attribute-conditional-generation")`."""

import torch
from transformers import Pipeline

from .image_processing_jem import JemImageProcessor
from .requests_jem import Request, parse_request
from .sampling_jem import initial_noise

CHAIN_ARGUMENTS = ("num_inference_steps", "guidance_scale", "free_attributes", "callback")


class AttributeConditionalGenerationPipeline(Pipeline):
    """
    Draws images for any combination of attributes.

    ```python
    >>> generate = pipeline("attribute-conditional-generation")
    >>> generate("Eyeglasses & ~Beard", num_images=4)[0]["image"]
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
            requests: A dict of attribute to value, a string such as `"Eyeglasses & ~Beard"`, or a list of either. `{}`
                and `""` leave all open.
            batch_size (`int`, defaults to 1): Requests of a list that share a chain.
            num_images (`int`, defaults to 1): Images for each request.
            num_inference_steps, guidance_scale, free_attributes: See [`JemConfig`], which holds the defaults.
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

    def _sanitize_parameters(self, num_images=None, seed=None, generator=None, return_tensors=None, **chain_arguments):
        for name in chain_arguments:
            if name not in CHAIN_ARGUMENTS:
                raise TypeError(f"unknown argument {name!r}; known: num_images, seed, generator, {CHAIN_ARGUMENTS}")
        if num_images is not None and (not isinstance(num_images, int) or num_images < 1):
            raise ValueError(f"num_images is a whole number from 1 on, not {num_images!r}")
        if seed is not None and generator is not None:
            raise ValueError("give a seed or a generator, not both")
        forward = dict(num_images=num_images, seed=seed, generator=generator, **chain_arguments)
        forward = {name: value for name, value in forward.items() if value is not None}
        return {}, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, requests):
        return {"labels": torch.tensor([parse_request(request, self.model.config) for request in requests])}

    def _forward(self, inputs, num_images=1, seed=None, generator=None, **chain_arguments):
        model, config = self.model, self.model.config
        requested = inputs["labels"]
        free_attributes = chain_arguments.get("free_attributes", config.free_attributes)
        starts = []
        for request in requested:
            if generator is None or seed is not None:
                generator = torch.Generator(model.device).manual_seed(_fresh_seed() if seed is None else seed)
            shape = (num_images, config.num_channels, config.image_size, config.image_size)
            noise, labels = (
                initial_noise(config.sampler, shape, model.device, generator),
                request.expand(num_images, -1),
            )
            if free_attributes == "complete":
                labels = model.label_prior.sample(labels, generator=generator)
            starts.append((labels, noise, generator))
        if config.sampler == "flow" and free_attributes != "gibbs":  # no randomness is left: one chain serves all
            labels, noise, _ = zip(*starts)
            starts = [(torch.cat(labels), torch.cat(noise), None)]
        ends = [model.generate(y, noise=noise, generator=g, **chain_arguments) for y, noise, g in starts]
        x, labels = (torch.cat(parts) for parts in zip(*ends))
        x = x.clamp(-1, 1)
        output = model(x, requested.repeat_interleave(num_images, 0))
        fields = {"pixel_values": x, "energy": output.energy, "labels": labels}
        fields["probabilities"] = output.attribute_logits.softmax(-1)
        return {name: value.unflatten(0, (len(requested), num_images)) for name, value in fields.items()}

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
