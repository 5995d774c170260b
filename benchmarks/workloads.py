"""What is measured. Each workload gives contenders by name that do the same work on the same network and batch; the
first is the bare loop: what cannot be left out, and nothing else."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from transformers.utils import logging

from jem_hf import (
    AttributeConditionalGenerationPipeline,
    AttributeTensors,
    JemConfig,
    JemModel,
    JemTrainer,
    JemTrainingArguments,
)
from jem_hf.evaluation.prediction import predict
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.models.sampling_jem import run_chain
from jem_hf.training.negatives import ReplayBuffer, frozen, noise_images
from jem_hf.training.objectives import equilibrium_matching

try:
    import torchebm_contenders
except ImportError:  # pip install torchebm
    torchebm_contenders = None

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_ATTRIBUTES = 23
LANGEVIN = dict(step_size=0.1, noise_scale=0.01)


@dataclass(frozen=True)
class Setting:
    """Batch, pixels, width of the first layer, chain steps, and whether chains and losses run in bfloat16."""

    batch_size: int = 64
    image_size: int = 32
    width: int = 32
    num_steps: int = 20
    bfloat16: bool = False

    def model(self) -> JemModel:
        """The same weights each time."""
        torch.manual_seed(0)
        attributes = [f"attribute_{k}" for k in range(NUM_ATTRIBUTES)]
        kwargs = {"width": self.width, "hidden_size": 512}
        return JemModel(JemConfig(attributes=attributes, image_size=self.image_size, backbone_kwargs=kwargs)).to(
            DEVICE
        )

    def tensors(self, num: int) -> AttributeTensors:
        """Random images and labels."""
        images = torch.randint(256, (num, 3, self.image_size, self.image_size), dtype=torch.uint8)
        labels = torch.randint(2, (num, NUM_ATTRIBUTES))
        return AttributeTensors(images, labels, [f"attribute_{k}" for k in range(NUM_ATTRIBUTES)])

    def batch(self) -> dict[str, torch.Tensor]:
        rows = self.tensors(self.batch_size)
        return {"pixel_values": rows.images.to(DEVICE), "labels": rows.labels.to(DEVICE)}

    def trainer(self, **arguments) -> JemTrainer:
        folder = tempfile.mkdtemp()
        args = JemTrainingArguments(folder, use_cpu=DEVICE.type == "cpu", bf16=self.bfloat16, muon=False,
                                    per_device_train_batch_size=self.batch_size, chain_steps=self.num_steps,
                                    chain_step_size=LANGEVIN["step_size"], chain_noise=LANGEVIN["noise_scale"],
                                    gibbs_every=1, disable_tqdm=True, **arguments)  # fmt: skip
        return JemTrainer(self.model(), args, train_dataset=self.tensors(20 * self.batch_size))

    def autocast(self):
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.bfloat16)


def input_gradient(model: JemModel, x: torch.Tensor) -> torch.Tensor:
    """One forward pass and its gradient by the images."""
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(model.potentials(x).sum(), x)[0]


def field(model: JemModel, x: torch.Tensor) -> torch.Tensor:
    """The gradient of `log p~(x)` by the images, itself to be differentiated."""
    return torch.autograd.grad(model.potentials(x).logsumexp(-1).sum(), x, create_graph=True)[0]


def chain(setting: Setting) -> dict[str, Callable]:
    """`num_steps` Langevin steps on the images, the labels drawn anew before each."""
    model = setting.model().eval().requires_grad_(False)
    x = torch.rand(setting.batch_size, 3, setting.image_size, setting.image_size, device=DEVICE) * 2 - 1
    free = torch.full((setting.batch_size, NUM_ATTRIBUTES), -1, device=DEVICE)
    settings = dict(num_steps=setting.num_steps, gibbs_every=1, bounds=(-1, 1), **LANGEVIN)
    generator = torch.Generator(DEVICE).manual_seed(0)

    def bare():
        with setting.autocast():
            for _ in range(setting.num_steps):
                input_gradient(model, x)

    def ours():
        with setting.autocast():
            run_chain("langevin", model.label_distribution, x, free, generator=generator, **settings)

    contenders = {"bare": bare, "jem_hf": ours}
    if torchebm_contenders and not setting.bfloat16:
        contenders["torchebm"] = torchebm_contenders.langevin(model, x, setting.num_steps, **LANGEVIN)
    return contenders


def training_step(model, loss: Callable, after: Callable = lambda: None) -> Callable:
    """Loss, gradient and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step():
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        after()

    return step


def trained_by(trainer: JemTrainer, setting: Setting) -> Callable:
    """A step of our trainer, with the moving average of the weights."""
    batch = setting.batch()

    def loss():
        with setting.autocast():
            return trainer.compute_loss(trainer.model, batch)

    return training_step(trainer.model, loss, lambda: trainer.ema.update(trainer.model, step=1000))


