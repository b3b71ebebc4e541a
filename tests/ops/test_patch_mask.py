"""A PatchMask whose parts disagree, bool masks of any bytes, and what the mask ops do in traced and
captured code."""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import simmim_kernels as sk
from simmim_kernels.backends import _seed
from simmim_kernels.ops._sampling import sample_ids
from simmim_kernels.ops.place_tokens import take_masked_tokens
from tests.backends import BACKENDS

IMAGE, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 48)
TAKES_A_MASK = {
    "masked_l1": lambda m: sk.masked_l1(TOKENS, IMAGE, m),
    "masked_l1 of units": lambda m: sk.masked_l1(torch.randn(2, m.masked.shape[-1], 48), IMAGE, m),
    "masked_linear_l1": lambda m: sk.masked_linear_l1(
        torch.randn(2, 4, 5), torch.randn(48, 5), None, IMAGE, m
    ),
    "mask_tokens": lambda m: sk.mask_tokens(TOKENS, m, torch.zeros(48)),
    "mask_image": lambda m: sk.mask_image(IMAGE, m),
    "masked_patch_embed": lambda m: sk.masked_patch_embed(
        IMAGE, torch.randn(5, 3, 4, 4), None, m, torch.zeros(5)
    ),
    "visible_patch_embed": lambda m: sk.visible_patch_embed(
        IMAGE, torch.randn(5, 3, 4, 4), None, m
    ),
    "restore_tokens": lambda m: sk.restore_tokens(
        torch.randn(2, m.visible.shape[-1], 48), m, torch.zeros(48)
    ),
    "take_masked_tokens": lambda m: take_masked_tokens(TOKENS, m),
    "avg_dist": lambda m: sk.avg_dist(m, 4),
    "on_grid": lambda m: m.on_grid((4, 4)),
}


def a_mask():
    return sk.random_mask(2, (2, 2), 0.5, seed=0)


def with_value(tensor, value):
    changed = tensor.clone()
    changed[1, 0] = value
    return changed


DISAGREE = {
    "empty lists": lambda m: m._replace(masked=m.masked[:, :0], visible=m.visible[:, :0]),
    "nothing listed as masked": lambda m: m._replace(
        masked=m.masked[:, :0], visible=torch.arange(4, dtype=torch.int32).expand(2, 4)
    ),
    "one unit short": lambda m: m._replace(masked=m.masked[:, :1]),
    "a sample short": lambda m: m._replace(masked=m.masked[:1]),
    "flat": lambda m: m._replace(masked=m.masked.flatten()),
    "beyond the grid": lambda m: m._replace(masked=with_value(m.masked, 4)),
    "far beyond the grid": lambda m: m._replace(visible=with_value(m.visible, 2**31 - 1)),
    "negative": lambda m: m._replace(masked=with_value(m.masked, -1)),
    "named twice": lambda m: m._replace(masked=m.masked[:, :1].expand(2, 2)),
    "another order": lambda m: m._replace(masked=m.masked.flip(1)),
    "those of another mask": lambda m: m._replace(masked=m.visible, visible=m.masked),
    "a mask with other counts": lambda m: m._replace(mask=torch.ones_like(m.mask)),
    "flat mask": lambda m: m._replace(mask=m.mask.flatten(1)),
}


@pytest.mark.parametrize("parts", DISAGREE)
@pytest.mark.parametrize("call", TAKES_A_MASK)
def test_parts_that_disagree_raise(call, parts):
    with pytest.raises(ValueError, match=r"^(mask|masked|visible) (has|names) "):
        TAKES_A_MASK[call](DISAGREE[parts](a_mask()))


def test_parts_of_another_type_or_device_raise():
    mask = a_mask()
    with pytest.raises(TypeError, match="masked has dtype int64"):
        sk.mask_image(IMAGE, mask._replace(masked=mask.masked.long()))
    with pytest.raises(TypeError, match="visible must be a tensor, got list"):
        sk.mask_image(IMAGE, mask._replace(visible=[0]))
    with pytest.raises(RuntimeError, match="masked is on meta, but mask is on"):
        sk.mask_image(IMAGE, mask._replace(masked=mask.masked.to("meta")))


@pytest.mark.parametrize("call", [c for c in TAKES_A_MASK if c not in ("on_grid", "restore_tokens",
                                  "masked_l1 of units", "visible_patch_embed", "take_masked_tokens")])  # fmt: skip
@pytest.mark.parametrize("mask", [a_mask()[:2], [[True]], None, a_mask().mask.numpy()])
def test_what_is_no_mask_is_named(call, mask):
    """A slice of a PatchMask is a plain tuple, of its parts and not of its samples."""
    words = f"^mask must be a PatchMask or a bool tensor, got {type(mask).__name__}"
    with pytest.raises(TypeError, match=words + ("; some samples" * isinstance(mask, tuple))):
        TAKES_A_MASK[call](mask)


