"""apply_kernels against transformers itself: the same outputs, loss and gradients, whoever runs it."""

import copy

import pytest
import torch

import simmim_kernels as sk
from tests.budget import assert_within_budget
from tests.integrations.transformers_models import (
    CASES,
    MODELS,
    assert_equal_by_budget,
    build,
    flat,
    problem,
    result,
    transformers,
)


@pytest.mark.parametrize("units", [False, True], ids=["plain mask", "PatchMask"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_loss_and_gradients_are_those_of_transformers(case, units):
    model, (images, mask, side) = build(case), problem(case)
    theirs = flat(mask, side)
    ours = result(model, images, mask if units else theirs, kernels=True)
    plain = result(model, images, theirs)
    exact = result(model, images, theirs, torch.float64)
    assert_equal_by_budget(ours, plain, exact)


@pytest.mark.parametrize("case", ["ViT", "Swin"])
def test_integer_masks_of_different_counts(case):
    model, (images, _, side) = build(case), problem(case)
    mask = (torch.rand(3, side * side) < torch.tensor([[0.1], [0.5], [1.0]])).long()
    ours = result(model, images, mask, kernels=True)
    assert_equal_by_budget(
        ours, result(model, images, mask), result(model, images, mask, torch.float64)
    )


@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}], ids=["", "hidden"])
@pytest.mark.parametrize("case", CASES)
def test_evaluation_and_tuples(case, options):
    model, (images, mask, side) = build(case).eval(), problem(case)
    theirs, options = flat(mask, side), options | {"return_dict": False}
    with torch.no_grad():
        expected = model(images, theirs, **options)
        exact = copy.deepcopy(model).double()(images.double(), theirs, **options)
        sk.apply_kernels(model)
        got = model(images, theirs, **options)
        assert type(got) is tuple and len(got) == len(expected)
        leaves = map(torch.utils._pytree.tree_leaves, (got, expected, exact))
        for a, b, c in zip(*leaves, strict=True):
            assert_within_budget(a, b, c)
        assert list(model(images, theirs)) == ["loss", "reconstruction"]


@pytest.mark.parametrize("case", ["ViT", "Swin", "FocalNet"])
def test_without_a_mask_nothing_changes(case):
    model, (images, *_) = build(case).eval(), problem(case)
    expected = model(images)
    sk.apply_kernels(model)
    got = model(images)
    assert got.loss is None
    assert torch.equal(got.reconstruction, expected.reconstruction)


@pytest.mark.parametrize("case", CASES)
def test_a_patch_mask_where_transformers_code_runs(case):
    """Images that want a gradient are left to it, and it takes a plain mask."""
    model, (images, mask, side) = build(case).eval(), problem(case)
    expected = model(images, flat(mask, side)).loss
    sk.apply_kernels(model)
    torch.testing.assert_close(model(images.requires_grad_(), mask).loss, expected)


@pytest.mark.parametrize("case", ["ViT", "Swin"])
def test_gradients_of_single_samples(case):
    """The transforms of torch.func are left to transformers' code, too."""
    built, (images, mask, side) = build(case), problem(case)
    model = type(built)._from_config(built.config, attn_implementation="eager").train()
    model.load_state_dict(built.state_dict())

    def loss(weights, image, hidden):
        batch = (image[None], hidden[None])
        return torch.func.functional_call(model, weights, batch).loss

    def gradients():
        torch.manual_seed(3)  # of Swin's stochastic depth
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="same")
        return each(dict(model.named_parameters()), images, flat(mask, side))

    expected = gradients()
    sk.apply_kernels(model)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("case", CASES)
def test_meta_tensors(case):
    model, (images, mask, side) = build(case).to("meta"), problem(case)
    sk.apply_kernels(model)
    out = model(images.to("meta"), flat(mask, side).to("meta"))
    out.loss.backward()
    assert out.reconstruction.device.type == "meta" and out.reconstruction.shape == images.shape


