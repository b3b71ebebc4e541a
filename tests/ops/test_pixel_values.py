"""What every op makes of an image's numbers: precision, large numbers, and a tiny eps."""

import pytest
import torch

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.ops.integer_images import INTEGERS, as_float, integers
from tests.ops.loss_cases import patch_target, window_target

MASK = sk.random_mask(2, (2, 2), 0.5, seed=0)
BYTES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TYPES = [*INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def exact(image, mean=MEAN, std=STD):
    """The rule, in float64: bytes by 255, then `(value - mean) / std`."""
    values = as_float(image, torch.float64).double()
    mean, std = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (mean, std))
    return (values - mean) / std


def targets(loss, image, mean=MEAN, std=STD, dtype=torch.float64, norm=None):
    """The target that a loss sees: the prediction that it must have for a gradient of 0."""
    pred = torch.zeros(image.shape, dtype=dtype, requires_grad=True)
    result = loss(pred, image, MASK, mean=mean, std=std, reduction="sum", target_norm=norm)
    (grad,) = torch.autograd.grad(result, pred)
    return -grad / 2


def hidden():
    return MASK.on_grid((8, 8)).mask[:, None].expand(2, 3, 8, 8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("source", TYPES)
def test_float64_results_have_float64_precision(backend, source):
    shape = 2, 3, 8, 8
    image = integers(shape, source) if source in INTEGERS else torch.randn(shape).to(source)
    visible = torch.zeros(2, 1, 1, dtype=torch.bool)
    weight = torch.eye(3 * 16, dtype=torch.float64).view(48, 3, 4, 4)
    want, stats = exact(image), {"mean": MEAN, "std": STD}
    close = {"rtol": 1e-13, "atol": 1e-13}
    with sk.backend(backend):
        out = sk.mask_image(image, visible, **stats, dtype=torch.float64)
        torch.testing.assert_close(out, want, **close)
        rows = sk.masked_patch_embed(image, weight, None, visible, torch.zeros(48), **stats)
        torch.testing.assert_close(
            rows, torch.nn.functional.pixel_unshuffle(want, 4).flatten(2).mT, **close
        )
        for norm, goal in (
            (None, want),
            (sk.PatchNorm(0.5), patch_target(want, 4, 0.5)),
            (sk.WindowNorm(3, 0.5), window_target(want, 3, 0.5)),
        ):
            found = targets(sk.masked_mse, image, norm=norm)
            torch.testing.assert_close(found[hidden()], goal[hidden()], **close)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_are_tensors_of_any_float_type(backend, kind):
    mean, std = torch.tensor(MEAN, dtype=kind), torch.tensor(STD, dtype=kind)
    listed = {"mean": mean.tolist(), "std": std.tolist()}
    image = torch.randn(2, 3, 8, 8)
    with sk.backend(backend):
        for function, *arguments in (
            (sk.mask_image, MASK),
            (sk.normalize_targets, 3),
            (sk.normalize_patches, 4),
        ):
            for picture in (image, BYTES):
                found = function(picture, *arguments, mean=mean, std=std)
                torch.testing.assert_close(found, function(picture, *arguments, **listed))
        found = sk.masked_l1(image, BYTES, MASK, mean=mean, std=std)
        torch.testing.assert_close(found, sk.masked_l1(image, BYTES, MASK, **listed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_numbers_keep_their_digits(backend):
    """A sensor's counts: what is subtracted is far larger than what is left."""
    image = 30000 + torch.randint(0, 16, (2, 3, 8, 8)).float()
    mean, std = (30007.0,) * 3, (3.0,) * 3
    with sk.backend(backend):
        out = sk.mask_image(image, torch.zeros(2, 1, 1, dtype=torch.bool), mean=mean, std=std)
        found = targets(sk.masked_mse, image, mean, std, torch.float32)
        patches = sk.normalize_patches(image, 4, 0.5, mean=mean, std=std)
        windows = sk.normalize_targets(image, 3, 0.5, mean=mean, std=std)
    want = exact(image, mean, std)
    close = {"rtol": 1e-6, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(out, want, **close)
    torch.testing.assert_close(found[hidden()], want[hidden()], **close)
    torch.testing.assert_close(patches, patch_target(want, 4, 0.5), **close)
    torch.testing.assert_close(
        windows, window_target(want, 3, 0.5), rtol=1e-5, atol=1e-5, check_dtype=False
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES[3:])
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-40])
@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
def test_nothing_masked_and_a_tiny_eps_have_gradient_zero(backend, dtype, eps, reduction):
    pred = torch.randn(2, 3, 8, 8).to(dtype).requires_grad_()
    nothing = torch.zeros(2, 2, 2, dtype=torch.bool)
    with sk.backend(backend):
        loss = sk.masked_mse(pred, torch.randn(2, 3, 8, 8), nothing, eps=eps, reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), pred)
    assert (loss == 0).all() and (grad == 0).all()
