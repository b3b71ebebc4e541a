"""apply_kernels on transformers' ViTMAEForPreTraining: the same mask, loss and gradients."""

import copy
import pickle

import pytest
import torch

import simmim_kernels as sk
from tests.budget import assert_within_budget

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8, "num_channels": 3}
SIZES |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2}
SIZES |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}
DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.randn(3, 3, 32, 32, generator=DRAW)
NOISE = torch.rand(3, 16, generator=DRAW)


def build(dtype=torch.float32, **changes):
    """A model with random numbers in every parameter, position tables included."""
    torch.manual_seed(1)
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES | changes)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) / max(parameter.shape[-1], 8) ** 0.5)
            parameter.requires_grad_()
    return model.to(dtype)


def step(model, images=IMAGES, noise=NOISE, kernels=False, options=None, **call):
    """Outputs and gradients of a copy of `model`."""
    model = copy.deepcopy(model)
    if kernels:
        sk.apply_kernels(model, **options or {})
    out = model(images.to(model.dtype), noise=noise, **call)
    out.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out, grads


CASES = {
    "plain": {},
    "norm-pix": {"norm_pix_loss": True},
    "eager attention": {"attn_implementation": "eager"},
    "another ratio": {"mask_ratio": 0.4},
    "one layer": {"decoder_num_hidden_layers": 1},
    "13 channels": {"num_channels": 13},
}


@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_logits_are_those_of_transformers(case):
    changes = CASES[case]
    model = build(torch.float64, **changes)
    images = torch.randn(3, model.config.num_channels, 32, 32)
    theirs, expected = step(model, images)
    ours, grads = step(model, images, kernels=True)
    assert type(ours).__mro__[2] is type(theirs)
    assert torch.equal(ours.mask, theirs.mask) and ours.mask.dtype == theirs.mask.dtype
    # transformers' own attention takes its softmax in float32
    close = {"rtol": 1e-6, "atol": 1e-6} if "eager" in case else {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(ours.loss.double(), theirs.loss, **close)
    torch.testing.assert_close(ours.logits, theirs.logits, **close)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], **close, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_within_those_of_transformers(dtype):
    model = build(dtype, norm_pix_loss=True)
    kinds = {"exact": torch.float64, "plain": dtype, "ours": dtype}
    results = {kind: [] for kind in kinds}
    for images in torch.randn(8, *IMAGES.shape):  # one draw alone may round luckily
        for kind, its_dtype in kinds.items():
            out, grads = step(model.to(its_dtype), images, kernels=kind == "ours")
            results[kind].append({"loss": out.loss} | grads)
    for name in results["ours"][0]:
        if not name.endswith("k_proj.bias"):  # whose gradient is 0
            ours, plain, exact = (
                torch.stack([draw[name] for draw in results[kind]])
                for kind in ("ours", "plain", "exact")
            )
            assert_within_budget(ours, plain, exact, name)


def test_a_whole_image_of_another_size():
    model = build(torch.float64)
    images, noise = torch.randn(2, 3, 48, 64, dtype=torch.float64), torch.rand(2, 48)
    options = {"images": images, "noise": noise, "interpolate_pos_encoding": True}
    theirs, expected = step(model, **options)
    ours, grads = step(model, **options, kernels=True)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-11, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-10, atol=1e-11)


def test_evaluation_gives_logits_at_once():
    model = build(torch.float64).eval()
    with torch.no_grad():
        theirs = model(IMAGES.double(), noise=NOISE, output_hidden_states=True)
        report = sk.apply_kernels(model)
        ours = model(IMAGES.double(), noise=NOISE, output_hidden_states=True)
        as_tuple = model(IMAGES.double(), noise=NOISE, return_dict=False)
    assert type(ours) is type(theirs) and len(ours.hidden_states) == len(theirs.hidden_states)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-11, atol=1e-12)
    assert torch.equal(as_tuple[0], ours.loss)
    report.undo()
    assert "forward" not in model.__dict__ and "forward" not in model.vit.embeddings.__dict__
    with torch.no_grad():
        again = model(IMAGES.double(), noise=NOISE)
    assert torch.equal(again.loss, theirs.loss)


