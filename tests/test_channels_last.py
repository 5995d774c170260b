"""The memory layout of the network: kept wherever weights come from, and of no influence on what is computed."""

import torch

from jem_hf import JemModel


def kernels(model):
    return [p for p in model.backbone.parameters() if p.ndim == 4 and p[0, 0].numel() > 1]


def is_channels_last(model):
    return all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels(model))


def test_weights_are_channels_last_when_made_loaded_and_copied(model, tmp_path):
    assert kernels(model) and is_channels_last(model)
    model.save_pretrained(tmp_path)
    loaded = JemModel.from_pretrained(tmp_path)
    again, info = JemModel.from_pretrained(tmp_path, output_loading_info=True)
    assert is_channels_last(loaded) and is_channels_last(again) and not info["missing_keys"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    loaded.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    assert is_channels_last(loaded)


def test_the_layout_changes_no_number(model, tensors):
    x = (tensors.images / 127.5 - 1).requires_grad_(True)

    def numbers():
        potentials = model.potentials(x)
        (gradient,) = torch.autograd.grad(potentials.sum(), x, create_graph=True)
        model.zero_grad()
        gradient.square().sum().backward()
        return potentials.detach(), gradient.detach(), [kernel.grad.contiguous() for kernel in kernels(model)]

    last = numbers()
    model.backbone.to(memory_format=torch.contiguous_format)
    assert not is_channels_last(model)
    torch.testing.assert_close(last, numbers())
