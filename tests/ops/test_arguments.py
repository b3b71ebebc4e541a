"""What every public op makes of arguments that are no tensors or numbers, of tensors on `meta`, and
of tensors whose sign PyTorch has put off."""

import importlib

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

import simmim_kernels as sk
from simmim_kernels.backends._loss_spec import LossSpec
from tests.backends import BACKENDS
from tests.ops import calls
from tests.ops.calls import OPS
from tests.ops.loss_cases import LOSSES, numbers_of

MASK = sk.random_mask(2, (2, 2), 0.5, seed=0)
IMAGE, TOKENS, STATS = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 48), (0.5, 0.4, 0.3)
BYTES = torch.randint(0, 256, IMAGE.shape, dtype=torch.uint8)

# Each op with arguments that it takes.
CALLS = {
    **{
        f"masked_{kind}": {"pred": IMAGE, "target": IMAGE + 1, "mask": MASK} | numbers_of(kind, 0.5)
        for kind in LOSSES
    },
    "masked_l1": {"pred": TOKENS, "target": BYTES, "mask": MASK, "mean": STATS, "std": STATS},
    "masked_mse": {
        "pred": TOKENS,
        "target": IMAGE,
        "mask": MASK,
        "eps": 1e-5,
        "target_norm": sk.PatchNorm(),
    },
    "masked_linear_l1": {
        "tokens": torch.randn(2, 4, 5),
        "weight": torch.randn(48, 5),
        "bias": torch.randn(48),
        "target": IMAGE,
        "mask": MASK,
    },
    "mask_tokens": {
        "x": TOKENS,
        "mask": MASK,
        "token": torch.randn(48),
        "pos_embed": torch.randn(4, 48),
        "prefix_tokens": 0,
    },
    "mask_image": {"image": IMAGE, "mask": MASK, "fill": 0.5},
    "masked_patch_embed": {
        "image": IMAGE,
        "weight": torch.randn(5, 3, 4, 4),
        "bias": torch.randn(5),
        "mask": MASK,
        "token": torch.randn(5),
        "mean": STATS,
        "std": STATS,
    },
    "visible_patch_embed": {
        "image": IMAGE,
        "weight": torch.randn(5, 3, 4, 4),
        "bias": torch.randn(5),
        "mask": MASK,
        "pos_embed": torch.randn(4, 5),
        "mean": STATS,
        "std": STATS,
    },
    "restore_tokens": {
        "x": TOKENS[:, :3],
        "mask": MASK,
        "token": torch.randn(48),
        "pos_embed": torch.randn(4, 48),
        "prefix_tokens": 1,
    },
    "normalize_targets": {
        "image": BYTES,
        "window": 3,
        "eps": 1e-6,
        "mean": STATS,
        "std": STATS,
    },
    "normalize_patches": {"image": IMAGE, "patch": 4, "eps": 1e-6},
    "random_mask": {"n_or_ids": 2, "grid": (2, 2), "ratio": 0.5, "seed": 0, "epoch": 0},
    "block_mask": {"n_or_ids": 2, "grid": (2, 2), "ratio": 0.5, "seed": 0, "epoch": 0},
    "box_mask": {"n_or_ids": 2, "grid": (2, 2), "ratio": 0.5, "seed": 0, "epoch": 0},
    "uniform_mask": {"n_or_ids": 2, "grid": (2, 2), "ratio": 0.5, "seed": 0, "epoch": 0},
    "inverse_block_mask": {"n_or_ids": 2, "grid": (2, 2), "ratio": 0.5, "seed": 0, "epoch": 0},
    "avg_dist": {"mask": MASK, "unit": 4},
    "random_crops": {
        "ids": torch.arange(2),
        "sizes": (20, 30),
        "size": (4, 4),
        "scale": (0.5, 1.0),
        "ratio": (0.75, 1.5),
        "flip": 0.5,
        "seed": 0,
        "epoch": 0,
    },
    "crop_resize": {
        "images": BYTES,
        "boxes": torch.tensor([[0, 0, 8, 8], [1, 2, 3, 4]]),
        "size": (4, 4),
        "flip": torch.tensor([True, False]),
        "antialias": True,
        "dtype": torch.float32,
    },
}
ARGUMENTS = [(name, argument) for name, arguments in CALLS.items() for argument in arguments]
DIFFERENTIABLE = {call.function.__name__ for call in calls.CALLS.values() if call.leaves}
# Of floating point: the rest have no sign to put off.
SIGNED = [
    (name, argument)
    for name, argument in ARGUMENTS
    if isinstance(value := CALLS[name][argument], torch.Tensor) and value.is_floating_point()
]