@pytest.mark.parametrize("value", [a_mask(), sk.PatchNorm(1e-5), sk.WindowNorm(5)])
def test_a_checkpoint_gives_it_back_without_running_code(value):
    file = io.BytesIO()
    torch.save({"value": value}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)["value"]
    assert type(found) is type(value) and repr(found) == repr(value)


def test_its_parts_may_come_as_one_iterable():
    """So do data loops rebuild the tuples that they move to a device."""
    mask = sk.random_mask(2, (2, 2), 0.5, seed=0)
    for rebuilt in (type(mask)(part for part in mask), sk.PatchMask(list(mask))):
        assert type(rebuilt) is sk.PatchMask and all(map(torch.equal, rebuilt, mask))
    for parts in ((mask.mask,), ([mask.mask],), (tuple(mask), mask.visible)):
        with pytest.raises(TypeError, match=r"missing .* required positional argument"):
            sk.PatchMask(*parts)


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="PyTorch 2.11 fails to trace it")
def test_compiled_code_may_rebuild_it_from_one_iterable():
    mask = sk.random_mask(2, (2, 2), 0.5, seed=0)
    rebuilt = torch.compile(lambda m: type(m)(part.clone() for part in m), backend="eager")(mask)
    assert type(rebuilt) is sk.PatchMask and all(map(torch.equal, rebuilt, mask))


def test_a_mask_that_was_written_to_is_checked_again():
    mask = a_mask()
    sk.mask_image(IMAGE, mask)
    mask.mask.logical_not_()
    with pytest.raises(ValueError, match="the index lists of a PatchMask"):
        sk.mask_image(IMAGE, mask)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_empty_lists_of_a_right_mask_work(backend, ratio):
    mask = sk.random_mask(2, (2, 2), ratio, seed=0)
    pred = torch.randn(2, int(4 * ratio), 48, requires_grad=True)
    with sk.backend(backend):
        loss = sk.masked_l1(pred, IMAGE, mask)
        (grad,) = torch.autograd.grad(loss, pred)
    assert grad.shape == pred.shape and loss.isfinite() and (ratio == 1.0) == bool(loss)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", ["masked_l1", "masked_linear_l1", "mask_tokens", "mask_image",
                                  "masked_patch_embed", "avg_dist"])  # fmt: skip
def test_any_byte_but_0_is_masked(backend, call):
    mask = a_mask().mask
    odd = torch.where(mask, torch.tensor([2, 255], dtype=torch.uint8), 0).view(torch.bool)
    results = []
    for m in (mask, odd):
        torch.manual_seed(1)
        with sk.backend(backend):
            results.append(torch.as_tensor(TAKES_A_MASK[call](m)))
    assert torch.equal(*results)


def compilations(function, arguments, **options):
    """How often `function` is compiled for calls with each of `arguments`, and its results."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, fullgraph=True, **options)
    return [compiled(a) for a in arguments], counter.frame_count


@pytest.mark.parametrize("call", ["masked_l1", "masked_linear_l1", "mask_tokens", "mask_image",
                                  "masked_patch_embed"])  # fmt: skip
def test_what_make_fx_records_serves_masks_of_other_counts(call):
    def seeded(function, mask):
        torch.manual_seed(1)
        return function(mask)

    recorded = make_fx(TAKES_A_MASK[call])(a_mask().mask)
    for ratio in (0.0, 0.25, 1.0):
        mask = sk.random_mask(2, (2, 2), ratio, seed=0).mask
        torch.testing.assert_close(seeded(recorded, mask), seeded(TAKES_A_MASK[call], mask))


def test_a_fake_mask_needs_its_count_alone():
    with FakeTensorMode() as fake:
        mask = fake.from_tensor(a_mask().mask)
        assert sk.PatchMask.from_mask(mask, 2).masked.shape == (2, 2)
        with pytest.raises(ValueError, match="count is None"):
            sk.PatchMask.from_mask(mask)


def test_a_mask_on_meta_needs_its_count_alone():
    mask = torch.zeros(2, 2, 2, dtype=torch.bool, device="meta")
    assert sk.PatchMask.from_mask(mask, 3).visible.shape == (2, 1)
    with pytest.raises(ValueError, match="count is None on meta; say how many units are masked"):
        sk.PatchMask.from_mask(mask)


MASKS = (sk.random_mask, sk.block_mask, sk.box_mask)


@pytest.mark.parametrize("function", MASKS)
def test_changing_epochs_compile_once(function):
    def step(epoch):
        return function(2, (4, 5), 0.5, seed=3, epoch=epoch)

    # The first number is a constant for torch.compile, as are 0 and 1; any other is symbolic.
    found, count = compilations(step, range(20))
    assert count <= 3
    assert all(torch.equal(a.mask, step(e).mask) for e, a in enumerate(found))
    found, count = compilations(step, range(2, 20), dynamic=True)
    assert count == 1


@pytest.mark.parametrize("function", MASKS)
def test_changing_seeds_compile_once(function):
    def step(seed):
        return function(2, (4, 5), 0.5, seed=seed, epoch=2)

    seeds = [3, 7, -5, 2**63 - 1, -(2**63), 12345678901234567, *range(20, 32)]
    found, count = compilations(step, seeds)
    assert count <= 2
    assert all(torch.equal(a.mask, step(s).mask) for s, a in zip(seeds, found, strict=True))


def test_seeds_beyond_signed_numbers_compile():
    def step(seed):
        return sk.random_mask(2, (4, 5), 0.5, seed=seed)

    found, _ = compilations(step, [2**63, 2**64 - 1])
    assert torch.equal(found[0].mask, step(-(2**63)).mask)
    assert torch.equal(found[1].mask, step(-1).mask)


@pytest.mark.parametrize("name", ["random_mask", "block_mask", "box_mask"])
def test_mask_ops_stay_out_of_cuda_graphs(name):
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.simmim_kernels, name).default.tags


@pytest.mark.parametrize("function", MASKS)
def test_no_seed_while_a_graph_is_captured(function, monkeypatch):
    monkeypatch.setattr(_seed.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(_seed.torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="seed is None while a CUDA graph is captured"):
        function(2, (4, 4), 0.5)
    function(2, (4, 4), 0.5, seed=1)


class Recorder(TorchFunctionMode):
    """Records copies of tensors to a GPU in place of making them."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("to", "pin_memory", "cuda"):
            self.calls.append((name, args[1:], kwargs or {}))
            return args[0]
        return function(*args, **(kwargs or {}))


