"""Energies of codes: the model, and where its autoencoder comes from."""

import json

import pytest
import torch
from transformers import pipeline

from jem_hf import JemConfig, JemModel
from jem_hf.models.autoencoder_jem import Autoencoder

SMALL = {"code_size": 8, "code_channels": 4, "width": 16, "depth": 1}


def config_of_codes(**settings):
    return JemConfig(
        attributes=["Smiling", "Hair"],
        attribute_values={"Hair": ["black", "blond", "red"]},
        backbone_kwargs={"width": 4, "hidden_size": 8},
        num_inference_steps=4,
        **({"image_size": 16, "autoencoder": SMALL} | settings),
    )


def model_of_codes(**settings):
    torch.manual_seed(0)
    model = JemModel(config_of_codes(**settings)).eval()
    standardise = model.autoencoder.standardise  # as if images had been seen
    standardise.running_mean.normal_()
    standardise.running_var.uniform_(0.5, 2)
    standardise.num_batches_tracked.fill_(1)
    return model


def images(num=3, size=16):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


LABELS = torch.tensor([[1, 2], [0, -1], [-1, -1]])


@pytest.mark.parametrize("image_size, code_size, channels", [(16, 8, 4), (32, 8, 2), (64, 8, 8), (64, 16, 3)])
def test_codes_have_the_shape_that_the_config_says(image_size, code_size, channels):
    settings = {"code_size": code_size, "code_channels": channels, "width": 16}
    model = model_of_codes(image_size=image_size, autoencoder=settings)
    codes = model.encode(images(2, image_size))
    assert codes.shape == (2, *model.config.code_shape) == (2, channels, code_size, code_size)
    assert model.decode(codes).shape == (2, 3, image_size, image_size)