def changed(function, value):
    """`value` with `function` applied to its tensor, or to those of a PatchMask."""
    if isinstance(value, sk.PatchMask):
        return sk.PatchMask(*map(function, value))
    return function(value) if isinstance(value, torch.Tensor) else value


def test_every_public_op_has_its_call():
    assert CALLS.keys() == OPS - {f"masked_linear_{kind}" for kind in LOSSES if kind != "l1"}


@pytest.mark.parametrize("wrong", ["x", [[0.5]], object()], ids=["text", "list", "object"])
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_wrong_type_is_named(name, argument, wrong):
    with pytest.raises(TypeError, match=rf"^{argument} "):
        getattr(sk, name)(**CALLS[name] | {argument: wrong})


@pytest.mark.parametrize(
    ("name", "argument"), [pair for pair in ARGUMENTS if pair[1] in ("window", "patch", "unit")]
)
def test_whole_numbers_are_no_fractions(name, argument):
    with pytest.raises(TypeError, match=f"{argument} must be a whole number, got float"):
        getattr(sk, name)(**CALLS[name] | {argument: 3.0})


def test_configuration_names_wrong_numbers():
    with pytest.raises(TypeError, match="window must be a whole number, got float"):
        sk.WindowNorm(float("nan"))
    with pytest.raises(TypeError, match="eps must be a number, got str"):
        sk.PatchNorm("1e-6")
    with pytest.raises(TypeError, match="n_or_ids must be a whole number, got float"):
        sk.random_mask(2.5, (2, 2), 0.5)
    with pytest.raises(TypeError, match="grid must be a whole number, got float"):
        sk.random_mask(2, (2.0, 2), 0.5)


@pytest.mark.parametrize("wrong", [torch.zeros(()), torch.zeros(3), torch.zeros(1, 2, 2, 2, 2)])
@pytest.mark.parametrize("argument", ["pred", "target", "mask"])
def test_shapes_are_checked_before_patches_are_counted(argument, wrong):
    wrong = wrong.bool() if argument == "mask" else wrong
    with pytest.raises(ValueError, match=f"{argument} has shape"):
        sk.masked_mse(**CALLS["masked_mse"] | {argument: wrong})


# Ops whose result is the same for an argument and its negative.
EVEN: set[str] = set()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "argument"), SIGNED)
def test_sign_that_was_put_off(backend, name, argument):
    """PyTorch keeps the sign of such a view beside its numbers, where a kernel does not look."""
    value, function = CALLS[name][argument], getattr(sk, name)
    negative = torch._neg_view(value)
    assert negative.is_neg() and torch.equal(negative, -value)
    with sk.backend(backend):
        expected = function(**CALLS[name] | {argument: -value})
        found = function(**CALLS[name] | {argument: negative})
        unchanged = function(**CALLS[name])
    assert torch.equal(found, expected)
    assert name in EVEN or not torch.equal(found, unchanged)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "avg_dist"])
def test_meta_tensors_give_the_shapes(name):
    arguments = {key: changed(lambda t: t.to("meta"), v) for key, v in CALLS[name].items()}
    if "n_or_ids" in arguments:
        arguments["device"] = "meta"
    found, expected = getattr(sk, name)(**arguments), getattr(sk, name)(**CALLS[name])
    if isinstance(found, torch.Tensor):
        found, expected = (found,), (expected,)
    for a, b in zip(found, expected, strict=True):
        assert a.is_meta and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()


def test_gradients_of_meta_tensors():
    leaf = torch.empty(2, 4, 48, device="meta", requires_grad=True)
    image, mask = IMAGE.to("meta"), MASK.to("meta")
    sk.masked_l1(sk.mask_tokens(leaf, mask, torch.zeros(48, device="meta")), image, mask).backward()
    assert leaf.grad.is_meta and leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_without_features(backend):
    x, token, pos = (torch.zeros(shape, requires_grad=True) for shape in ((2, 5, 0), (0,), (5, 0)))
    with sk.backend(backend):
        out = sk.mask_tokens(x, MASK, token, pos_embed=pos, prefix_tokens=1)
        out.sum().backward()
    assert out.shape == (2, 5, 0) and pos.grad.shape == (5, 0) and token.grad.shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_laid_out_as_the_fake_kernels_say(backend):
    mixed = torch.randn(4, 48, 2).permute(2, 0, 1)
    rows, ops = torch.randn(4, 48), torch.ops.simmim_kernels
    with sk.backend(backend):
        tokens = sk.mask_tokens(mixed, MASK, torch.zeros(48))
        image = ops.gather_patches_backward(rows, MASK.mask, None, 3, 2, 2, 4, 4, torch.float32)
    assert tokens.is_contiguous() and image.is_contiguous()


