"""What only a GPU can show: graphs, streams, no hidden synchronisation, the CPU's bits, large offsets."""

import pytest
import torch

import simmim_kernels as sk
from tests.gpu.cuda_cases import CASES, NAMES, STATS, missing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")


@pytest.fixture(params=NAMES)
def backend(request):
    with sk.backend(request.param):
        yield request.param


@pytest.fixture(params=CASES)
def case(request, backend):
    """What makes the tensors of a call, and the call, which returns results and gradients."""
    modules, make, run = CASES[request.param]
    reason = missing(backend, modules)
    if reason is not None:
        pytest.skip(reason)
    return make, run


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("grid", [(6, 6), (14, 14), (40, 40), (100, 100)])
@pytest.mark.parametrize("strategy", ["random_mask", "block_mask", "box_mask", "uniform_mask"])
def test_masks_have_the_bits_of_the_cpu(backend, strategy, grid):
    if (reason := missing(backend, (strategy,))) is not None:
        pytest.skip(reason)
    ids = torch.randint(-(2**62), 2**62, (33,), device="cpu")
    ratio = 0.75 if strategy == "uniform_mask" else 0.6
    made = getattr(sk, strategy)(ids.cuda(), grid, ratio, seed=2**63 + 9, epoch=5)
    with sk.backend("reference"):
        expected = getattr(sk, strategy)(ids, grid, ratio, seed=2**63 + 9, epoch=5)
    assert same((t.cpu() for t in made), expected)


def test_results_and_gradients_are_those_of_the_reference(case):
    make, run = case
    given = make(3)
    found = run(*given)
    with sk.backend("reference"):
        expected = run(*given)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.shape == plain.shape and ours.dtype == plain.dtype
        if not ours.is_floating_point():
            assert torch.equal(ours, plain)
            continue
        ours, plain = ours.double(), plain.double()
        # TF32 is off: what may differ is the order of float32 sums and one rounding of the result.
        assert (ours - plain).norm() <= 1e-3 * plain.norm()


def test_twenty_runs_have_the_same_bits(case):
    make, run = case
    given = make(64)
    expected = run(*given)
    assert all(same(run(*given), expected) for _ in range(20))


def test_no_hidden_synchronisation(case):
    make, run = case
    given = make(4)
    run(*given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_capture_and_replay(case):
    make, run = case
    given, other = make(4), make(4)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(*given)
    with torch.no_grad():
        for old, new in zip(given, other, strict=True):
            old.copy_(new)
    graph.replay()
    captured = [result.clone() for result in results]
    assert same(captured, run(*given))


def test_runs_on_the_current_stream(case):
    make, run = case
    given, late = make(4), make(4)
    expected = run(*given)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # What a kernel on another stream would read meanwhile is not what it should read.
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for tensor, right in zip(late, given, strict=True):
                tensor.copy_(right)
        results = run(*late)
    stream.synchronize()
    assert same(results, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    pred = torch.randn(4, 49, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    token = torch.randn(768, device="cuda", requires_grad=True)
    target = torch.randint(0, 256, (4, 3, 112, 112), dtype=torch.uint8, device="cuda")
    ids = torch.arange(4, device="cuda")

    def forward(pred, token, target, ids):
        mask = sk.random_mask(ids, (7, 7), 0.6, seed=3)
        tokens = sk.mask_tokens(pred * 1.0, mask, token)
        return sk.masked_l1(tokens, target, mask, **STATS) + tokens.float().square().mean()

    compiled = torch.compile(forward, fullgraph=True, dynamic=dynamic)
    for function in (forward, compiled):
        loss = function(pred, token, target, ids)
        grads = torch.autograd.grad(loss, (pred, token))
        if function is forward:
            expected = (loss.detach(), *grads)
    for ours, plain in zip((loss, *grads), expected, strict=True):
        assert (ours.double() - plain.double()).norm() <= 1e-2 * plain.double().norm()


def test_autocast_promotes_as_the_published_arithmetic(backend):
    if (reason := missing(backend, ("random_mask", "mask_tokens"))) is not None:
        pytest.skip(reason)
    x = torch.randn(4, 49, 96, device="cuda", dtype=torch.bfloat16)
    mask = sk.random_mask(torch.arange(4, device="cuda"), (7, 7), 0.6, seed=3)
    with torch.autocast("cuda", torch.bfloat16):
        assert sk.mask_tokens(x, mask, torch.zeros(96, device="cuda")).dtype == torch.float32


def enough_memory(need):
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need >> 30} GiB of GPU memory")


def test_mask_tokens_of_more_than_two_to_the_31_elements(backend):
    if (reason := missing(backend, ("mask_tokens",))) is not None:
        pytest.skip(reason)
    batch, width = 2**21 + 3, 1024 + 8
    enough_memory(3 * 2 * batch * width)
    x = torch.zeros(batch, 1, width, device="cuda", dtype=torch.bfloat16)
    mask = torch.zeros(batch, 1, 1, device="cuda", dtype=torch.bool)
    mask[-1] = True
    out = sk.mask_tokens(x, mask, torch.ones(width, device="cuda", dtype=torch.bfloat16))
    assert bool((out[-1] == 1).all())
    assert not bool(out[-2].any())
    assert not bool(out[: batch // 2].any())


def test_loss_of_more_than_two_to_the_31_elements(backend):
    if (reason := missing(backend, ("masked_loss",))) is not None:
        pytest.skip(reason)
    batch, side = 2**15 + 3, 256
    enough_memory(8 * batch * side * side)
    target = torch.zeros(batch, 1, side, side, device="cuda", dtype=torch.uint8)
    target[-1] = 255
    pred = torch.zeros(target.shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    mask = torch.zeros(batch, 1, 1, device="cuda", dtype=torch.bool)
    mask[-1] = True
    loss = sk.masked_l1(pred, target, mask, reduction="sum")
    (grad,) = torch.autograd.grad(loss, pred)
    assert loss.item() == side * side
    assert bool((grad[-1] == -1).all())
    assert not bool(grad[-2].any()) and not bool(grad[: batch // 2].any())
