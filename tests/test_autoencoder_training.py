"""The phase that trains an autoencoder, and objectives on its codes."""

import pytest
import torch
from test_autoencoder import SMALL, model_of_codes
from test_trainer import arguments

from jem_hf import AttributeTensors, JemConfig, JemModel, JemTrainer
from jem_hf.training.augmentation import random_crop
from jem_hf.training.autoencoder import train_autoencoder
from jem_hf.training.classifier import pixel_classifier
from jem_hf.training.reconstruction import Reconstruction, add_in_proportion

PHASE = dict(autoencoder_steps=4, autoencoder_feature_steps=2, max_steps=4, logging_steps=1)


@pytest.fixture
def faces():
    """40 images of two colours that two attributes tell."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (40, 2), generator=generator)
    images = torch.randint(0, 60, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[:, 0] += (labels[:, 0] * 150).to(torch.uint8)[:, None, None]
    images[:, 1, :8] += (labels[:, 1] * 150).to(torch.uint8)[:, None, None]
    return AttributeTensors(images, labels, ["red", "green"])


def make_trainer(faces, folder, autoencoder=SMALL, **kwargs):
    config = JemConfig(
        attributes=faces.attributes, image_size=16, autoencoder=autoencoder, num_inference_steps=2,
        backbone_kwargs={"width": 4, "hidden_size": 8},
    )  # fmt: skip
    torch.manual_seed(0)
    data = dict(train_dataset=faces, eval_dataset=faces)
    return JemTrainer(model=JemModel(config), args=arguments(folder, **(PHASE | kwargs)), **data)


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_first_the_autoencoder_then_the_energy(faces, tmp_path):
    trainer = make_trainer(faces, tmp_path, eval_strategy="steps", eval_steps=2)
    with pytest.raises(ValueError, match="train_autoencoder"):
        trainer.train()
    random, backbone = weights_of(trainer.model.autoencoder), weights_of(trainer.model.backbone)
    train_autoencoder(trainer)
    learnt = weights_of(trainer.model.autoencoder)
    assert not torch.equal(learnt["decoder.0.weight"], random["decoder.0.weight"])
    assert_same(weights_of(trainer.model.backbone), backbone)
    assert_same(weights_of(trainer.ema.module.autoencoder), learnt)
    trainer.train()
    assert_same(weights_of(trainer.model.autoencoder), learnt)
    assert not torch.equal(trainer.model.backbone.mlp[1].weight, backbone["mlp.1.weight"])
    trainer.save_model()
    assert_same(weights_of(JemModel.from_pretrained(tmp_path).autoencoder), learnt)


@pytest.mark.slow
def test_it_learns_to_give_images_back(faces, tmp_path):
    trainer = make_trainer(
        faces, tmp_path, autoencoder_steps=60, autoencoder_noise=0.1, autoencoder_learning_rate=2e-2
    )
    x = faces.images / 127.5 - 1
    train_autoencoder(trainer)
    model = trainer.model
    error = (model.decode(model.encode(x)) - x).square().mean()
    assert error < 0.25 * (x - x.mean(0)).square().mean()  # a tenth of it is noise of single pixels


@pytest.mark.slow
def test_the_phase_logs_evaluates_and_resumes_exactly(faces, tmp_path):
    settings = dict(autoencoder_steps=6, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=3)
    settings |= dict(autoencoder_adversarial_weight=0.1)
    whole = make_trainer(faces, tmp_path / "whole", **settings)
    train_autoencoder(whole)
    cut = make_trainer(faces, tmp_path / "cut", **settings)
    folder = tmp_path / "cut" / "autoencoder"
    train_autoencoder(cut)
    (folder / "model.safetensors").unlink()  # as if it had been killed after step 4
    for path in (folder / "checkpoint-6").iterdir():
        path.unlink()
    (folder / "checkpoint-6").rmdir()
    resumed = make_trainer(faces, tmp_path / "cut", **settings)
    train_autoencoder(resumed, resume=True)
    assert_same(weights_of(resumed.model.autoencoder), weights_of(whole.model.autoencoder))
    # what is finished is taken as it is
    finished = make_trainer(faces, tmp_path / "cut", **settings)
    train_autoencoder(finished, resume=True)
    assert_same(weights_of(finished.model.autoencoder), weights_of(whole.model.autoencoder))
    other = make_trainer(faces, tmp_path / "cut", autoencoder=SMALL | {"width": 32}, **settings)
    with pytest.raises(ValueError, match="another run"):
        train_autoencoder(other, resume=True)


def test_metrics_of_reconstructions(faces, tmp_path):
    from jem_hf.training.autoencoder import AutoencoderTrainer

    model = model_of_codes()
    args = arguments(tmp_path)
    phase = AutoencoderTrainer(Reconstruction(model, pixel_classifier(model.config, 8, 8), args), args)
    metrics = phase.evaluate(faces)
    x = faces.images / 127.5 - 1
    error = (model.decode(model.encode(x)).clamp(-1, 1) - x).square().flatten(1).mean(1)
    assert metrics["eval_psnr"] == pytest.approx((10 * torch.log10(4 / error)).mean().item(), rel=1e-4)
    assert metrics["eval_frechet"] > 0


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_critic_and_what_it_judges_are_trained_by_their_own_losses(tmp_path, weight):
    model = model_of_codes()
    args = arguments(tmp_path, autoencoder_adversarial_weight=weight, autoencoder_noise=0.0)
    loss = Reconstruction(model, pixel_classifier(model.config, 8, 8), args)
    assert (loss.critic is None) == (not weight)
    if weight:
        x = torch.rand(2, 3, 16, 16) * 2 - 1
        images = model.decode(model.encode(x))
        adversarial, critic = loss.critic.losses(x, images)
        own, others = list(loss.critic.parameters()), [p for p in model.autoencoder.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(adversarial, others, allow_unused=True, retain_graph=True)
        assert any(each is not None and each.abs().max() > 0 for each in gradients)
        assert all(
            each is None for each in torch.autograd.grad(adversarial, own, allow_unused=True, retain_graph=True)
        )
        assert all(each is None for each in torch.autograd.grad(critic, others, allow_unused=True, retain_graph=True))
        assert all(each is not None for each in torch.autograd.grad(critic, own))


def test_a_critics_gradient_is_as_long_as_its_share_says():
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    loss, other = images.square().sum(), (5 * images.sin()).sum()
    own, added = (torch.autograd.grad(each, images, retain_graph=True)[0] for each in (loss, other))
    both = add_in_proportion(loss, other, 0.25, images)
    assert both.item() == pytest.approx(loss.item())
    (found,) = torch.autograd.grad(both, images)
    assert (found - own).norm() == pytest.approx(0.25 * own.norm().item())
    torch.testing.assert_close((found - own) / (found - own).norm(), added / added.norm())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["warmup", "joint_cd", "logistic", "jem", "classifier"])
def test_objectives_see_codes_and_resume_exactly(faces, tmp_path, objective):
    model = model_of_codes()
    model.save_pretrained(tmp_path / "trained")
    settings = dict(
        objective=objective, chain_steps=2, chain_step_size=0.1, buffer_size=32, save_strategy="steps", save_steps=2,
        kl_weight=0.1, entropy_weight=0.1, warmup_weight=1.0, chain_start="mixed", cross_entropy_zoom=2.0,
        autoencoder=str(tmp_path / "trained"),
    )  # fmt: skip
    if objective == "logistic":
        settings |= dict(objective="joint_cd", cd_loss="logistic", chain_start="broken_data", chain_random_steps=True)
        settings |= dict(kl_weight=0.0, entropy_weight=0.0)
    whole = make_trainer(faces, tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(faces, tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(weights_of(resumed.model), weights_of(whole.model))
    buffer = whole.negatives.buffer
    if objective in ("joint_cd", "jem", "logistic"):
        assert buffer.images.dtype == torch.bfloat16 and buffer.images.shape == (32, 4, 8, 8)
        assert torch.equal(buffer.images, resumed.negatives.buffer.images)
        assert buffer.images.abs().max() > 1  # codes are not clipped
    else:
        assert buffer is None


def test_an_autoencoder_of_diffusers_is_measured_and_not_trained(faces, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    trained = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip
    trained.save_pretrained(tmp_path / "diffusers")
    trainer = make_trainer(faces, tmp_path / "run", autoencoder=str(tmp_path / "diffusers"))
    train_autoencoder(trainer)
    assert_same(weights_of(trainer.model.autoencoder.network), weights_of(trained))
    codes = trainer.model.encode(faces.images / 127.5 - 1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(codes.mean(1), torch.zeros(4), atol=0.3, rtol=0)
    torch.testing.assert_close(codes.std(1), torch.ones(4), atol=0.3, rtol=0)
    trainer.train()


def test_crops_of_another_camera():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 1, 16, 16, generator=generator)
    same = (random_crop(x, 2.0, 10.0, generator) == x).flatten(1).all(1)
    assert 150 < same.sum() < 250
    ramp = torch.linspace(-1, 1, 64).expand(400, 1, 64, 64)  # how steep it is in the middle says how large it is
    moved = random_crop(ramp, 2.0, 0.0, generator)
    steepness = (moved[:, 0, 32, 34:36].mean(-1) - moved[:, 0, 32, 28:30].mean(-1)) / (6 * 2 / 63)
    assert steepness.max() < 2.1 and steepness.min() > 0.9 and steepness.std() > 0.2
