"""What every op promises, whatever it computes: one test a promise, one table of calls (calls.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import simmim_kernels as sk
from simmim_kernels import backends
from tests.backends import BACKENDS, DEVICE
from tests.ops.calls import (
    CALLS,
    OPS,
    arguments_of,
    check_against_the_reference,
    in_type,
    outputs,
    results,
)

DIFFERENTIABLE = [name for name, call in CALLS.items() if call.leaves]
EXACT = [name for name, call in CALLS.items() if not call.products]
# Every call is compiled by AOTAutograd for any sizes, one of every op by Inductor.
COMPILED = [name for name, call in CALLS.items() if call.compiles]
ONE_OF_EACH = [*{CALLS[name].modules: name for name in reversed(COMPILED)}.values()]


def test_every_public_op_is_in_the_table():
    missing = OPS - {call.function.__name__ for call in CALLS.values()}
    assert not missing


@pytest.mark.parametrize("name", CALLS)
def test_the_table_names_every_leaf_and_the_files_that_run(name, monkeypatch):
    call, arguments, used = CALLS[name], arguments_of(name), set()
    serve = backends.serve
    monkeypatch.setattr(backends, "serve", lambda file, *rest: used.add(file) or serve(file, *rest))
    results(name, arguments)
    assert used == {*call.modules}
    for key in arguments.keys() - {*call.leaves}:
        value = arguments[key]
        if isinstance(value, Tensor) and value.is_floating_point():
            try:
                out = outputs(call.function(**arguments | {key: value.detach().requires_grad_()}))
            except ValueError:  # no gradient for a target
                continue
            assert not out[0].requires_grad, key


def assert_same(found, expected, exact=True):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if exact:
            assert torch.equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs)


def assert_close_to_rounding(found, expected):
    """Both are products of float32 factors, rounded once or twice: within 0.5 and 1.1 eps of exact."""
    for ours, theirs in zip(found, expected, strict=True):
        eps = torch.finfo(theirs.dtype).eps if theirs.is_floating_point() else 0
        torch.testing.assert_close(ours, theirs, rtol=2 * eps, atol=0)


def served(backend, name):
    """`sk.backend`; skips a call that the backend does not serve."""
    for module in CALLS[name].modules:
        if (reason := backends.why_not(backend, module, DEVICE)) is not None:
            pytest.skip(reason)
    return sk.backend(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_every_backend_is_as_exact_as_the_reference(name, backend):
    with served(backend, name):
        found = results(name, arguments_of(name))
    if found[0].dtype == torch.uint8:
        pytest.skip("resized bytes, whose error test_crop_resize.py counts in grey levels")
    check_against_the_reference(name, found)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradients_of_the_reference_are_the_derivatives(name):
    call, arguments = CALLS[name], in_type(torch.float64, arguments_of(name))
    leaves = tuple(arguments[key].detach().requires_grad_() for key in call.leaves)

    def function(*leaves):
        return outputs(call.function(**arguments | dict(zip(call.leaves, leaves, strict=True))))[0]

    with sk.backend("reference"):
        assert torch.autograd.gradcheck(function, leaves, rtol=1e-6, atol=1e-8, fast_mode=True)


def sliced(t: Tensor) -> Tensor:
    memory = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1])
    memory[..., ::2] = t
    return memory[..., ::2]


def shifted(t: Tensor) -> Tensor:
    memory = t.new_zeros(t.numel() + 1)
    memory[1:] = t.flatten()
    return memory[1:].view(t.shape)


LAYOUTS = {
    "sliced": sliced,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "channels first": lambda t: t.movedim(-1, 1).contiguous().movedim(1, -1) if t.dim() > 2 else t,
    "expanded": lambda t: t[:1].expand(t.shape),
    "shifted": shifted,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_any_strides_give_the_results_of_contiguous_tensors(name, backend, layout):
    """Each tensor alone: a kernel may have one path for a strided prediction, another for a target."""
    change, arguments = LAYOUTS[layout], arguments_of(name)
    with served(backend, name):
        given = results(name, arguments)
        for key, value in arguments.items():
            if not isinstance(value, Tensor) or not value.dim():
                continue
            strided = change(value)
            found, expected = results(name, arguments | {key: strided}), given
            if layout == "expanded" or not value.is_contiguous():
                plain = strided.clone(memory_format=torch.contiguous_format)
                expected = results(name, arguments | {key: plain})
            if backend == "cuda":
                # what cannot be read in packs has a kernel of its own, which rounds a product elsewhere
                assert_close_to_rounding(found, expected)
            else:
                assert_same(found, expected, exact=not CALLS[name].products)


# Masks, parameters and lists, which kernels take contiguous: they are small beside a batch.
SMALL = {"mask", "token", "pos_embed", "sizes", "boxes"}


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_no_large_input_is_made_contiguous(name, backend, monkeypatch):
    arguments, copied, contiguous = arguments_of(name), set(), Tensor.contiguous

    def record(tensor, **options):
        result = contiguous(tensor, **options)
        if result.data_ptr() != tensor.data_ptr():
            copied.add(tuple(tensor.shape))
        return result

    with served(backend, name):
        for key, value in arguments.items():
            if isinstance(value, Tensor) and value.dim() > 1 and key not in SMALL:
                strided = sliced(value)
                with monkeypatch.context() as patch:
                    patch.setattr(Tensor, "contiguous", record)
                    results(name, arguments | {key: strided})
                assert not copied, key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", [n for n in DIFFERENTIABLE if "masked_loss" not in CALLS[n].modules]
)
def test_an_incoming_gradient_may_have_any_strides(name, backend, layout):
    """Not of a loss, whose gradient is a number, or one for each sample."""
    call, arguments = CALLS[name], arguments_of(name)
    leaves = {key: arguments[key].detach().requires_grad_() for key in call.leaves}
    with served(backend, name):
        out = outputs(call.function(**arguments | leaves))[0]
        grad = LAYOUTS[layout](torch.randn(out.shape).to(out.dtype))
        found, expected = (
            torch.autograd.grad(out, tuple(leaves.values()), given, retain_graph=True)
            for given in (grad, grad.clone(memory_format=torch.contiguous_format))
        )
    assert_same(found, expected, exact=False)  # sums over a batch may be in another order


SLOW = pytest.mark.slow


@pytest.mark.parametrize("threads", [pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
@pytest.mark.parametrize("name", EXACT)
def test_same_bits_for_any_number_of_threads_and_in_20_runs(name, threads):
    batch, grid = (500, (14, 14)) if name.endswith(("k_mask", "m_mask", "x_mask")) else (9, (7, 6))
    arguments = arguments_of(name, batch, grid)
    expected, before = results(name, arguments), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(20):
            assert_same(results(name, arguments), expected)
    finally:
        torch.set_num_threads(before)


def compare_compiled(name, batches=(2,), **options):
    """One graph, compiled once, gives the results of every batch."""
    call = CALLS[name]

    def step(**values):
        scaled = next((key for key in values if key in call.leaves), None)
        if scaled is not None:  # something for the compiler to fuse with
            values[scaled] = values[scaled] * 1.0
        return tuple(t + 0 for t in outputs(call.function(**values)))

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, **options)
    stance = "default"
    for batch in batches:
        arguments = arguments_of(name, batch)
        expected = results(name, arguments, step)
        with torch.compiler.set_stance(stance):
            assert_same(results(name, arguments, compiled), expected, exact=not call.products)
        stance = "fail_on_recompile"


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_compiles_with_inductor(name):
    compare_compiled(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_in_one_graph_for_any_batch(name):
    # A list of images is another argument for every length. The first batch differs from all other
    # sizes, which the compiler would take for one.
    batches = (7,) if name == "crop_resize listed" else (7, 11)
    compare_compiled(name, batches, dynamic=True, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_exports(name):
    arguments = arguments_of(name)
    tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
    hidden = arguments.get("mask")
    if isinstance(hidden, sk.PatchMask):
        tensors |= {f"mask_{part}": value for part, value in hidden._asdict().items()}

    class Model(torch.nn.Module):
        def forward(self, **values):
            parts = {key: values.pop(key) for key in list(values) if key.startswith("mask_")}
            if parts:
                values["mask"] = sk.PatchMask(*parts.values())
            return outputs(CALLS[name].function(**arguments | values))

    exported = torch.export.export(Model(), (), tensors).module()
    assert_same(exported(**tensors), Model()(**tensors))


class Recorder(TorchDispatchMode):
    """Keeps the calls of this library's ops, with copies of their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "simmim_kernels":
            copies = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), args)
            self.calls.append((function, copies))
        return function(*args, **(kwargs or {}))


