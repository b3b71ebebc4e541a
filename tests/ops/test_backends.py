"""Which backend serves, and how long a choice holds."""

import threading

import pytest
import torch

import simmim_kernels as sk
from simmim_kernels import backends


def test_a_backward_pass_in_another_thread_keeps_the_choice(monkeypatch):
    chosen = []
    serve = backends.serve
    monkeypatch.setattr(
        backends, "serve", lambda *a: chosen.append((a[1], backends.forced())) or serve(*a)
    )
    x = torch.randn(1, 4, 8, requires_grad=True)
    with sk.backend("reference"):
        out = sk.mask_tokens(x, torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(8))
    thread = threading.Thread(target=out.sum().backward)
    thread.start()
    thread.join()
    assert chosen == [("mask_tokens_forward", "reference"), ("mask_tokens_backward", "reference")]
    assert backends.forced() is None


def test_a_backend_asked_for_by_name_never_falls_back():
    with (
        sk.backend("triton"),
        pytest.raises(RuntimeError, match=r"serves random_mask on cpu .triton: "),
    ):
        sk.random_mask(torch.arange(2), (2, 2), 0.5, seed=0)
    with pytest.raises(ValueError, match="backend is 'gpu'; allowed"), sk.backend("gpu"):
        pass