def test_codes_are_standardised_over_the_images_seen():
    torch.manual_seed(0)
    autoencoder = Autoencoder(16, 3, **SMALL).train()
    x = images(64)
    for _ in range(120):  # the running statistics forget with .95 a step
        autoencoder.encode(x)
    codes = autoencoder.eval().encode(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(codes.mean(1), torch.zeros(4), atol=0.01, rtol=0)
    torch.testing.assert_close(codes.std(1), torch.ones(4), atol=0.01, rtol=0)


def test_the_energy_of_an_image_is_that_of_its_code():
    model, x = model_of_codes(), images().requires_grad_(True)
    distribution = model.label_distribution(model.encode(x))
    torch.testing.assert_close(model.log_joint(x, LABELS), distribution.log_joint(LABELS))
    torch.testing.assert_close(model.log_marginal(x), distribution.log_marginal())
    torch.testing.assert_close(model(x, LABELS).energy, -distribution.log_joint(LABELS))
    torch.testing.assert_close(model(codes=model.encode(x)).attribute_logits, model(x).attribute_logits)
    torch.testing.assert_close(model.predict_proba(x), distribution.marginal_logits()[0].softmax(-1))
    (gradient,) = torch.autograd.grad(model.log_marginal(x).sum(), x)  # all the way to the pixels
    assert gradient.abs().flatten(1).amax(1).min() > 0


def test_training_mode_leaves_the_statistics_of_the_codes_alone():
    model, x = model_of_codes(), images()
    before, code = model.autoencoder.standardise.running_mean.clone(), model.encode(x)
    model.train()
    torch.testing.assert_close(model.encode(x), code)
    assert torch.equal(model.autoencoder.standardise.running_mean, before)
    assert not any(p.requires_grad for p in model.autoencoder.parameters())
    assert all(p.requires_grad for p in model.backbone.parameters())


def test_images_are_drawn_in_codes_and_decoded():
    model = model_of_codes()
    noise = torch.randn(3, *model.config.code_shape, generator=torch.Generator().manual_seed(0))
    seen = []
    x, _ = model.generate(LABELS, noise=noise, free_attributes="marginalise", callback=lambda x, *_: seen.append(x))
    assert x.shape == (3, 3, 16, 16) and len(seen) == 4 and all(each.shape == x.shape for each in seen)
    torch.testing.assert_close(seen[0], model.decode(noise).detach())
    again, _ = model.generate(LABELS, noise=noise, free_attributes="marginalise", batch_size=2)
    torch.testing.assert_close(again, x, atol=1e-4, rtol=1e-4)


def test_langevin_chains_of_codes_start_normal_and_have_no_bounds():
    model = model_of_codes(sampler="langevin", step_size=1e-9, noise_scale=0.0)
    noise = model.initial_noise(200, torch.Generator().manual_seed(0))
    assert abs(noise.std().item() - 1) < 0.02 and noise.abs().max() > 3
    x, _ = model.generate(torch.full((200, 2), 0), noise=noise)
    torch.testing.assert_close(x, model.decode(noise), atol=1e-3, rtol=1e-3)


def test_in_painting_leaves_every_pixel_outside_the_mask():
    model, x = model_of_codes(), images()
    mask = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    mask[:, :, 3:9, 5:12] = True
    drawn, _ = model.edit(x, LABELS, mask=mask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn[~mask.expand_as(x)], x[~mask.expand_as(x)])
    assert not torch.isclose(drawn[mask.expand_as(x)], x[mask.expand_as(x)]).any()


def test_an_edit_without_strength_is_the_reconstruction():
    model, x = model_of_codes(), images()
    drawn, _ = model.edit(x, LABELS, strength=1e-6, num_inference_steps=1, guidance_scale=0.0, hold_scale=0.0)
    expected = model.decode(model.encode(x))
    assert (drawn - expected).abs().mean() < 0.2 < (drawn - x).abs().mean()


def test_a_round_trip_keeps_the_autoencoder(tmp_path):
    model, x = model_of_codes(), images()
    model.save_pretrained(tmp_path)
    again = JemModel.from_pretrained(tmp_path)
    assert again.config.autoencoder == SMALL and again.config.code_shape == (4, 8, 8)
    torch.testing.assert_close(again(x).energy, model(x).energy)
    torch.testing.assert_close(again.decode(again.encode(x)), model.decode(model.encode(x)))
    assert again.resize_attributes(["Smiling", "Hat"]).predict_proba(x).shape == (3, 2, 2)


def test_pipelines_take_a_model_of_codes():
    model = model_of_codes()
    generate = pipeline("attribute-conditional-generation", model=model)
    one, other = generate(["Smiling", "Hair=red"], num_images=2, seed=3)
    assert one[0]["image"].size == (16, 16)
    # what is said of an image is said of the image that is given, not of the code before it was decoded
    x = generate("Smiling", seed=3, return_tensors=True)[0]
    energy = -model.log_joint(x["pixel_values"][None], torch.tensor([[1, -1]])).item()
    assert x["energy"] == pytest.approx(energy, abs=1e-4)
    edited = generate("Hair=black", image=other[0]["image"], seed=1)
    assert edited[0]["image"].size == (16, 16)


def test_the_autoencoder_of_another_checkpoint(tmp_path):
    trained = model_of_codes()
    trained.save_pretrained(tmp_path)
    model = JemModel(config_of_codes(autoencoder=str(tmp_path), head="pairwise"))
    assert model.config.autoencoder == SMALL  # nothing of the place where it was
    torch.testing.assert_close(model.encode(images()), trained.encode(images()))
    assert str(tmp_path) not in json.dumps(model.config.to_dict())
    larger = JemModel(config_of_codes(autoencoder={"from_pretrained": str(tmp_path)}, image_size=32))
    assert larger.config.code_shape == (4, 16, 16)


def test_wrong_autoencoders_are_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its energy is one of pixels"):
        config_of_codes(autoencoder=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="neither a JemModel nor an autoencoder of diffusers"):
        config_of_codes(autoencoder=str(tmp_path))
    with pytest.raises(ValueError, match="did you mean 'code_size'"):
        config_of_codes(autoencoder={"codesize": 8})
    with pytest.raises(ValueError, match="code_size 16: choose 8, 4, 2"):
        config_of_codes(autoencoder={"code_size": 16})
    with pytest.raises(ValueError, match="multiple of 16"):
        config_of_codes(autoencoder={"width": 12})
    with pytest.raises(ValueError, match="code_channels of the autoencoder"):
        config_of_codes(autoencoder={"code_channels": 0})
    with pytest.raises(ValueError, match="codes"):
        model_of_codes().generate(LABELS, noise=torch.randn(3, 3, 16, 16))


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_an_autoencoder_of_diffusers(tmp_path, kind):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if kind == "tiny":
        trained = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4,
        ).eval()  # fmt: skip
    else:
        trained = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        ).eval()  # fmt: skip
    trained.save_pretrained(tmp_path / "diffusers")
    model = JemModel(config_of_codes(autoencoder=str(tmp_path / "diffusers"))).eval()
    assert model.config.code_shape == (4, 8, 8)
    x = images()
    with torch.no_grad():
        encoded = trained.encode(x)
        latents = encoded.latents if kind == "tiny" else encoded.latent_dist.mode()
        torch.testing.assert_close(model.encode(x), latents / (1 + model.autoencoder.standardise.eps) ** 0.5)
        torch.testing.assert_close(model.decode(model.encode(x)), trained.decode(latents).sample, atol=1e-3, rtol=1e-3)
    model.save_pretrained(tmp_path / "jem")
    again = JemModel.from_pretrained(tmp_path / "jem")  # from its own folder alone
    torch.testing.assert_close(again(x).energy, model(x).energy)
    assert str(tmp_path) not in (tmp_path / "jem" / "config.json").read_text()
