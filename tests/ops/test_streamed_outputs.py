"""Outputs of 4 MiB and more, which the C++ kernels store past the caches: every element of them, at
any alignment, as plain PyTorch has it."""

import pytest
import torch

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.budget import assert_within_budget
from tests.ops.loss_cases import MEAN, STD, as_image, ours, problem, published

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="of the C++ backend alone")
STREAMED = 4 << 20


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("token_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("width", [96, 101])  # rows of 101 numbers begin at any address
def test_mask_tokens(x_dtype, token_dtype, positions, width):
    batch, prefix = 40, 1
    x = torch.randn(batch, prefix + 24 * 24, width).to(x_dtype).requires_grad_()
    token = torch.randn(width).to(token_dtype).requires_grad_()
    pos = torch.randn(24 * 24, width).requires_grad_() if positions else None
    mask = sk.random_mask(batch, (6, 6), 0.6)
    out = sk.mask_tokens(x, mask, token, pos_embed=pos, prefix_tokens=prefix)
    assert out.numel() * out.element_size() >= STREAMED
    masked = mask.on_grid((24, 24)).mask.flatten(1)
    masked = torch.cat((masked.new_zeros(batch, prefix), masked), 1)
    chosen = torch.where(masked[..., None], token.to(out.dtype), x.to(out.dtype))
    if positions:
        added = torch.cat((pos.new_zeros(prefix, width), pos))
        wide = torch.promote_types(out.dtype, torch.float32)
        chosen = (chosen.to(wide) + added.to(wide)).to(out.dtype)
    assert torch.equal(out, chosen)
    grad = torch.randn(out.shape).to(out.dtype)
    dx, dtoken = torch.autograd.grad(out, (x, token), grad)
    assert torch.equal(dx, torch.where(masked[..., None], 0.0, grad).to(x_dtype))
    exact, plain = (grad.to(t)[masked].sum(0) for t in (torch.float64, out.dtype))
    assert_within_budget(dtoken, plain, exact, "token's gradient")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("unit", [32, 25])
def test_mask_image(layout, dtype, unit):
    side = 7 * unit
    size = (STREAMED // (3 * side * side * dtype.itemsize) + 1, 3, side, side)
    image = torch.randint(0, 256, size, dtype=torch.uint8).contiguous(memory_format=layout)
    mask = sk.random_mask(size[0], (7, 7), 0.6)
    out = sk.mask_image(image, mask, 0.25, mean=MEAN, std=STD, dtype=dtype)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    exact = (image.double() / 255 - mean) / std
    plain = (image.to(dtype) / 255 - mean.to(dtype)) / std.to(dtype)
    masked = mask.on_grid((side, side)).mask[:, None].expand(size)
    assert (out[masked] == 0.25).all()
    assert_within_budget(out[~masked], plain[~masked], exact[~masked])


# Eight cases, in which every pair of a layout, a type, a size and a loss occurs.
@pytest.mark.parametrize(
    "layout, dtype, unit, patch, kind",
    [
        (layout, dtype, *size, kind)
        for n, layout in enumerate(("image", "cyx", "yxc", "units"))
        for b, dtype in enumerate((torch.float32, torch.bfloat16))
        for size in [((32, 16), (26, 13))[b ^ n & 1]]
        for kind in [("l1", "smooth_l1")[b ^ n >> 1]]
    ],
)
def test_gradient_of_a_loss(kind, layout, dtype, unit, patch):
    per_sample = 3 * (7 * unit) ** 2 * dtype.itemsize // (2 if layout == "units" else 1)
    batch = STREAMED // per_sample + 1
    pred, target, mask, _ = problem(
        batch, 3, (7, 7), unit, patch, layout, dtype, torch.float32, seed=3
    )
    assert pred.numel() * pred.element_size() >= STREAMED
    pred.requires_grad_()
    loss = ours(kind, pred, target, mask, layout, reduction="sum")
    (grad,) = torch.autograd.grad(loss, pred)
    exact, plain = (
        torch.autograd.grad(
            published(
                kind,
                as_image(pred.to(t), target, patch, layout, mask),
                target.to(t),
                mask.mask,
                reduction="sum",
            ),
            pred,
        )[0]
        for t in (torch.float64, dtype)
    )
    assert_within_budget(grad, plain, exact, "gradient")