def test_masked_pixels_reach_nothing():
    model, (images, mask, side) = build("ViT"), problem("ViT")
    sk.apply_kernels(model)
    pixels = mask.on_grid((48, 48)).mask[:, None]
    loss = model(images, flat(mask, side)).loss
    seen = images.masked_fill(pixels, 3.0)
    tokens = [model.vit(x, bool_masked_pos=mask).last_hidden_state for x in (images, seen)]
    assert torch.equal(*tokens)
    target = images.masked_fill(~pixels, float("nan"))
    head = sk.masked_l1(model(images, mask).reconstruction, target, mask)
    assert_within_budget(loss, head, head.double())


def loss_by_parts(model, images, mask):
    """The loss of an image of 64 x 32 pixels, of the model's own parts in its own type."""
    images, vit = images.to(model.dtype), model.vit
    embeddings = vit.embeddings
    x = embeddings.patch_embeddings.projection(images).flatten(2).transpose(1, 2)
    chosen = mask.on_grid((8, 4)).mask.flatten(1)[..., None]
    x = torch.where(chosen, embeddings.mask_token, x)
    x = torch.cat((embeddings.cls_token.expand(len(x), -1, -1), x), 1)
    x = x + embeddings.interpolate_pos_encoding(x, 64, 32)
    for layer in vit.layers if hasattr(vit, "layers") else vit.encoder.layer:
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
    tokens = vit.layernorm(x)[:, 1:]
    image = model.decoder(tokens.transpose(1, 2).unflatten(2, (8, 4)))
    return (image - images).abs()[mask.on_grid((64, 32)).mask[:, None].expand_as(image)].mean()


def test_other_sizes_and_shapes_with_interpolated_positions():
    """transformers refuses these masks; the loss is held to its parts in float64."""
    model = build("ViT").eval()
    images, mask = torch.randn(2, 3, 64, 32), sk.random_mask(2, (4, 2), 0.5, seed=1)
    plain = loss_by_parts(model, images, mask)
    exact = loss_by_parts(copy.deepcopy(model).double(), images, mask)
    sk.apply_kernels(model)
    out = model(images, mask, interpolate_pos_encoding=True)
    assert out.reconstruction.shape == images.shape
    assert_within_budget(out.loss, plain, exact)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MODELS)
def test_a_model_in_half_precision(case, dtype):
    """Of one call, a loss in these types may be right by chance: held are eight together."""
    errors = {"ours": [], "plain": []}
    for seed in range(8):
        torch.manual_seed(seed)
        model, (images, mask, side) = build(case), problem(case)
        theirs = flat(mask, side)
        exact = result(model, images, theirs, torch.float64)
        for who in errors:
            found = result(model, images, theirs, dtype, kernels=who == "ours")
            assert {name: value.dtype for name, value in found.items()} == {
                name: torch.float32 if name == "loss" else dtype for name in found
            }
            errors[who].append(
                [(value - exact[name]).detach().norm() for name, value in found.items()]
            )
    ours, plain = (torch.tensor(rows).norm(dim=0) for rows in errors.values())
    for name, error, theirs in zip(exact, ours, plain, strict=True):
        assert error <= 2 * theirs, name


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", ["ViT", "Swin"])
def test_gradient_checkpointing(case, reentrant):
    model, (images, mask, side) = build(case), problem(case)
    theirs, options = flat(mask, side), {"use_reentrant": reentrant}
    plain = result(model, images, theirs)
    exact = result(model, images, theirs, torch.float64)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    assert_equal_by_budget(result(model, images, theirs, kernels=True), plain, exact)


