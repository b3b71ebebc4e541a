"""Every size, seed, ratio and epsilon that a public function takes, as every type of number there is,
against the same call with plain Python numbers."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import simmim_kernels as sk
from simmim_kernels import nn
from simmim_kernels.backends._loss_spec import KINDS
from simmim_kernels.ops.place_tokens import place_tokens, take_masked_tokens
from tests.backends import BACKENDS
from tests.ops.calls import OPS

MASK = sk.random_mask(2, (2, 2), 0.5, seed=0)
IMAGE, TOKENS, ROWS = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 48), torch.randn(4, 48)
LOSS = (torch.randn(2, 4, 48), IMAGE, MASK)
HEAD = (torch.randn(2, 4, 5), torch.randn(48, 5), None, IMAGE, MASK)
TOKEN = torch.randn(48)


def masks(function):
    return {
        "n_or_ids": (2, lambda n: function(n, (3, 4), 0.5, seed=1)),
        "grid": (4, lambda n: function(2, (n, n), 0.5, seed=1)),
        "seed": (3, lambda n: function(2, (3, 4), 0.5, seed=n)),
        "epoch": (5, lambda n: function(2, (3, 4), 0.5, seed=1, epoch=n)),
    }


IDS, BOXES = torch.arange(2), torch.tensor([[0, 0, 8, 8], [1, 2, 3, 4]])


def crops(sizes=(20, 30), size=(4, 4), scale=0.5, ratio=0.75, flip=0.5, seed=1, epoch=0):
    return sk.random_crops(
        *(IDS, sizes, size, (scale, scale), (ratio, ratio)), flip=flip, seed=seed, epoch=epoch
    )


def numbers(loss, *tensors):
    """Calls of a loss with each of its parameters that are real numbers."""
    given = inspect.signature(loss).parameters.values()
    names = [p.name for p in given if isinstance(p.default, float)]
    return {name: (0.5, lambda x, n=name: loss(*tensors, **{n: x})) for name in names}


def numbers_of_module(module):
    calls = {
        name: (0.5, lambda x, n=name: module(**{n: x})(*LOSS))
        for name in ("eps", *module.parameters_of_loss)
    }
    return {**calls, "mean": (0.5, lambda x: module(mean=[x] * 3, std=[1.5] * 3)(*LOSS))}


# By function and argument: a whole number that the call takes, and the call.
WHOLE = {
    "random_mask": masks(sk.random_mask),
    "block_mask": masks(sk.block_mask),
    "box_mask": masks(sk.box_mask),
    "inverse_block_mask": masks(sk.inverse_block_mask),
    "uniform_mask": {
        "n_or_ids": (2, lambda n: sk.uniform_mask(n, (2, 4), seed=1)),
        "grid": (4, lambda n: sk.uniform_mask(2, (n, n), seed=1)),
        "seed": (3, lambda n: sk.uniform_mask(2, (2, 4), seed=n)),
        "epoch": (5, lambda n: sk.uniform_mask(2, (2, 4), seed=1, epoch=n)),
    },
    "from_mask": {"count": (MASK.masked.shape[1], lambda n: sk.PatchMask.from_mask(MASK.mask, n))},
    "restore_tokens": {
        "prefix_tokens": (
            1,
            lambda n: sk.restore_tokens(
                TOKENS[:, : 1 + MASK.visible.shape[1]], MASK, TOKEN, prefix_tokens=n
            ),
        )
    },
    "avg_dist": {"unit": (20, lambda n: sk.avg_dist(MASK, n))},
    "random_crops": {
        "sizes": (20, lambda n: crops(sizes=(n, n))),
        "size": (4, lambda n: crops(size=(n, n))),
        "seed": (3, lambda n: crops(seed=n)),
        "epoch": (5, lambda n: crops(epoch=n)),
    },
    "crop_resize": {"size": (4, lambda n: sk.crop_resize(IMAGE, BOXES, (n, n)))},
    "on_grid": {"grid": (4, lambda n: MASK.on_grid((n, n)))},
    "WindowNorm": {"window": (5, lambda n: sk.masked_l1(*LOSS, target_norm=sk.WindowNorm(n)))},
    "normalize_targets": {"window": (5, lambda n: sk.normalize_targets(IMAGE, n))},
    "normalize_patches": {"patch": (4, lambda n: sk.normalize_patches(IMAGE, n))},
    "mask_tokens": {
        "prefix_tokens": (1, lambda n: sk.mask_tokens(TOKENS, MASK, TOKEN, prefix_tokens=n))
    },
    "MaskToken": {
        "width": (48, lambda n: nn.MaskToken(n).token.shape),
        "prefix_tokens": (1, lambda n: repr(nn.MaskToken(4, prefix_tokens=n))),
    },
    "place_tokens": {"grid": (2, lambda n: place_tokens(ROWS, MASK, TOKEN, (n, n)))},
    "take_masked_tokens": {
        "prefix_tokens": (1, lambda n: take_masked_tokens(TOKENS, MASK, prefix_tokens=n)),
        "grid": (2, lambda n: take_masked_tokens(TOKENS[:, 1:], MASK, grid=(n, n))),
    },
}
# The same for real numbers, which whole ones are too.
REAL = {
    "random_mask": {"ratio": (0.5, lambda x: sk.random_mask(2, (3, 4), x, seed=1))},
    "block_mask": {"ratio": (0.5, lambda x: sk.block_mask(2, (3, 4), x, seed=1))},
    "box_mask": {"ratio": (0.5, lambda x: sk.box_mask(2, (3, 4), x, seed=1))},
    "inverse_block_mask": {"ratio": (0.5, lambda x: sk.inverse_block_mask(2, (3, 4), x, seed=1))},
    "uniform_mask": {"ratio": (0.5, lambda x: sk.uniform_mask(2, (2, 4), x, seed=1))},
    "mask_image": {
        "fill": (0.5, lambda x: sk.mask_image(IMAGE, MASK, x)),
        "mean": (0.5, lambda x: sk.mask_image(IMAGE, MASK, mean=(x,) * 3, std=(1.5,) * 3)),
        "std": (0.5, lambda x: sk.mask_image(IMAGE, MASK, mean=(1.5,) * 3, std=(x,) * 3)),
    },
    "normalize_targets": {"eps": (0.5, lambda x: sk.normalize_targets(IMAGE, 3, x))},
    "normalize_patches": {"eps": (0.5, lambda x: sk.normalize_patches(IMAGE, 4, x))},
    "WindowNorm": {"eps": (0.5, lambda x: sk.masked_l1(*LOSS, target_norm=sk.WindowNorm(3, x)))},
    "PatchNorm": {"eps": (0.5, lambda x: sk.masked_l1(*LOSS, target_norm=sk.PatchNorm(x)))},
    "random_crops": {
        "scale": (0.5, lambda x: crops(scale=x)),
        "ratio": (0.5, lambda x: crops(ratio=x)),
        "flip": (0.5, lambda x: crops(flip=x)),
    },
    **{f"masked_{k}": numbers(getattr(sk, f"masked_{k}"), *LOSS) for k in KINDS},
    **{f"masked_linear_{k}": numbers(getattr(sk, f"masked_linear_{k}"), *HEAD) for k in KINDS},
    **{m.__name__: numbers_of_module(m) for m in nn._MaskedLoss.__subclasses__()},
}
INTEGERS = (*(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)),)
FLOATS = ("float16", "float32", "float64", "longdouble")


def flat(table):
    return [
        (f"{name}-{arg}", *call) for name, calls in table.items() for arg, call in calls.items()
    ]


def test_every_number_of_a_public_op_is_in_a_table():
    for name in OPS:
        given = inspect.signature(getattr(sk, name)).parameters.values()
        expected = {p.name for p in given if re.search(r"\b(int|float)\b", p.annotation)}
        assert not expected - WHOLE.get(name, {}).keys() - REAL.get(name, {}).keys(), name


def parts(result):
    if isinstance(result, torch.Tensor):
        return [result]
    tensors = isinstance(result, tuple) and all(isinstance(r, torch.Tensor) for r in result)
    return list(result) if tensors else [torch.tensor(hash(result))]


def assert_same(found, expected, what):
    for a, b in zip(parts(found), parts(expected), strict=True):
        assert torch.equal(a, b), what


def whole_numbers(n):
    """`n` in every integer type: of NumPy, and 0-dimensional of NumPy and PyTorch."""
    for kind in INTEGERS:
        yield getattr(np, kind)(n)
        yield np.array(n, kind)
        yield torch.tensor(n, dtype=getattr(torch, kind))


def real_numbers(x):
    for kind in FLOATS:
        yield getattr(np, kind)(x)
        yield np.array(x, kind)
    for kind in ("float16", "bfloat16", "float32", "float64"):
        yield torch.tensor(x, dtype=getattr(torch, kind))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("what", "number", "call"), flat(WHOLE), ids=[c[0] for c in flat(WHOLE)])
def test_whole_numbers_of_every_type(backend, what, number, call):
    with sk.backend(backend):
        expected = call(number)
        for value in whole_numbers(number):
            assert_same(call(value), expected, (what, type(value)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("what", "number", "call"), flat(REAL), ids=[c[0] for c in flat(REAL)])
def test_real_numbers_of_every_type(backend, what, number, call):
    with sk.backend(backend):
        expected = call(number)
        for value in real_numbers(number):
            assert_same(call(value), expected, (what, type(value)))
        expected = call(1.0)
        for value in (1, *whole_numbers(1)):
            assert_same(call(value), expected, (what, type(value)))


NO_INTEGERS = (
    True,
    np.True_,
    torch.tensor(True),
    2.0,
    np.float32(2),
    torch.tensor(2.0),
    "2",
    None,
    2j,
)
NO_INTEGERS += (np.array([2, 2]), np.array([2]), torch.tensor([[2]]), [2], object(), np.array(2.0))


@pytest.mark.parametrize(("what", "number", "call"), flat(WHOLE), ids=[c[0] for c in flat(WHOLE)])
def test_what_is_no_whole_number_is_named(what, number, call):
    name = what.split("-")[1]
    for wrong in NO_INTEGERS:
        if name in ("seed", "count") and wrong is None:
            continue
        if name == "n_or_ids" and isinstance(wrong, torch.Tensor) and wrong.dim() > 0:
            continue  # sample ids, of a wrong shape
        with pytest.raises(TypeError, match=f"^{name} must be a whole number, got "):
            call(wrong)


@pytest.mark.parametrize(("what", "number", "call"), flat(REAL), ids=[c[0] for c in flat(REAL)])
def test_what_is_no_number_is_named(what, number, call):
    name = what.split("-")[1]
    for wrong in (True, torch.tensor(True), "1", None, 2j, torch.tensor(1j), [1.0], object()):
        with pytest.raises(TypeError, match=f"^{name} "):
            call(wrong)
    if name != "fill":
        for wrong in (float("nan"), np.float32("inf"), -0.5, torch.tensor(-0.5)):
            if name != "mean" or not np.isfinite(float(wrong)):
                with pytest.raises(ValueError, match=f"^{name} "):
                    call(wrong)


# Numbers that wrapped around in NumPy's types, negative ones, and ones that no kernel's size holds.
EXTREMES = (0, -1, -5, np.int8(-3), np.int64(-(2**63)), 2**31 - 1, 2**31, np.uint32(2**32 - 1))
EXTREMES += (2**32 + 1, 2**62 + 1, 2**63, 2**63 + 1, np.uint64(2**64 - 1), 2**64, -(2**64), 10**400)

FUZZ = """
import sys
import numpy as np
from tests.ops import test_numbers as t
import simmim_kernels as sk
t.torch.use_deterministic_algorithms(True)  # fills memory that nothing was written to with NaN
with sk.backend(sys.argv[1]):
    for what, number, call in t.flat(t.WHOLE):
        if what == "MaskToken-width":
            continue  # PyTorch's own size of a tensor
        name = what.split("-")[1]
        for value in (*t.EXTREMES, *map(np.uint8, (20, 144, 255)), *map(np.int8, (127, -128))):
            if value in (2**31 - 1,) and name == "n_or_ids":
                continue  # a batch that is only too large for the memory
            try:
                found = call(value)
            except ValueError:
                continue
            with sk.backend("reference"):
                expected = call(int(value))
            if isinstance(found, sk.PatchMask):
                t.assert_same(found, expected, (what, value))
            elif isinstance(found, str):
                assert found == expected
            else:
                t.torch.testing.assert_close(found, expected)
print("finished")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in ("cpu", "reference")])
def test_extreme_numbers_neither_crash_nor_leave_outputs_unwritten(backend):
    ran = subprocess.run(
        [sys.executable, "-c", FUZZ, backend],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and ran.stdout.endswith("finished\n"), (ran.returncode, ran.stderr)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
def test_seeds_of_64_bits(backend, seed):
    with sk.backend(backend):
        found, same = (sk.random_mask(2, (3, 4), 0.5, seed=s) for s in (seed, seed % 2**64))
    assert_same(found, same, seed)
    for wrong in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=r"^seed is "):
            sk.random_mask(2, (3, 4), 0.5, seed=wrong)
