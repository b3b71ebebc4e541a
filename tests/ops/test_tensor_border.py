"""How tensors reach the compiled kernels: `Tensor` in csrc/tensor.h and its caster."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch

from simmim_kernels.backends import cpu

if cpu.kernels is None:
    pytest.skip(cpu.unavailable, allow_module_level=True)
describe = cpu.kernels.describe

# In the order of `Element` in csrc/tensor.h.
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.int16,
    torch.int32,
    torch.int64,
)


class Subclass(torch.Tensor):
    pass


def check(tensor):
    address, element, shape, strides = describe(tensor)
    assert address == tensor.data_ptr()
    assert DTYPES[element] == tensor.dtype
    assert (shape, strides) == (tuple(tensor.shape), tensor.stride())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(dtype):
    check(torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, requires_grad=True),
        torch.randn(3, requires_grad=True) * 2,
        torch.nn.Parameter(torch.randn(3, 4)),
        torch.randn(3, 4).as_subclass(Subclass),
        torch.nn.Buffer(torch.randn(3)),
        torch.empty(0, 3),
        torch.empty(2, 0, 3)[:, :, 1:],
        torch.tensor(1.5),
        torch.randn(2, 3, 4, 5).permute(0, 2, 3, 1),
        torch.randn(8, 9)[1::2, 2::3],
        torch.randn(1, 3).expand(4, 3),
        torch.randn(2, 2, 2, 2, 2, 2),
        torch.complex(torch.randn(3), torch.randn(3)).real,
    ],
    ids=lambda tensor: f"{type(tensor).__name__}-{tuple(tensor.shape)}",
)
def test_every_kind_of_tensor(tensor):
    check(tensor)


def test_inference_mode_and_no_grad():
    with torch.inference_mode():
        check(torch.randn(3))
    with torch.no_grad():
        check(torch.randn(3, requires_grad=True))


def test_none_is_absent():
    assert describe(None) is None


@pytest.mark.parametrize("value", [1.0, "x", [1.0], torch.Tensor, torch.randn(2).numpy()])
def test_what_is_no_tensor_is_refused(value):
    with pytest.raises(TypeError, match=r"torch\.Tensor \| None"):
        describe(value)


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex64), torch.ones((1,) * 7)])
def test_what_no_kernel_takes_is_refused(tensor):
    with pytest.raises(TypeError, match=r"torch\.Tensor \| None"):
        describe(tensor)


def test_nothing_is_kept():
    tensor = torch.randn(3, 4)
    before = sys.getrefcount(tensor)
    for _ in range(100):
        describe(tensor)
    assert sys.getrefcount(tensor) == before
    described = describe(tensor)
    del tensor
    gc.collect()
    assert described[2:] == ((3, 4), (4, 1))


def test_a_lazy_sign_is_resolved_before_a_kernel_runs():
    import simmim_kernels as sk

    lazy = torch.complex(torch.zeros(1, 4, 8), torch.randn(1, 4, 8)).conj().imag
    assert lazy.is_neg()
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert torch.equal(sk.mask_tokens(lazy, mask, torch.zeros(8)), lazy.clone())


@pytest.mark.slow
def test_the_reference_serves_where_pytorch_lacks_the_functions():
    script = (
        "import torch; del torch.Tensor.__dlpack_c_exchange_api__\n"
        "import simmim_kernels as sk, simmim_kernels.info as info\n"
        "print(sk.random_mask(2, (4, 4), 0.5, seed=1).mask.sum().item())\n"
        "print(*info.lines(), sep='\\n')"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("16\n")
    reason = "cpu: this PyTorch has no torch.Tensor.__dlpack_c_exchange_api__"
    assert f"mask_tokens            reference   ({reason}" in ran.stdout
