"""Arguments that look right and would do something else without a word: each is named."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import simmim_kernels as sk
from simmim_kernels.nn import MaskedL1Loss, MaskToken
from simmim_kernels.ops.place_tokens import place_tokens
from tests.ops.calls import CALLS
from tests.ops.test_contract import recorded

MASK = sk.random_mask(2, (2, 2), 0.5, seed=0)
IMAGE, TOKENS, TOKEN = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 48), torch.randn(48)
WEIGHT, STATS = torch.randn(48, 3, 4, 4), {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1)}
ROWS = TOKENS[:, : MASK.visible.shape[1]]
BOXES = torch.tensor([[0, 0, 8, 8]] * 2)

WITH_STATS = {
    "masked_l1": lambda **stats: sk.masked_l1(TOKENS, IMAGE, MASK, **stats),
    "masked_linear_l1": lambda **stats: sk.masked_linear_l1(
        TOKENS, torch.eye(48), None, IMAGE, MASK, **stats
    ),
    "mask_image": lambda **stats: sk.mask_image(IMAGE, MASK, **stats),
    "masked_patch_embed": lambda **stats: sk.masked_patch_embed(
        IMAGE, WEIGHT, None, MASK, TOKEN, **stats
    ),
    "visible_patch_embed": lambda **stats: sk.visible_patch_embed(
        IMAGE, WEIGHT, None, MASK, **stats
    ),
    "normalize_targets": lambda **stats: sk.normalize_targets(IMAGE, 3, **stats),
    "normalize_patches": lambda **stats: sk.normalize_patches(IMAGE, 4, **stats),
}


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("function", WITH_STATS)
def test_statistics_that_want_a_gradient_get_none_and_are_refused(function, name):
    learnt = nn.Parameter(torch.tensor(STATS[name]))
    with pytest.raises(ValueError, match=f"^{name} requires grad; allowed: .* detach it"):
        WITH_STATS[function](**STATS | {name: learnt})
    with torch.no_grad():
        expected = WITH_STATS[function](**STATS)
        torch.testing.assert_close(WITH_STATS[function](**STATS | {name: learnt}), expected)


@pytest.mark.parametrize("wrong", [{0.5, 0.4, 0.3}, {0.5: 1, 0.4: 2, 0.3: 3}, 0.5, "abc"])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_channels_have_an_order(name, wrong):
    for function in (*WITH_STATS.values(), MaskedL1Loss):
        with pytest.raises(TypeError, match=rf"^{name} is .*; allowed: one number a channel"):
            function(**STATS | {name: wrong})


@pytest.mark.parametrize("wrong", [{2, 4}, {2: 0, 4: 1}, "24"])
def test_sides_have_an_order(wrong):
    with pytest.raises(TypeError, match=r"^grid is .*; allowed: two whole numbers"):
        sk.random_mask(2, wrong, 0.5)


FLAGS = {
    "mask_tokens": lambda flag: sk.mask_tokens(TOKENS, MASK, TOKEN, keep_dtype=flag),
    "masked_patch_embed": lambda flag: sk.masked_patch_embed(
        IMAGE, WEIGHT, None, MASK, TOKEN, keep_dtype=flag
    ),
    "restore_tokens": lambda flag: sk.restore_tokens(ROWS, MASK, TOKEN, keep_dtype=flag),
    "place_tokens": lambda flag: place_tokens(
        ROWS.flatten(0, 1), MASK, TOKEN, (2, 2), keep_dtype=flag
    ),
    "MaskToken": lambda flag: MaskToken(48, keep_dtype=flag)(TOKENS, MASK),
    "box_mask": lambda flag: sk.box_mask(2, (2, 2), 0.5, seed=0, center=flag),
    "crop_resize": lambda flag: sk.crop_resize(IMAGE, BOXES, (4, 4), antialias=flag),
}
NAMES = {"box_mask": "center", "crop_resize": "antialias"}


@pytest.mark.parametrize("wrong", [torch.bfloat16, "no", None, 0, 1.0, torch.tensor([True])])
@pytest.mark.parametrize("function", FLAGS)
def test_flags_are_true_or_false(function, wrong):
    name = NAMES.get(function, "keep_dtype")
    with pytest.raises(TypeError, match=rf"^{name} must be a bool, got {type(wrong).__name__}$"):
        FLAGS[function](wrong)
    for right in (np.True_, torch.tensor(True)):
        FLAGS[function](right)


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (3, "norm must be callable, got int"),
        (lambda rows: (rows,), "norm made a tuple of rows"),
        (lambda rows: rows[:5], r"norm made \(\d+, 48\) of rows of shape \(\d+, 48\)"),
        (lambda rows: torch.cat((rows, rows)), "norm made"),
        (lambda rows: rows.mean(), "norm made"),
    ],
)
def test_a_norm_makes_one_row_of_each(norm, words):
    with pytest.raises((TypeError, ValueError), match=f"^{words}"):
        sk.masked_patch_embed(torch.randn(2, 3, 16, 16), WEIGHT, None, MASK, TOKEN, norm=norm)


@pytest.mark.parametrize("wrong", [[1, 2], range(2), np.arange(2)])
def test_ids_are_a_tensor(wrong):
    with pytest.raises(TypeError, match=r"^n_or_ids must be .*; sample ids are a tensor int64"):
        sk.random_mask(wrong, (2, 2), 0.5)


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_of_another_shape_is_refused(name):
    """By every op behind the call, that of its gradient too: no kernel reads beyond a tensor."""
    for function, arguments in recorded(name):
        for at, value in enumerate(arguments):
            if not isinstance(value, Tensor) or not value.dim():
                continue
            others = [value[None]]
            if at and value.shape[0] == arguments[0].shape[0]:
                others.append(value[1:])
            for other in others:
                with pytest.raises(ValueError, match=r"allowed|multiple|tensors have"):
                    function(*arguments[:at], other, *arguments[at + 1 :])
