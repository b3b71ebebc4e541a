"""Masks without a seed while a CUDA graph is captured, on a runtime that is made up."""

from contextlib import contextmanager

import pytest
import torch

from simmim_kernels.backends import _seed


@pytest.fixture
def asked(monkeypatch):
    """Whether the stream of a GPU is captured is asked of which GPUs; the second one's is."""
    current, numbers = [0], []

    @contextmanager
    def device(chosen):
        current.append(chosen.index)
        yield
        current.pop()

    def is_capturing():
        numbers.append(current[-1])
        return current[-1] == 1

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", is_capturing)
    return numbers


def test_the_stream_of_the_masks_own_gpu_counts(asked):
    with pytest.raises(RuntimeError, match="seed is None while a CUDA graph is captured"):
        _seed.resolve_seed(None, torch.device("cuda", 1))
    assert asked == [1]
    assert _seed.resolve_seed(-1, torch.device("cuda", 1)) == 2**64 - 1
    assert 0 <= _seed.resolve_seed(None, torch.device("cuda", 0)) < 2**64
    assert asked == [1, 0]
