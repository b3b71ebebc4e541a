"""Head and loss of target tokens `(B, L, N)`, against plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

import simmim_kernels as sk
from tests.backends import BACKENDS
from tests.ops.loss_cases import BETA, LOSSES, numbers_of
from tests.ops.test_masked_loss_tokens import NORM_EPS, STATS, hidden_tokens, plain, problem


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("norm", [False, True])
def test_head_and_loss(backend, kind, norm):
    _, target, mask = problem(2, (2, 3), 2, 9, torch.float64, torch.float64)
    tokens, weight, bias = torch.randn(2, 24, 5), torch.randn(9, 5), torch.randn(9)
    leaves = [t.double().requires_grad_() for t in (tokens, weight, bias)]
    fused = getattr(sk, f"masked_linear_{kind}")
    options = numbers_of(kind, BETA) | ({"target_norm": sk.PatchNorm(NORM_EPS)} if norm else {})
    hidden = hidden_tokens(mask, target)
    exact = plain(kind, F.linear(*leaves), target, hidden, "mean", norm, 1e-5, torch.float64)
    expected = torch.autograd.grad(exact, leaves)
    with sk.backend(backend):
        for units in (mask, mask.mask):
            found = fused(*leaves, target, units, **options)
            torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)
            for one, other in zip(torch.autograd.grad(found, leaves), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(20, 7)}, r"\(20, 7\); allowed for target tokens of 5 numbers"),
        ({"tokens": torch.zeros(2, 6, 7)}, r"tokens has shape \(2, 6, 7\)"),
        ({"target": torch.zeros(2, 7, 5)}, r"target has shape \(2, 7, 5\)"),
        ({"target": torch.zeros(2, 6, 5)}, r"tokens has shape \(2, 24, 7\)"),
        ({"target_norm": sk.WindowNorm(5)}, "target_norm is WindowNorm beside"),
        (STATS, "mean and std are given beside target tokens"),
    ],
)
def test_errors_of_head_and_loss(change, words):
    _, target, mask = problem(2, (2, 3), 2, 5, torch.float32, torch.float32)
    arguments = {"tokens": torch.zeros(2, 24, 7), "weight": torch.zeros(5, 7), "bias": None}
    with pytest.raises(ValueError, match=words):
        sk.masked_linear_mse(**arguments | {"target": target, "mask": mask} | change)