def recorded(name):
    """The library's ops behind a call: with every gradient, with each alone, with none, and for
    tensors of other strides and types."""
    arguments, call = arguments_of(name), CALLS[name]
    with Recorder() as recorder:
        results(name, arguments)
        for leaf in call.leaves:
            alone = arguments | {leaf: arguments[leaf].detach().requires_grad_()}
            outputs(call.function(**alone))[0].sum().backward()
        call.function(**arguments)
        key = next(key for key, value in arguments.items() if isinstance(value, Tensor))
        for layout in ("channels first", "transposed"):
            results(name, arguments | {key: LAYOUTS[layout](arguments[key])})
        for dtype in (torch.float64, torch.bfloat16):
            results(name, in_type(dtype, arguments))
    assert recorder.calls
    return recorder.calls


@pytest.mark.parametrize("name", CALLS)
def test_fake_kernels_give_the_shapes_types_and_strides_of_the_real_ones(name):
    utilities = ("test_schema", "test_faketensor")
    for function, arguments in recorded(name):
        torch.library.opcheck(function, arguments, test_utils=utilities)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    """Each kind of call once: what differs in its numbers alone is traced alike."""
    utilities = ("test_autograd_registration", "test_aot_dispatch_dynamic")
    kinds = {}
    for function, arguments in recorded(name):
        kind = pytree.tree_map_only(Tensor, lambda t: (t.dtype, t.shape, t.stride()), arguments)
        kinds[function, str(kind)] = function, arguments
    for function, arguments in kinds.values():
        torch.library.opcheck(function, arguments, test_utils=utilities)


