import pytest
import timm
import torch

from jem_hf import JemConfig, JemModel
from jem_hf.models.backbone_jem import Residual, create_backbone


def test_parameters_at_the_papers_size_match_its_layer_table():
    """DESIGN: conv 3-64 k3; k4 s2 to 128, 256, 512, 512; 1x1 to 64; flatten 1024; MLP 128-128-2K."""
    convolutions = [(3, 64, 3), (64, 128, 4), (128, 256, 4), (256, 512, 4), (512, 512, 4), (512, 64, 1)]
    expected = sum(i * o * k * k + o for i, o, k in convolutions)
    expected += sum(i * o + o for i, o in [(1024, 128), (128, 128), (128, 46)])
    network = timm.create_model("jem_cnn", img_size=64, width=64, num_classes=46)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_powers_of_two(size):
    network = timm.create_model("jem_cnn", img_size=size, width=4, num_classes=0)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 128)
    assert network.forward_features(torch.zeros(2, 3, size, size)).shape == (2, 4, 4, 4)


def test_a_stem_of_stride_two_replaces_one_halving():
    """4x4 of stride 2 to `width` channels at half the size, and one convolution less after it."""
    network = timm.create_model("jem_cnn", img_size=64, width=4, hidden_size=8, stem_stride=2, num_classes=0)
    layers = [m for m in network.convolutions if isinstance(m, torch.nn.Conv2d)]
    shapes = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in layers]
    assert shapes == [(3, 4, 4, 2), (4, 8, 4, 2), (8, 16, 4, 2), (16, 32, 4, 2), (32, 4, 1, 1)]
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
    with pytest.raises(ValueError, match="stem_stride is 1 or 2, not 3"):
        timm.create_model("jem_cnn", stem_stride=3)


def test_depth_adds_residual_convolutions_at_each_resolution():
    """Two 3x3 convolutions more at 16, 8 and 4 pixels; with weights of zero they add silu(0) = 0."""
    plain = timm.create_model("jem_cnn", img_size=16, width=4, num_classes=0)
    deep = timm.create_model("jem_cnn", img_size=16, width=4, depth=2, num_classes=0)
    count_of = {model: sum(p.numel() for p in model.parameters()) for model in (plain, deep)}
    assert count_of[deep] - count_of[plain] == 2 * sum(9 * c * c + c for c in (4, 8, 16))
    residuals = [(name, m) for name, m in deep.convolutions.named_children() if isinstance(m, Residual)]
    seen = {}
    for name, residual in residuals:
        residual.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out.shape[1:]}))
        torch.nn.init.zeros_(residual[0].weight)
        torch.nn.init.zeros_(residual[0].bias)
    rest = [m for m in deep.convolutions if not isinstance(m, Residual)]
    torch.nn.Sequential(*rest).load_state_dict(plain.convolutions.state_dict())
    deep.mlp.load_state_dict(plain.mlp.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(deep(x), plain(x))
    assert list(seen.values()) == [(4, 16, 16)] * 2 + [(8, 8, 8)] * 2 + [(16, 4, 4)] * 2


@pytest.mark.parametrize("size", [4, 48, 100])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"not {size}"):
        timm.create_model("jem_cnn", img_size=size)


def test_batch_norm_is_refused_and_the_remedy_works():
    with pytest.raises(ValueError, match="norm_layer"):
        create_backbone("resnet18", 32, 3)
    create_backbone("resnet18", 32, 3, norm_layer="groupnorm")


@pytest.mark.parametrize(
    "backbone, kwargs, size",
    [
        ("jem_cnn", {"width": 8}, 16),
        ("jem_cnn", {"width": 8, "depth": 1}, 16),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, 32),
        ("vit_tiny_patch16_224", {"depth": 2, "patch_size": 8, "embed_dim": 24, "num_heads": 2}, 32),
        ("resnet18", {"norm_layer": "groupnorm"}, 32),
        ("swinv2_cr_tiny_224", {"depths": (1, 1), "embed_dim": 16, "num_heads": (2, 2), "window_size": 4}, 32),
    ],
)
def test_round_trip_is_exact_and_twice_differentiable(backbone, kwargs, size, tmp_path):
    torch.manual_seed(0)
    model = JemModel(
        JemConfig(attributes=["A", "B"], backbone=backbone, backbone_kwargs=kwargs, image_size=size)
    ).eval()
    model.save_pretrained(tmp_path)
    loaded = JemModel.from_pretrained(tmp_path)
    assert not loaded.training
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    x = torch.rand(2, 3, size, size, requires_grad=True)
    assert torch.equal(model(x).attribute_logits, loaded(x).attribute_logits)
    (gradient,) = torch.autograd.grad(model.log_marginal(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert model.head.linear.weight.grad.abs().sum() > 0