@pytest.mark.parametrize("options", [{}, {"reconstruction": False}])
def test_nothing_hidden(options):
    """transformers' loss is 0 / 0 then; the outputs are what such a call is made for."""
    model = build(mask_ratio=0.0)
    expected = model(IMAGES, noise=NOISE).logits
    sk.apply_kernels(model, **options)
    out = model(IMAGES, noise=NOISE)
    out.loss.backward()
    assert out.loss == 0
    if options:
        assert out.logits is None
    else:
        torch.testing.assert_close(out.logits, expected, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_mask():
    model = build()
    torch.manual_seed(5)
    theirs, _ = step(model, noise=None)
    torch.manual_seed(5)
    ours, _ = step(model, noise=None, kernels=True)
    assert torch.equal(ours.mask, theirs.mask)


def test_ids_restore_fit_the_order_of_the_tokens():
    model = build()
    out, _ = step(model, kernels=True)
    first = out.ids_restore < 4  # visible ones come first
    assert torch.equal(first, out.mask == 0)
    for row in out.ids_restore:
        assert row[row < 4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", [sk.random_mask, sk.uniform_mask])
def test_a_patch_mask_in_the_place_of_noise(strategy):
    mask = strategy(3, (4, 4), 0.75, seed=2)
    noise = mask.mask.flatten(1).double() + torch.rand(3, 16) / 2  # that hides the same patches
    model = build(torch.float64)
    theirs, expected = step(model, noise=noise)
    ours, grads = step(model, noise=mask, kernels=True)
    assert torch.equal(ours.mask, theirs.mask)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-11, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-10, atol=1e-11)


def test_hidden_patches_are_not_embedded():
    mask = sk.random_mask(3, (4, 4), 0.75, seed=2)
    hidden = mask.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    model = build()
    report = sk.apply_kernels(model)
    encoder = model.vit(IMAGES.masked_fill(hidden, float("nan")), noise=mask)
    assert encoder.last_hidden_state.isfinite().all()
    assert "visible_patch_embed" in str(report) and "restore_tokens" in str(report)


def test_what_the_kernels_do_not_cover_is_left_to_transformers():
    model = build(torch.float64)
    sk.apply_kernels(model)
    with pytest.raises(ValueError, match="doesn't match model"):
        model(torch.randn(2, 3, 48, 48, dtype=torch.float64))
    images = IMAGES.double().requires_grad_()
    model(images, noise=NOISE).loss.backward()
    assert images.grad.any()
    with pytest.raises(ValueError, match="a PatchMask was given"):
        model(images, noise=sk.random_mask(3, (4, 4), 0.75, seed=2))


def test_hooks_on_the_decoder_are_called():
    model, seen = build(torch.float64), []
    theirs, _ = step(model)
    sk.apply_kernels(model)
    model.decoder.register_forward_hook(lambda *_: seen.append(1))
    out = model(IMAGES.double(), noise=NOISE)
    assert seen == [1]
    torch.testing.assert_close(out.loss, theirs.loss, rtol=1e-11, atol=1e-12)


def test_logits_with_dropout_are_those_that_the_loss_saw():
    model = build(torch.float64, hidden_dropout_prob=0.5)
    sk.apply_kernels(model)
    out = model(IMAGES.double(), noise=NOISE)
    mask = sk.PatchMask.from_mask(out.mask.bool().view(3, 4, 4))
    again = sk.masked_mse(out.logits, IMAGES.double(), mask, order="yxc", eps=0.0)
    torch.testing.assert_close(again, out.loss)


@pytest.mark.parametrize("fused", [False, True])
def test_logits_are_refused_after_the_decoder_was_updated(fused):
    model = build()
    sk.apply_kernels(model)
    out = model(IMAGES, noise=NOISE)
    out.loss.backward()
    torch.optim.SGD(model.parameters(), 0.1, fused=fused).step()
    with pytest.raises(RuntimeError, match="before the optimizer's step"):
        _ = out.logits


def test_logits_are_never_those_of_other_weights():
    model, other = build(), build()
    sk.apply_kernels(model)
    lent = dict(other.named_parameters())
    out = torch.func.functional_call(model, lent, IMAGES, {"noise": NOISE})
    with pytest.raises(RuntimeError, match="logits: the decoder has other weights"):
        _ = out.logits
    out = torch.func.functional_call(model, lent, IMAGES, {"noise": NOISE, "return_dict": False})
    torch.testing.assert_close(out[1], other(IMAGES, noise=NOISE).logits)


def test_logits_left_out():
    out, _ = step(build(), kernels=True, options={"reconstruction": False})
    assert out.logits is None and out.loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles(autocast):
    model = build()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs = model(IMAGES, noise=NOISE)
        sk.apply_kernels(model)
        ours = torch.compile(model, backend="aot_eager")(IMAGES, noise=NOISE)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=2e-2 if autocast else 1e-5, atol=1e-5)
    ours.loss.backward()


@pytest.mark.slow
def test_exports_for_batches_of_any_size():
    model, more, noise = build(), torch.randn(5, 3, 32, 32), torch.rand(5, 16)
    expected = model(more, noise=noise).loss
    sk.apply_kernels(model)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = {"dynamic_shapes": {"pixel_values": batch, "noise": batch}, "strict": False}
    arguments = {"pixel_values": IMAGES, "noise": NOISE}
    exported = torch.export.export(model, (), arguments, **shapes).module()
    torch.testing.assert_close(exported(pixel_values=more, noise=noise).loss, expected)


def test_copies_and_pickles_run_on_the_kernels():
    model = build()
    sk.apply_kernels(model)
    expected = model(IMAGES, noise=NOISE).loss
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IMAGES, noise=NOISE).loss, expected)