@pytest.mark.parametrize(
    ("name", "argument"), [("masked_mse", "eps"), ("normalize_targets", "eps")]
)
def test_a_number_that_no_float_holds_is_named(name, argument):
    with pytest.raises(ValueError, match=f"{argument} is beyond the range of a float"):
        getattr(sk, name)(**{**CALLS[name], argument: 10**400})


def with_gradients(arguments):
    """`arguments` whose floating tensors, but for targets, want a gradient."""
    return {
        name: value.clone().requires_grad_()
        if (isinstance(value, torch.Tensor) and value.is_floating_point() and name != "target")
        else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("wrong", ["x", [[0.5]], object()], ids=["text", "list", "object"])
@pytest.mark.parametrize(
    ("name", "argument"), [pair for pair in ARGUMENTS if pair[0] in DIFFERENTIABLE]
)
def test_wrong_type_is_named_where_gradients_are_wanted(name, argument, wrong):
    with pytest.raises(TypeError, match=rf"^{argument} "):
        getattr(sk, name)(**with_gradients(CALLS[name]) | {argument: wrong})


TENSORS = [pair for pair in ARGUMENTS if isinstance(CALLS[pair[0]][pair[1]], torch.Tensor)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to_sparse(), "has layout sparse_coo"),
        (lambda t: torch.nested.nested_tensor(list(t)), "has layout nested"),
        (lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged), "has layout nested"),
        (lambda t: torch.complex(t.float(), t.float()), "has dtype complex64"),
        (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8), "has dtype quint8"),
    ],
    ids=["sparse", "nested", "jagged", "complex", "quantized"],
)
@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_tensors_of_another_kind_are_named(name, argument, change, words):
    if words.endswith("nested") and CALLS[name][argument].dim() < 2:
        return  # of numbers PyTorch makes no nested tensor
    with pytest.raises(TypeError, match=f"^{argument} {words}"):
        getattr(sk, name)(**CALLS[name] | {argument: change(CALLS[name][argument])})


@pytest.fixture(scope="module")
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_distributed_tensors_are_named(name, argument, mesh):
    value = distribute_tensor(CALLS[name][argument], mesh, [Replicate()])
    with pytest.raises(TypeError, match=f"^{argument} is a DTensor; allowed: a plain tensor"):
        getattr(sk, name)(**CALLS[name] | {argument: value})


SEVERAL = {name for name, _ in TENSORS if sum(pair[0] == name for pair in TENSORS) > 1}


@pytest.mark.parametrize(("name", "argument"), [pair for pair in TENSORS if pair[0] in SEVERAL])
def test_tensors_of_two_devices_are_named(name, argument):
    with pytest.raises(RuntimeError, match=r" is on (meta|cpu, but \w+ is on meta)"):
        getattr(sk, name)(**CALLS[name] | {argument: CALLS[name][argument].to("meta")})


def test_a_mask_on_meta_has_no_distances():
    with pytest.raises(RuntimeError, match="mask is on meta"):
        sk.avg_dist(MASK.to("meta"), 4)


OPTIONS = {"order": "cyx", "kind": "mse", "reduction": "mean", "norm": "none"}


def loss_of_options(backend, **options):
    serves = importlib.import_module(f"simmim_kernels.backends.{backend}.masked_loss")
    spec = LossSpec(beta=1.0, eps=1e-5, norm_side=4, norm_eps=1e-6, **OPTIONS | options)
    return serves.masked_loss(TOKENS, IMAGE, MASK.mask, None, None, None, spec, True)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_backend_refuses_unknown_options_of_a_loss(backend, option):
    assert loss_of_options(backend).isfinite()
    for wrong in ("huge", ""):
        with pytest.raises(ValueError, match=f"^{option} is {wrong!r}; allowed: "):
            loss_of_options(backend, **{option: wrong})
    for wrong in (None, 1):
        with pytest.raises((TypeError, ValueError), match=f"^{option} is "):
            loss_of_options(backend, **{option: wrong})