@pytest.mark.parametrize("name", EXACT)
def test_autocast_changes_nothing(name):
    """Types are promoted as the arguments say; only matrix products follow autocast."""
    expected = results(name, arguments_of(name))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert_same(results(name, arguments_of(name)), expected)


@pytest.mark.parametrize("name", CALLS)
def test_a_default_device_set_elsewhere_changes_nothing(name):
    arguments = arguments_of(name)
    expected = outputs(CALLS[name].function(**arguments))
    with torch.device("meta"):
        assert_same(outputs(CALLS[name].function(**arguments)), expected)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", CALLS)
def test_values_are_the_same_without_gradients(name, guard):
    expected = results(name, arguments_of(name))
    arguments = arguments_of(name)
    with guard():
        out = outputs(CALLS[name].function(**arguments))
    assert not any(tensor.requires_grad for tensor in out)
    assert_same(out, expected[: len(out)], exact=not CALLS[name].products)


@pytest.mark.parametrize("name", CALLS)
def test_arguments_stay_as_they_are(name):
    arguments = arguments_of(name)
    before = pytree.tree_map_only(Tensor, Tensor.clone, arguments)
    results(name, arguments)
    flat = zip(pytree.tree_leaves(arguments), pytree.tree_leaves(before), strict=True)
    assert all(torch.equal(a, b) for a, b in flat if isinstance(a, Tensor))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivative_is_refused(name):
    call, arguments = CALLS[name], arguments_of(name)
    leaves = {key: arguments[key].detach().requires_grad_() for key in call.leaves}
    loss = outputs(call.function(**arguments | leaves))[0].float().square().sum()
    grads = torch.autograd.grad(loss, tuple(leaves.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        sum(grad.float().square().sum() for grad in grads).backward()


@pytest.mark.parametrize("name", CALLS)
def test_transforms_are_refused(name):
    call, arguments = CALLS[name], arguments_of(name)
    key = next(key for key, value in arguments.items() if isinstance(value, Tensor))
    with pytest.raises(RuntimeError, match=r"does not support torch\.func"):
        torch.func.vmap(lambda t: call.function(**arguments | {key: t}))(arguments[key][None])
    if "mask" in arguments:  # whose units are counted before an op is called
        mask = arguments["mask"]
        kind = sk.PatchMask if isinstance(mask, sk.PatchMask) else lambda part: part
        parts = [part[None] for part in (mask if isinstance(mask, tuple) else (mask,))]
        with pytest.raises(RuntimeError, match=r"does not support torch\.func"):
            torch.func.vmap(lambda *p: call.function(**arguments | {"mask": kind(*p)}))(*parts)
    with pytest.raises(RuntimeError, match=r"recorded by torch\.jit\.trace; use torch\.export"):
        torch.jit.trace(lambda t: call.function(**arguments | {key: t}), (arguments[key],))
    if key in call.leaves:
        with torch.autograd.forward_ad.dual_level():
            value = arguments[key]
            dual = torch.autograd.forward_ad.make_dual(value, torch.ones_like(value))
            with pytest.raises(RuntimeError, match="no forward-mode derivative"):
                call.function(**arguments | {key: dual})
