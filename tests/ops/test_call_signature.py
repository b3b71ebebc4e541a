"""The signature of a call, by which an op knows that it has checked such arguments before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simmim_kernels.backends import cpu
from simmim_kernels.backends._loss_spec import LossSpec
from simmim_kernels.ops import _call_signature as signatures
from tests.ops.test_tensor_border import DTYPES, Subclass

if cpu.kernels is None:
    pytest.skip(cpu.unavailable, allow_module_level=True)

SPEC = LossSpec("l1", 1.0, "cyx", 1e-5, "mean")
IMAGE = torch.zeros(2, 3, 4, 4)
# No two of these calls are alike to a check.
DIFFERENT = [
    *[(torch.zeros(2, 3, 4, 4, dtype=dtype), None) for dtype in DTYPES],
    (IMAGE.to(torch.complex64), None),
    (IMAGE.to(memory_format=torch.channels_last), None),
    (IMAGE.expand(2, 3, 4, 4)[:, :, ::2], None),
    (IMAGE.view(2, 3, 16), None),
    (torch.tensor(0.0), None),
    (torch.zeros(0, 3, 4, 4), None),
    (IMAGE, IMAGE),
    (IMAGE, [IMAGE]),
    (IMAGE, [IMAGE, IMAGE]),
    (IMAGE, [IMAGE[0], IMAGE]),
    (IMAGE, [], IMAGE),
    (IMAGE, [IMAGE], IMAGE),
    (IMAGE, 1),
    (IMAGE, 1.0),
    (IMAGE, True),
    (IMAGE, np.float64(1.0)),
    (IMAGE, "1"),
    (IMAGE, 1, 2),
    (IMAGE, 2, 1),
    (IMAGE, torch.float32),
    (IMAGE, SPEC),
    (IMAGE, SPEC._replace(eps=0.0)),
    (IMAGE, tuple(SPEC)),
]


@pytest.fixture(params=["compiled", "Python"])
def signature(request):
    if request.param == "Python":
        return signatures.call_signature_in_python
    signatures.call_signature((IMAGE,))  # loads the compiled module
    assert type(signatures.call_signature).__name__ == "builtin_function_or_method"
    return signatures.call_signature


def test_different_calls_have_different_signatures(signature):
    found = [signature(args) for args in DIFFERENT]
    assert None not in found
    assert len(set(found)) == len(DIFFERENT)


@pytest.mark.parametrize("args", DIFFERENT, ids=range(len(DIFFERENT)))
def test_the_same_call_again_has_the_same_signature(signature, args):
    def again(value):
        if isinstance(value, list):
            return list(map(again, value))
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)

    assert signature(tuple(map(again, args))) == signature(args)


def test_parameters_and_inference_tensors_are_tensors(signature):
    with torch.inference_mode():
        inference = torch.zeros(2, 3, 4, 4)
    gradient = (IMAGE.clone().requires_grad_() * 2,)
    for args in ((torch.nn.Parameter(IMAGE),), (inference,), gradient):
        assert signature(args) == signature((IMAGE,))


@pytest.mark.parametrize(
    "tensor",
    [
        IMAGE.as_subclass(Subclass),
        IMAGE.to("meta"),
        torch.complex(IMAGE, IMAGE).conj().imag,
        torch._efficientzerotensor((2, 3)),
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    ],
    ids=["subclass", "meta", "neg", "zero", "coo", "csr", "nested"],
)
def test_more_than_memory_has_no_signature(signature, tensor):
    assert signature((tensor,)) is None
    assert signature((IMAGE, 1, tensor)) is None
    assert signature((IMAGE, [IMAGE, tensor])) is None


def test_batched_gradients_have_no_signature(signature):
    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            seen.append(signature((grad,)))
            return grad * 2

    x = torch.randn(3, requires_grad=True)
    torch.autograd.grad(Double.apply(x), x, torch.eye(3), is_grads_batched=True)
    assert seen == [None]


def test_an_argument_that_has_no_hash_is_checked_each_time(signature):
    with pytest.raises(TypeError):
        hash(signature((IMAGE, np.zeros(3))))
