"""MaskedEncoder where several threads run it: on one encoder at once, and on DataParallel's replicas."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from torch.nn.parallel import replicate

import simmim_kernels as sk
from tests.integrations.test_timm import MODELS, build, problem

timm = pytest.importorskip("timm")

from simmim_kernels.integrations.timm import MaskedEncoder  # noqa: E402


@pytest.mark.parametrize("name", MODELS)
def test_threads_that_share_an_encoder_keep_their_masks(name):
    images, first = problem()
    masks = first, sk.random_mask(2, (2, 2), 0.5, seed=4)
    encoder = MaskedEncoder(build(name)).eval()
    expected = [encoder(images, mask) for mask in masks]
    assert not torch.equal(*expected)
    both = Barrier(2)

    def meet(*_):
        both.wait(60)  # each is inside the model, with its mask, before either goes on

    convolution = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d))
    with ThreadPoolExecutor(2) as threads, convolution.register_forward_pre_hook(meet):
        found = list(threads.map(lambda mask: encoder(images, mask), masks))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_replicas_of_data_parallel_run_on_their_own_weights(name, monkeypatch):
    def copied(tensors, devices, detach=False):  # to other GPUs, of which there is none
        return [[t.detach().clone() for t in tensors] for _ in devices]

    module = sys.modules[replicate.__module__]
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copied)
    images, mask = problem()
    encoder = MaskedEncoder(build(name), mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1)).eval()
    expected = encoder(images, mask), encoder.hidden_tokens(images, mask)
    (replica,) = replicate(encoder, [0])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(float("nan"))
    found = replica(images, mask), replica.hidden_tokens(images, mask)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