def test_ids_are_copied_to_a_gpu_without_waiting():
    ids = torch.arange(4)
    with Recorder() as recorder:
        sample_ids(ids, "cuda:0")
    assert recorder.calls == [
        ("pin_memory", (), {}),
        ("to", (torch.device("cuda:0"),), {"non_blocking": True}),
    ]


@pytest.mark.parametrize("count", [None, 3])
def test_index_lists_of_a_mask_of_ones_own(count):
    made = sk.random_mask(4, (2, 3), 0.5, seed=1)
    found = sk.PatchMask.from_mask(made.mask, count)
    assert all(torch.equal(a, b) for a, b in zip(found, made, strict=True))
    assert [part.dtype for part in found] == [torch.bool, torch.int32, torch.int32]


def test_from_mask_compiles_where_the_count_is_known():
    mask = sk.random_mask(4, (2, 3), 0.5, seed=1).mask
    compiled = torch.compile(
        lambda m: sk.PatchMask.from_mask(m, 3), backend="aot_eager", fullgraph=True
    )
    for a, b in zip(compiled(mask), sk.PatchMask.from_mask(mask), strict=True):
        assert torch.equal(a, b)


def test_from_mask_takes_no_sample():
    assert sk.PatchMask.from_mask(torch.zeros(0, 2, 3, dtype=torch.bool), 2).masked.shape == (0, 2)


@pytest.mark.parametrize(
    ("mask", "count", "error", "words"),
    [
        (torch.eye(2).bool()[None], 1, ValueError, r"\[2\] masked units"),
        (torch.eye(2).bool()[None], 5, ValueError, "count is 5; allowed: 0 to 4"),
        (torch.tensor([[[True, False]], [[True, True]]]), None, ValueError, r"\[1, 2\] masked"),
        (torch.eye(2).bool(), None, ValueError, "mask has shape"),
        (torch.eye(2)[None], None, TypeError, "must be a bool tensor, got torch.float32"),
        ([[True]], None, TypeError, "must be a bool tensor, got list"),
    ],
)
def test_from_mask_names_what_is_wrong(mask, count, error, words):
    with pytest.raises(error, match=words):
        sk.PatchMask.from_mask(mask, count)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inverse_block_mask_is_the_complement(backend):
    ids = torch.tensor([5, -7, 2**40])
    with sk.backend(backend):
        made = sk.inverse_block_mask(ids, (14, 14), 0.65, seed=3, epoch=2)
        block = sk.block_mask(ids, (14, 14), (196 - 128) / 196, seed=3, epoch=2)
    assert made.masked.shape == (3, 128)
    assert torch.equal(made.mask, ~block.mask)
    assert torch.equal(made.masked, block.visible) and torch.equal(made.visible, block.masked)


@pytest.mark.slow
def test_an_exported_program_takes_a_patch_mask_of_any_batch_and_is_saved():
    class Step(torch.nn.Module):
        def forward(self, tokens, weight, image, mask):
            return sk.masked_linear_l1(tokens, weight, None, image, mask)

    def arguments(batch):
        shapes = (batch, 4, 5), (48, 5), (batch, 3, 8, 8)
        return (*map(torch.randn, shapes), sk.random_mask(batch, (2, 2), 0.5, seed=batch))

    batch = {0: torch.export.Dim("batch", min=2)}
    exported = torch.export.export(
        Step(), arguments(6), dynamic_shapes=(batch, None, batch, sk.PatchMask(batch, batch, batch))
    )
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    program = torch.export.load(file).module(check_guards=False)
    for size in (3, 9):
        given = arguments(size)
        assert torch.equal(program(*given), Step()(*given))
