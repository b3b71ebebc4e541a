"""What section 7 of the specification asks of every op, for the masked losses."""

import inspect
import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch

import simmim_kernels as sk
from simmim_kernels import nn
from simmim_kernels.backends._loss_spec import LossSpec
from tests.backends import BACKENDS
from tests.ops.loss_cases import LAYOUTS, LOSSES, numbers_of, ours, problem

ROOT = Path(__file__).parents[2]


def results(layout="cyx", dtype=torch.float32, target_dtype=torch.float32, shape=(5, 3, (7, 7))):
    """Loss and gradient of every kind for one problem large enough for several threads."""
    pred, target, mask, stats = problem(*shape, 16, 8, layout, dtype, target_dtype)
    for kind in LOSSES:
        leaf = pred.detach().requires_grad_()
        loss = ours(kind, leaf, target, mask, layout, reduction="none", **stats)
        yield loss.detach()
        yield torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LOSSES)
def test_gradcheck(backend, layout, kind):
    """Along random directions, in which every number counts."""
    pred, target, mask, _ = problem(2, 2, (2, 1), 4, 2, layout, torch.float64, torch.float64)
    with sk.backend(backend):
        for reduction in ("mean", "none"):
            assert torch.autograd.gradcheck(
                lambda p, r=reduction: ours(kind, p, target, mask, layout, reduction=r),
                pred.requires_grad_(),
                rtol=1e-6,
                atol=1e-8,
                fast_mode=True,
            )


def _in_worker(queue, arguments):
    loss, grad, _ = torch.ops.simmim_kernels.masked_loss(*arguments)
    queue.put((loss.item(), grad.numpy().tobytes()))


def test_forked_worker(monkeypatch):
    monkeypatch.undo()  # poisoning memory would wait for an OpenMP team that the child lacks
    pred, target, mask, _ = problem(5, 3, (7, 7), 16, 8, "cyx", torch.float32, torch.float32)
    spec = LossSpec("l1", 1.0, "cyx", 1e-5, "mean")
    arguments = (pred, target, mask.mask, None, None, None, *spec, True)
    loss, grad, _ = torch.ops.simmim_kernels.masked_loss(*arguments)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_in_worker, args=(queue, arguments), daemon=True)
    process.start()
    assert queue.get(timeout=300) == (loss.item(), grad.numpy().tobytes())
    process.join(timeout=300)
    assert process.exitcode == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_types_alone(dtype):
    head = torch.nn.Linear(8, 48)
    _, target, mask, _ = problem(2, 3, (2, 3), 8, 4, "cyx", torch.float32, torch.float32)
    with torch.autocast("cpu", dtype):
        pred = head(torch.randn(2, 24, 8))
        assert pred.dtype == dtype
        loss = sk.masked_l1(pred, target, mask)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sk.masked_l1(pred.float(), target, mask))
    loss.backward()
    assert head.weight.grad.dtype == torch.float32 and head.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_may_take_the_place_of_the_prediction(backend, dtype):
    pred, target, mask, _ = problem(2, 3, (2, 3), 8, 8, "cyx", dtype, torch.float32)
    rows = pred[mask.mask.flatten(1)].unflatten(0, mask.masked.shape)
    spec = LossSpec("mse", 1.0, "cyx", 1e-5, "mean", "window", 3, 1e-6)
    arguments = (target, mask.mask, mask.masked, None, None, *spec)
    ops = torch.ops.simmim_kernels
    with sk.backend(backend):
        loss, grad, scale = ops.masked_loss(rows, *arguments, True)
        own = rows.clone()
        in_place = ops.masked_loss_(own, *arguments)
        assert torch.equal(own, grad)
        assert torch.equal(in_place[0], loss) and torch.equal(in_place[1], scale)
        with pytest.raises(ValueError, match="allowed: a contiguous tensor"):
            ops.masked_loss_(torch.stack((rows, rows), -1)[..., 0], *arguments)
    torch.library.opcheck(ops.masked_loss_.default, (rows.clone(), *arguments))


