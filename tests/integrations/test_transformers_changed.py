"""apply_kernels on models whose parts somebody has changed: what they do must still be done."""

import copy

import pytest
import torch
from torch import nn

import simmim_kernels as sk
from tests.integrations import test_transformers_mae as mae
from tests.integrations.transformers_models import CASES, build, flat, problem, transformers

MAEDecoder = transformers.models.vit_mae.modeling_vit_mae.ViTMAEDecoder


def own_forward(module):
    """As an adapter or accelerate's offloading does: the instance gets a forward of its own."""
    theirs = module.forward
    module.forward = lambda *args, **options: sine(theirs(*args, **options))


def sine(out):
    if isinstance(out, torch.Tensor):
        return out.sin()
    return (out[0].sin(), *out[1:])


def own_class(module):
    """The module gets a class of somebody's own, with the same parameters."""
    theirs = type(module)
    name = f"Own{theirs.__name__}"
    body = {"forward": lambda self, *args, **options: sine(theirs.forward(self, *args, **options))}
    module.__class__ = type(name, (theirs,), body)


def loss_of(model, images, **mask):
    loss = model(images, **mask).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, change, where, images, **mask):
    """Changed before and after the kernels are applied, the step is that of transformers."""
    expected = copy.deepcopy(model)
    change(expected.get_submodule(where))
    loss, grads = loss_of(expected, images, **mask)
    plain, _ = loss_of(copy.deepcopy(model), images, **mask)
    assert not torch.allclose(plain, loss, rtol=1e-4)
    for first in (True, False):
        ours = copy.deepcopy(model)
        if first:
            change(ours.get_submodule(where))
        sk.apply_kernels(ours)
        if not first:
            change(ours.get_submodule(where))
        found, own = loss_of(ours, images, **mask)
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(own, grads, rtol=1e-3, atol=1e-5)


PARTS = ["vit.embeddings.patch_embeddings", "vit.embeddings.patch_embeddings.projection"]


def grouped(convolution):
    """Each half of the outputs sees half of the inputs."""
    convolution.groups = 2
    inputs = convolution.in_channels // 2
    convolution.weight = nn.Parameter(convolution.weight.detach()[:, :inputs].clone())


CHANGES = [
    (change, where) for change in (own_forward, own_class) for where in (*PARTS, "decoder.0")
]


@pytest.mark.parametrize(
    ("change", "where"), [*CHANGES, (grouped, PARTS[1]), (grouped, "decoder.0")]
)
def test_parts_of_vit_that_were_changed(change, where, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(CASES, "ViT, 4 channels", ("ViT", {"num_channels": 4}))
    model, (images, mask, side) = build("ViT, 4 channels"), problem("ViT, 4 channels")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert_same_step(model, change, where, images, bool_masked_pos=flat(mask, side))


def adapt(model):
    """LoRA on every kind of layer that the kernels look into, and PEFT's copy of one that is trained."""
    import peft

    torch.manual_seed(5)
    layers = ["projection", "decoder.0", "q_proj", "query", "decoder_embed"]
    config = peft.LoraConfig(
        target_modules=layers, modules_to_save=["decoder_pred"], init_lora_weights=False
    )
    peft.get_peft_model(model, config)


@pytest.mark.parametrize("case", ["ViT", "MAE"])
def test_adapters_of_peft(case):
    model, (images, mask, side) = build("ViT"), problem("ViT")
    call = {"bool_masked_pos": flat(mask, side)}
    if case == "MAE":
        model, images, call = mae.build(), mae.IMAGES, {"noise": mae.NOISE}
    assert_same_step(model, adapt, "", images, **call)
    adapt(model)
    assert "a peft.tuners.lora.layer.Conv2d, not torch's Conv2d" in str(sk.apply_kernels(model))


DECODER = ["decoder", "decoder.decoder_embed", "decoder.decoder_pred", "decoder.decoder_layers.1"]
LAST = ["attention", "attention.q_proj", "mlp", "layernorm_after"]
#: what transformers 4 calls them
EARLIER = {"attention.q_proj": "attention.attention.query", "mlp": "intermediate"}


def in_this_version(where):
    """The path of a part of the last decoder layer in the installed transformers."""
    layer = mae.build().decoder.decoder_layers[1]
    name = where.removeprefix(f"{DECODER[-1]}.")
    if name in EARLIER and not hasattr(layer, "mlp"):
        return f"{DECODER[-1]}.{EARLIER[name]}"
    return where


@pytest.mark.parametrize("where", [*PARTS, *DECODER, *(f"{DECODER[-1]}.{name}" for name in LAST)])
@pytest.mark.parametrize("change", [own_forward, own_class])
def test_parts_of_mae_that_were_changed(change, where):
    if where == "decoder":
        change = own_decoder
    where = in_this_version(where)
    assert_same_step(mae.build(), change, where, mae.IMAGES, noise=mae.NOISE)


def own_decoder(decoder):
    class Own(MAEDecoder):
        def forward(self, *args, **options):
            out = super().forward(*args, **options)
            out.logits = out.logits.sin()
            return out

    decoder.__class__ = Own


def test_embeddings_of_ones_own_are_refused():
    model = build("ViT")
    own_class(model.vit.embeddings)
    with pytest.raises(TypeError, match=r"OwnViTEmbeddings .* have a forward of their own"):
        sk.apply_kernels(model)
    assert "forward" not in model.__dict__


def test_hooks_inside_the_last_layer_see_all_tokens():
    model, seen = mae.build(), []
    sk.apply_kernels(model)
    for name in ("attention", "mlp"):
        part = model.get_submodule(in_this_version(f"{DECODER[-1]}.{name}"))
        part.register_forward_hook(lambda module, args, out: seen.append(sine(out)))
    model(mae.IMAGES, noise=mae.NOISE).loss.backward()
    assert len(seen) == 2 and seen[1].shape[1] == 17
