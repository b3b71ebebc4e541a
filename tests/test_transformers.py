"""apply_kernels against transformers itself: the same outputs, loss and gradients, and back again."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

import simmim_kernels as sk
from tests.budget import assert_within_budget

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT |= {"image_size": 48, "patch_size": 8, "encoder_stride": 8, "num_channels": 3}
SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 3}
SWIN |= {"image_size": 48, "patch_size": 4, "encoder_stride": 8, "num_channels": 3}
FOCAL = {"embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]}
FOCAL |= {"image_size": 48, "patch_size": 4, "encoder_stride": 8, "num_channels": 3}
MODELS = {
    "ViT": VIT,
    "DeiT": VIT,
    "Swin": SWIN,
    "Swinv2": SWIN,
    "FocalNet": FOCAL,
}
VARIANTS = {
    "ViT, 13 channels": ("ViT", {"num_channels": 13}),
    "Swin, absolute positions": ("Swin", {"use_absolute_embeddings": True}),
    "FocalNet, overlapping patches": ("FocalNet", {"use_conv_embed": True}),
}
CASES = {name: (name, {}) for name in MODELS} | VARIANTS


def build(case):
    """A model with random numbers in every parameter, dropout included in its configuration."""
    name, changes = CASES[case]
    config = getattr(transformers, f"{name}Config")(**MODELS[name] | changes)
    model = getattr(transformers, f"{name}ForMaskedImageModeling")(config).train()
    positions = getattr(getattr(model, name.lower()).embeddings, "position_embeddings", None)
    if name == "Swin" and positions is not None and positions.shape[1] == 145:
        pytest.skip("this version of transformers counts a class token in Swin's positions")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) / max(parameter.shape[-1], 8) ** 0.5)
    return model


def problem(case, batch=3):
    name, changes = CASES[case]
    sizes = MODELS[name] | changes
    images = torch.randn(batch, sizes["num_channels"], 48, 48)
    return images, sk.random_mask(batch, (3, 3), 0.6, seed=2), 48 // sizes["patch_size"]


def flat(mask, side):
    return mask.on_grid((side, side)).mask.flatten(1)


def result(model, images, mask, dtype=torch.float32, kernels=False, **options):
    """Outputs and gradients of a copy of `model` in `dtype`."""
    model = copy.deepcopy(model).to(dtype)
    if kernels:
        sk.apply_kernels(model, **options)
    torch.manual_seed(7)
    out = model(images.to(dtype), bool_masked_pos=mask, output_hidden_states=True)
    out.loss.backward()
    tensors = {"loss": out.loss, "last": out.hidden_states[-1]}
    if out.reconstruction is not None:
        tensors["reconstruction"] = out.reconstruction
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return tensors | grads


def assert_equal_by_budget(ours, plain, exact):
    assert list(ours) == list(plain)
    for name, tensor in ours.items():
        # Softmax does not see a key's bias: its gradient is 0, a sum of numbers that cancel.
        sums = exact[f"{name[:-4]}weight"] if name.endswith(("k_proj.bias", "key.bias")) else None
        assert_within_budget(tensor, plain[name], exact[name], name, sums)


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


@pytest.mark.parametrize("case", CASES)
def test_evaluation_and_tuples(case):
    model, (images, mask, side) = build(case).eval(), problem(case)
    theirs = flat(mask, side)
    with torch.no_grad():
        expected = model(images, theirs, return_dict=False)
        exact = copy.deepcopy(model).double()(images.double(), theirs, return_dict=False)
        sk.apply_kernels(model)
        got = model(images, theirs, return_dict=False)
        assert type(got) is tuple
        for a, b, c in zip(got, expected, exact, strict=True):
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
def test_undo_restores_the_instance_and_classes_never_change(case):
    model, (images, mask, side) = build(case), problem(case)
    cls, other = type(model), build(case)
    before = set(model.__dict__), cls.forward, list(model.state_dict())
    expected = result(model, images, flat(mask, side))
    report = sk.apply_kernels(model)
    assert list(model.state_dict()) == before[2]
    assert type(model) is cls and cls.forward is before[1]
    assert "forward" not in other.__dict__
    assert report.replaced and report.left and cls.__name__ in str(report)
    report.undo()
    report.undo()
    assert not report.replaced
    assert set(model.__dict__) == before[0]
    again = result(model, images, flat(mask, side))
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_undo_below_a_wrapper_of_somebody_else():
    model, (images, mask, side) = build("ViT").eval(), problem("ViT")
    expected = model(images, flat(mask, side))
    report = sk.apply_kernels(model)
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    report.undo()
    assert torch.equal(model(images, flat(mask, side)).loss, expected.loss)


def test_a_copy_runs_on_its_own_weights():
    model, (images, mask, _) = build("ViT"), problem("ViT")
    sk.apply_kernels(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert copied(images, mask).loss.isfinite()


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


def test_other_sizes_and_shapes_with_interpolated_positions():
    """transformers refuses these masks; the loss is held to its parts in float64."""
    model = build("ViT").eval()
    images, mask = torch.randn(2, 3, 64, 32), sk.random_mask(2, (4, 2), 0.5, seed=1)
    double = copy.deepcopy(model).double()
    sk.apply_kernels(model)
    out = model(images, mask, interpolate_pos_encoding=True)
    assert out.reconstruction.shape == images.shape
    embeddings = double.vit.embeddings
    x = embeddings.patch_embeddings.projection(images.double())
    x = x.flatten(2).transpose(1, 2)
    chosen = mask.on_grid((8, 4)).mask.flatten(1)[..., None]
    x = torch.where(chosen, embeddings.mask_token, x)
    x = torch.cat((embeddings.cls_token.expand(2, -1, -1), x), 1)
    x = x + embeddings.interpolate_pos_encoding(x, 64, 32)
    layers = double.vit.layers if hasattr(double.vit, "layers") else double.vit.encoder.layer
    for layer in layers:
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
    tokens = double.vit.layernorm(x)[:, 1:]
    image = double.decoder(tokens.transpose(1, 2).unflatten(2, (8, 4)))
    error = (image - images.double()).abs()[mask.on_grid((64, 32)).mask[:, None].expand_as(image)]
    torch.testing.assert_close(out.loss.double(), error.mean(), rtol=1e-5, atol=0)


# The output of a training step, whose reconstruction is made when it is read.


def training_output(case="ViT", kernels=True, autocast=False, dtype=torch.float32, **options):
    torch.manual_seed(3)
    model, (images, mask, side) = build(case).to(dtype), problem(case)
    if kernels:
        sk.apply_kernels(model, **options)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model, model(images.to(dtype), flat(mask, side))


def test_replicas_of_data_parallel_run_on_their_own_weights():
    model, (images, mask, side) = build("ViT"), problem("ViT")
    report = sk.apply_kernels(model)
    for module in (model, model.vit.embeddings):
        assert module._replicate_for_data_parallel().forward.__self__ is not module
    out = model(images, flat(mask, side))
    gathered = type(out)((key, out[key]) for key in out)  # as DataParallel puts outputs together
    assert gathered.loss is out.loss and gathered.reconstruction is out.reconstruction
    report.undo()
    assert "_replicate_for_data_parallel" not in model.__dict__


READERS = {
    "attribute": lambda out: out.reconstruction,
    "key": lambda out: out["reconstruction"],
    "get": lambda out: out.get("reconstruction"),
    "index": lambda out: out[1],
    "slice": lambda out: out[:2][1],
    "tuple": lambda out: out.to_tuple()[1],
    "items": lambda out: dict(out.items())["reconstruction"],
    "values": lambda out: list(out.values())[1],
    "dict": lambda out: dict(out)["reconstruction"],
    "unpacked": lambda out: {**out}["reconstruction"],
    "copy": lambda out: copy.copy(out).reconstruction,
    "pytree": lambda out: torch.utils._pytree.tree_leaves(out)[1],
    "pickle": lambda out: pickle.loads(pickle.dumps(detached(out))).reconstruction,
}


def detached(out):
    out.loss, out.reconstruction = out.loss.detach(), out.reconstruction.detach()
    return out


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("case", ["ViT", "Swin"])
@pytest.mark.parametrize("reader", READERS)
def test_reconstruction_whoever_reads_it(reader, case, autocast):
    _, theirs = training_output(case, kernels=False, autocast=autocast)
    _, exact = training_output(case, kernels=False, dtype=torch.float64)
    _, out = training_output(case, autocast=autocast)
    assert isinstance(out, type(theirs))
    assert list(out) == list(theirs) and len(out) == len(theirs)
    assert out["loss"] is out.loss and out[0] is out.loss
    with torch.no_grad():
        image = READERS[reader](out)
    assert image.dtype == theirs.reconstruction.dtype
    if reader != "pickle":
        assert image.requires_grad
    assert_within_budget(image, theirs.reconstruction, exact.reconstruction)
    assert out.reconstruction is out.reconstruction


def test_reconstruction_is_refused_after_the_head_was_updated():
    model, out = training_output()
    out.loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    with pytest.raises(RuntimeError, match="before the optimizer's step"):
        _ = out.reconstruction
    assert out.loss.isfinite()


def test_reconstruction_left_out_of_training_steps_alone():
    model, out = training_output(reconstruction=False)
    assert out.reconstruction is None and list(out) == ["loss"]
    assert model.eval()(*problem("ViT")[:1]).reconstruction is not None


# Whoever else has a say in how a model runs.


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


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer(bf16, tmp_path):
    pytest.importorskip("accelerate")
    losses = []
    for kernels in (False, True):
        torch.manual_seed(0)
        model = build("ViT")
        if kernels:
            report = sk.apply_kernels(model)
        images, mask, side = problem("ViT", batch=8)
        rows = [
            {"pixel_values": image, "bool_masked_pos": row}
            for image, row in zip(images, flat(mask, side), strict=True)
        ]
        arguments = transformers.TrainingArguments(
            tmp_path / str(kernels),
            per_device_train_batch_size=4,
            num_train_epochs=2,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=bf16,
            save_strategy="no",
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        predicted = trainer.predict(rows)
        assert predicted.predictions[-1].shape == images.shape
    report.undo()
    # Every update in bfloat16 rounds anew, so that only the first loss is comparable closely.
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2 if bf16 else 1e-4, atol=0)
    assert losses[0][-1] != losses[0][0]


def test_saved_weights_are_transformers_own(tmp_path):
    model, (images, mask, side) = build("Swin"), problem("Swin")
    expected = model.eval()(images, flat(mask, side)).loss
    sk.apply_kernels(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert "forward" not in loaded.__dict__
    assert torch.equal(loaded(images, flat(mask, side)).loss, expected)


# What is refused, in one line, with nothing half applied.


class Subclass(transformers.ViTForMaskedImageModeling):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.nn.Linear(2, 2), "Linear is not supported; allowed: transformers' ViTFor"),
        (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)), "ViTModel is not supported"),
        (lambda: torch.nn.DataParallel(build("ViT")), "before wrapping"),
        (lambda: torch.compile(build("ViT")), "before wrapping"),
        (lambda: pytest.importorskip("timm").create_model("resnet10t"), "timm.MaskedEncoder"),
        (lambda: Subclass(transformers.ViTConfig(**VIT)), "Subclass has a forward of its own"),
    ],
)
def test_unsupported_classes(make, words):
    model = make()
    changed = [module for module in model.modules() if "forward" in module.__dict__]
    with pytest.raises(TypeError, match=words) as caught:
        sk.apply_kernels(model)
    assert "\n" not in str(caught.value)
    assert changed == [module for module in model.modules() if "forward" in module.__dict__]


def test_applied_twice():
    model = build("ViT")
    report = sk.apply_kernels(model)
    forward = model.forward
    with pytest.raises(ValueError, match=r"report\.undo\(\)"):
        sk.apply_kernels(model)
    assert model.forward == forward
    report.undo()
    sk.apply_kernels(model)


def test_calls_that_transformers_refuses_are_refused_with_its_words():
    model, (images, mask, side) = build("ViT"), problem("ViT")
    sk.apply_kernels(model)
    with pytest.raises(ValueError, match="doesn't match model"):
        model(torch.randn(3, 3, 64, 64), torch.zeros(3, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="channel dimension"):
        model(images[:, :1], flat(mask, side))
    soft = torch.rand(3, side * side)
    expected = result(model, images, soft)["loss"]
    assert torch.equal(result(copy.deepcopy(model), images, soft)["loss"], expected)


def test_importing_the_library_does_not_import_transformers():
    code = "import sys, simmim_kernels; print('transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