def test_hooks_are_run_and_parametrizations_respected():
    model, (images, mask, side) = build("ViT"), problem("ViT")
    theirs = flat(mask, side)
    called = []
    hooks = model.decoder[0], model.vit.embeddings.patch_embeddings.projection
    for module in hooks:
        module.register_forward_hook(lambda module, args, out: called.append(module))
    expected = result(model, images, theirs), result(model, images, theirs, torch.float64)
    called.clear()
    assert_equal_by_budget(result(model, images, theirs, kernels=True), *expected)
    assert len(called) == 2
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    weight_norm(model.decoder[0])
    weight_norm(model.vit.embeddings.patch_embeddings.projection)
    report = sk.apply_kernels(model)
    assert "decoder" in report.left and "vit.embeddings.patch_embeddings" in report.left
    model(images, theirs).loss.backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "reconstruction"), [("ViT", True), ("ViT", False), ("FocalNet", False)]
)
def test_compile(case, reconstruction):
    model, (images, mask, side) = build(case), problem(case)
    theirs = flat(mask, side)
    expected = result(model, images, theirs)
    exact = result(model, images, theirs, torch.float64)
    sk.apply_kernels(model, reconstruction=reconstruction)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=case == "ViT")
    torch.manual_seed(7)
    out = compiled(images, bool_masked_pos=theirs)
    out.loss.backward()
    assert (out.reconstruction is not None) == reconstruction
    got = {"loss": out.loss} | {n: p.grad for n, p in model.named_parameters() if n in expected}
    assert_equal_by_budget(got, {n: expected[n] for n in got}, exact)


@pytest.mark.slow
def test_exports_for_batches_of_any_size():
    model, (images, mask, side) = build("ViT").eval(), problem("ViT")
    more, other, _ = problem("ViT", 5)
    expected = model(more, flat(other, side)).loss
    sk.apply_kernels(model)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = {"dynamic_shapes": (batch, batch), "strict": False}
    exported = torch.export.export(model, (images, flat(mask, side)), **shapes).module()
    torch.testing.assert_close(exported(more, flat(other, side)).loss, expected)


class Recording(transformers.Trainer):
    """Keeps the loss of every training step, which its log rounds."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.losses.append(found.detach())
        return found


def trained_losses(folder, kernels=False, bf16=False, dtype=torch.float32, units=False):
    """Losses `(4,)` of four updates under transformers' Trainer, with a PatchMask by `units`."""
    torch.manual_seed(0)
    model = build("ViT")
    images, mask, side = problem("ViT", batch=8)
    model.to(dtype)
    if kernels:
        report = sk.apply_kernels(model)
    rows = [
        {"pixel_values": image.to(dtype), "bool_masked_pos": row, "ids": i}
        for i, (image, row) in enumerate(zip(images, flat(mask, side), strict=True))
    ]

    def with_units(rows):
        chosen = sk.PatchMask(*(part[[row["ids"] for row in rows]] for part in mask))
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "bool_masked_pos": chosen}

    arguments = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        report_to=[],
        use_cpu=True,
        bf16=bf16,
        save_strategy="no",
        remove_unused_columns=not units,
    )
    collator = with_units if units else None
    trainer = Recording(model, arguments, collator, train_dataset=rows, eval_dataset=rows)
    trainer.losses = []
    trainer.train()
    predicted = trainer.predict(rows)
    assert predicted.predictions[-1].shape == images.shape
    if kernels:
        report.undo()
    return torch.stack(trainer.losses)


@pytest.mark.slow
@pytest.mark.parametrize(("bf16", "units"), [(False, False), (True, False), (False, True)])
def test_trainer(bf16, units, tmp_path):
    pytest.importorskip("accelerate")
    ours = trained_losses(tmp_path / "ours", kernels=True, bf16=bf16, units=units)
    plain = trained_losses(tmp_path / "plain", bf16=bf16)
    exact = trained_losses(tmp_path / "exact", dtype=torch.float64)
    assert ours.dtype == plain.dtype == torch.float32 and ours.shape == (4,)
    assert_within_budget(ours, plain, exact)
    assert len(set(exact.tolist())) == 4