def contrastive_divergence(setting: Setting) -> dict[str, Callable]:
    """A training step with a chain from the replay buffer."""
    trainer = setting.trainer(objective="joint_cd", guard_steps=0)
    model, x = setting.model(), to_pixels(setting.batch()["pixel_values"])

    def bare_loss():
        with setting.autocast():
            with frozen(model):
                for _ in range(setting.num_steps):
                    input_gradient(model, x)
            of_data, of_samples = model.potentials(torch.cat([x, x])).chunk(2)
        return of_samples.sum() - of_data.sum()

    contenders = {"bare": training_step(model, bare_loss), "jem_hf": trained_by(trainer, setting)}
    if torchebm_contenders and not setting.bfloat16:
        model = setting.model()
        loss = torchebm_contenders.contrastive_divergence(model, x, setting.num_steps, **LANGEVIN)
        contenders["torchebm"] = training_step(model, loss)
    return contenders


def matching(setting: Setting) -> dict[str, Callable]:
    """The matching loss of the warm-up (Equilibrium Matching, paired by optimal transport) and its gradient."""
    batch = setting.batch()
    x, labels = to_pixels(batch["pixel_values"]), batch["labels"]
    generator = torch.Generator(DEVICE).manual_seed(0)

    def bare_loss(model):
        x_t = x.detach().requires_grad_(True)
        with setting.autocast():
            gradient = field(model, x_t)
        return gradient.square().mean()

    def our_loss(model):
        with setting.autocast():
            return equilibrium_matching(model.label_distribution, x, labels, generator)

    losses = {"bare": bare_loss, "jem_hf": our_loss}
    if torchebm_contenders and not setting.bfloat16:
        losses["torchebm"] = torchebm_contenders.equilibrium_matching(x)
    contenders = {}
    for name, loss in losses.items():
        model = setting.model().train()
        contenders[name] = training_step(model, lambda loss=loss, model=model: loss(model))
    return contenders


def warm_up(setting: Setting) -> dict[str, Callable]:
    """A training step of the warm-up: matching, cross-entropy, optimiser, moving average."""
    model, x = setting.model().train(), to_pixels(setting.batch()["pixel_values"])

    def bare_loss():
        x_t = x.detach().requires_grad_(True)
        with setting.autocast():
            return field(model, x_t).square().mean() + model.potentials(x).logsumexp(-1).mean()

    trainer = setting.trainer(objective="warmup", guard_steps=0)
    return {"bare": training_step(model, bare_loss), "jem_hf": trained_by(trainer, setting)}


def pipeline(setting: Setting) -> dict[str, Callable]:
    """Drawing a batch of images for one request, as users do, and the chain in it alone."""
    model = setting.model().eval()
    draw = AttributeConditionalGenerationPipeline(model)
    labels = torch.ones(setting.batch_size, NUM_ATTRIBUTES, dtype=torch.long, device=DEVICE)
    noise = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, device=DEVICE)
    settings = model.chain_settings(setting.num_steps)
    arguments = dict(num_images=setting.batch_size, num_inference_steps=setting.num_steps, seed=0)
    return {
        "chain": lambda: run_chain(label_distribution=model.label_distribution, x=noise, condition=labels, **settings),
        "jem_hf": lambda: draw("attribute_0", batch_size=setting.batch_size, **arguments),
    }


def evaluation(setting: Setting) -> dict[str, Callable]:
    """Logits and log p(x) of four batches of images."""
    model = setting.model().eval()
    images = setting.tensors(4 * setting.batch_size).images

    @torch.no_grad()
    def bare():
        for batch in images.split(setting.batch_size):
            model.potentials(to_pixels(batch.to(DEVICE)))

    return {"bare": bare, "jem_hf": lambda: predict(model, images, batch_size=setting.batch_size)}


def loading(setting: Setting) -> dict[str, Callable]:
    """One batch of training data, beside the gather that it is."""
    trainer = setting.trainer(objective="warmup")
    rows = torch.randint(len(trainer.train_dataset), (setting.batch_size,))
    batches = (batch for loader in cycle([trainer.get_train_dataloader()]) for batch in loader)
    return {
        "bare": lambda: (trainer.train_dataset.images[rows], trainer.train_dataset.labels[rows]),
        "jem_hf": lambda: next(batches),
    }


def buffer(setting: Setting) -> dict[str, Callable]:
    """Drawing a batch from the replay buffer and storing it: 10,000 in memory, and 1,000,000 on a memory map."""
    x = torch.rand(setting.batch_size, 3, setting.image_size, setting.image_size, device=DEVICE) * 2 - 1

    def turn(size, path=None):
        images = noise_images((size, *x.shape[1:]), torch.Generator(DEVICE), path=path)
        store = ReplayBuffer(images)

        def sample_and_push():
            store.sample(setting.batch_size)
            store.push(x)

        return sample_and_push

    file = tempfile.NamedTemporaryFile()  # noqa: SIM115  it lives as long as the process
    mapped = turn(1_000_000, file.name)
    mapped.file = file
    return {"10,000": turn(10_000), "1,000,000": mapped}


WORKLOADS = {
    "chain": chain,
    "contrastive_divergence": contrastive_divergence,
    "matching": matching,
    "warm_up": warm_up,
    "pipeline": pipeline,
    "evaluation": evaluation,
    "loading": loading,
    "buffer": buffer,
}
logging.set_verbosity_error()