def test_listed_units_may_differ_in_count_between_samples():
    pred, target, *_ = problem(3, 3, (2, 2), 4, 4, "cyx", torch.float32, torch.float32)
    cells = torch.zeros(3, 4, dtype=torch.bool)
    cells[0, 1:] = cells[2, :2] = True
    grid, index = cells.view(3, 2, 2), cells.flatten().nonzero().flatten().int()
    for backend in BACKENDS:
        with sk.backend(backend):
            loss, grad, _ = torch.ops.simmim_kernels.masked_loss(
                pred[cells],
                target,
                grid,
                index,
                None,
                None,
                *LossSpec("mse", 1.0, "cyx", 1e-5, "none"),
                True,
            )
            leaf = pred.detach().requires_grad_()
            dense = sk.masked_mse(leaf, target, grid, reduction="none")
            (dense_grad,) = torch.autograd.grad(dense.sum(), leaf)
        assert torch.allclose(loss, dense, rtol=1e-6) and torch.equal(grad, dense_grad[cells])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pred": torch.zeros(2, 4, 48, dtype=torch.int32)}, TypeError, "pred has dtype int32"),
        ({"pred": None}, TypeError, "pred must be a tensor"),
        ({"pred": torch.zeros(2, 3, 48)}, ValueError, "pred has shape"),
        ({"pred": torch.zeros(1, 4, 48)}, ValueError, "pred has shape"),
        ({"pred": torch.zeros(2, 4, 47)}, ValueError, "pred has shape"),
        ({"pred": torch.zeros(2, 48)}, ValueError, "pred has shape"),
        ({"pred": torch.zeros(2, 48, 4, 1)}, ValueError, "pred has shape"),
        ({"pred": torch.zeros(2, 4, 0)}, ValueError, "pred has shape"),
        ({"target": torch.zeros(2, 3, 8)}, ValueError, "target has shape"),
        ({"target": torch.zeros(2, 0, 8, 8)}, ValueError, "target has shape"),
        ({"target": torch.zeros(2, 3, 8, 8, dtype=torch.int8)}, TypeError, "target has dtype"),
        ({"target": torch.zeros(2, 3, 8, 8, requires_grad=True)}, ValueError, "requires grad"),
        ({"target": torch.zeros(2, 3, 9, 8)}, ValueError, "image height 9"),
        ({"mask": torch.zeros(2, 2, 2)}, TypeError, "mask has dtype float32"),
        ({"mask": torch.zeros(3, 2, 2, dtype=torch.bool)}, ValueError, "batch size 3"),
        ({"mask": torch.zeros(2, 2, 3, dtype=torch.bool)}, ValueError, "image width 8"),
        ({"order": "xyc"}, ValueError, "order is 'xyc'"),
        ({"reduction": "max"}, ValueError, "reduction is 'max'"),
        ({"eps": -1.0}, ValueError, "eps is -1"),
        ({"eps": float("nan")}, ValueError, "eps is nan"),
        ({"mean": (0.5,) * 3}, ValueError, "mean and std go together"),
        ({"target_norm": "window"}, TypeError, "target_norm is str"),
        ({"mask": torch.zeros(2, 2, 2, dtype=torch.bool, device="meta")}, RuntimeError, "on meta"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {
        "pred": torch.zeros(2, 4, 48),
        "target": torch.zeros(2, 3, 8, 8),
        "mask": torch.zeros(2, 2, 2, dtype=torch.bool),
    } | change
    with pytest.raises(error, match=words):
        sk.masked_l1(**arguments)


def test_bad_beta_and_index_are_named():
    pred, target, mask, _ = problem(2, 3, (2, 2), 4, 4, "units", torch.float32, torch.float32)
    with pytest.raises(ValueError, match="beta is -1"):
        sk.masked_smooth_l1(pred, target, mask, beta=-1)
    for delta in (0, -1.0, float("inf"), float("nan")):
        for loss in (partial(sk.masked_huber, delta=delta), nn.MaskedHuberLoss(delta=delta)):
            with pytest.raises(ValueError, match=rf"^delta is {float(delta)}; allowed: a finite"):
                loss(pred, target, mask)
    with pytest.raises(ValueError, match="pred has shape"):
        sk.masked_l1(pred[:, 1:], target, mask)
    with pytest.raises(ValueError, match="tokens of the whole image, without class tokens"):
        sk.masked_l1(torch.zeros(2, 5, 48), target, mask)
    for bad in (-1, 0, 4):  # 0 is named once for every unit
        wrong = mask._replace(masked=torch.full_like(mask.masked, bad))
        with pytest.raises(ValueError, match=r"^masked names "):
            sk.masked_l1(pred, target, wrong)
        # Only the backends for the CPU look: on a GPU that would be a synchronisation.
        options = (None, None, *LossSpec("l1", 1.0, "cyx", 1e-5, "mean"), False)
        for backend in ("cpu", "reference"):
            with sk.backend(backend), pytest.raises(ValueError, match="names no mask unit"):
                torch.ops.simmim_kernels.masked_loss(
                    pred, target, mask.mask, wrong.masked, *options
                )


@pytest.mark.slow
@pytest.mark.parametrize("target_norm", [None, sk.WindowNorm(5)], ids=["none", "window"])
def test_two_losses_in_one_graph_of_any_size(target_norm):
    """Numbers that the first loss has looked at are the second's, too."""
    pred, target, mask, _ = problem(2, 3, (2, 2), 8, 4, "cyx", torch.float32, torch.uint8)

    def step(pred):
        rows = partial(sk.masked_linear_mse, weight=pred.new_ones(48, 48), bias=None)
        loss = sk.masked_l1(pred, target, mask, target_norm=target_norm)
        return loss + rows(pred, target=target, mask=mask, target_norm=target_norm)

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")):
        leaf = pred.detach().requires_grad_()
        loss = function(leaf)
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", LOSSES)
def test_modules(kind):
    function = getattr(sk, f"masked_{kind}")
    (module,) = [m for m in nn._MaskedLoss.__subclasses__() if m.function is function]
    assert module.__name__ in nn.__all__
    for name in numbers_of(kind, 0.5):
        forms = (function, module, getattr(sk, f"masked_linear_{kind}"))
        defaults = {
            form.__name__: inspect.signature(form).parameters[name].default for form in forms
        }
        assert len({*defaults.values()}) == 1, defaults
    pred, target, mask, stats = problem(2, 3, (2, 2), 8, 4, "yxc", torch.float32, torch.uint8)
    extra = numbers_of(kind, 0.5)
    loss = module(order="yxc", reduction="none", eps=2.0, **stats, **extra)
    assert all(f"{name}=0.5" in repr(loss) for name in extra)
    assert "order='yxc'" in repr(loss) and "reduction='none'" in repr(loss)
    expected = ours(kind, pred, target, mask, "yxc", reduction="none", eps=2.0, **stats, **extra)
    assert torch.equal(loss(pred, target, mask), expected)
    normed = module(order="yxc", target_norm=sk.PatchNorm(), **extra)
    assert "PatchNorm" in repr(normed)
    expected = ours(kind, pred, target, mask, "yxc", target_norm=sk.PatchNorm(), **extra)
    assert torch.equal(normed(pred, target, mask), expected)


def test_mask_token_module():
    module = nn.MaskToken(8, prefix_tokens=1)
    assert repr(module) == "MaskToken(8, prefix_tokens=1)"
    assert module.token.shape == (1, 1, 8) and 0 < module.token.abs().max() <= 0.04
    x, mask = torch.randn(2, 5, 8), sk.random_mask(2, (2, 2), 0.5, seed=0)
    out = module(x, mask)
    assert torch.equal(out, sk.mask_tokens(x, mask, module.token, prefix_tokens=1))
    out.sum().backward()
    assert module.token.grad is not None
