"""What is counted without a GPU: the order of the backends follows it, and what Inductor writes for a
GPU that is not there computes what eager PyTorch does."""

from pathlib import Path

import pytest
import torch
from torch._inductor.codecache import PyCodeCache

from benchmarks import counted, gpu_model, gpu_model_peer, peers, report
from simmim_kernels import backends
from tests.gpu.ptx.kernel import FALLING, RISING, Order
from tests.gpu.ptx.launches import serving, why_not


def test_the_order_of_backends_follows_what_was_counted():
    """CUDA is tried before Triton, and `simmim_kernels.info` says why."""
    order = backends.ORDER["cuda"]
    assert order.index("cuda") < order.index("triton")
    compared = set()
    for content in counted.load(report.COUNTED):
        for row in content["rows"]:
            spent = {
                name: sum(launch["instructions"] for launch in launches)
                for name, launches in row["counted"].items()
            }
            if {"cuda", "triton"} <= spent.keys():
                compared.add(row["op"])
                assert spent["cuda"] < spent["triton"], (row["op"], row["shape"])
    folder = Path(backends.__file__).parent
    cuda, triton = ({p.stem for p in (folder / n).glob("[a-z]*.py")} for n in ("cuda", "triton"))
    assert cuda & triton <= compared


COUNTS = ("instructions", "sectors", "least_sectors")
#: instructions a number of an op's cheapest backend that must not be exceeded, by row
INSTRUCTIONS = {
    ("masked_loss", "l1, tokens, vit-b x2 bfloat16"): 16,
    ("masked_loss", "mse, 108 numbers a token, vit-b x2 bfloat16"): 25,
    ("mask_tokens", "vit-b x2 bfloat16"): 16,
    ("mask_tokens", "vit-b x2 float32"): 16,
    ("mask_image", "vit-b x2 uint8 to bfloat16"): 10,
    ("mask_image", "vit-b x2 uint8 to float32"): 10,
    ("normalize_patches", "vit-b x2 bfloat16"): 25,
    ("normalize_patches", "vit-b x2 float32"): 25,
    ("normalize_targets", "vit-b x2 bfloat16"): 70,
    ("normalize_targets", "vit-b x2 float32"): 70,
}


def test_counted_rows_stay_within_their_goals():
    """Launches of a loss, sectors over the least that would do, instructions a number."""
    seen = set()
    for content in counted.load(report.COUNTED):
        for row in content["rows"]:
            ours = [row["counted"][name] for name in ("cuda", "triton") if name in row["counted"]]
            totals = [
                {what: sum(launch[what] for launch in launches) for what in COUNTS}
                for launches in ours
            ]
            most = INSTRUCTIONS.get((row["op"], row["shape"]))
            if most is not None:
                seen.add((row["op"], row["shape"]))
                assert min(t["instructions"] for t in totals) <= most * row["numbers"], row["shape"]
            if row["op"] in ("masked_loss", "window_loss"):
                assert min(map(len, ours)) <= 3
            if row["op"] != "random_mask":  # it streams nothing
                for t in totals:
                    assert t["sectors"] <= 1.1 * t["least_sectors"], (row["op"], row["shape"])
    assert seen == INSTRUCTIONS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_inductor_has_compiled_gives_the_loss_and_the_gradient(dtype, monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning sets it
    if (reason := why_not("triton")) is not None:
        pytest.skip(reason)
    mask = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]]])
    target = torch.randn(2, 3, 32, 32)

    def step(pred):
        return peers.masked_loss(peers.tokens_to_image(pred, 8), target, mask, 16, "l1")

    pred = torch.randn(2, 16, 192, dtype=dtype, requires_grad=True)
    expected = step(pred)
    (slope,) = torch.autograd.grad(expected, pred)
    compiled = gpu_model_peer.compiled(step, fullgraph=True, dynamic=False)
    results = []
    for order in (Order(RISING), Order(FALLING), Order(20, switches=True)):
        with serving("triton", "sm_90", order=order) as run:
            found = compiled(pred)
            (found_slope,) = torch.autograd.grad(found, pred)
        # A kernel's threads all read the number that its first one replaces in place, without a
        # barrier between. What the others make of it is dropped, so that no order changes a result.
        before, after = "race, write after read", "race, read after write"
        assert before in {f.kind for f in run.faults} <= {before, after}
        for fault in run.faults:
            assert fault.kind == after or "tl.store(in_out_ptr" in _line_of(fault.place)
        assert run.counts["launches"] >= 2
        results.append((found, found_slope))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found_slope, slope)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def _line_of(place):
    """The line of a program of Inductor's that a fault names."""
    name, line = place.split(":")
    (file,) = {m.__file__ for m in PyCodeCache.modules if Path(m.__file__).name == name}
    return Path(file).read_text().splitlines()[int(line) - 1]


@pytest.mark.slow
def test_a_row_holds_what_inductor_needs():
    if why_not("triton") is not None or why_not("cuda") is not None:
        pytest.skip("nvcc or Triton is not installed")
    row = next(row for row in gpu_model.counted_rows() if row.op == "mask_image")
    stored = gpu_model.count_row(row)
    assert stored["peer"] == "compiled" and "refused" not in stored
    ours, theirs = (
        sum(launch["instructions"] for launch in stored["counted"][name])
        for name in ("triton", "inductor")
    )
    assert 0 < ours < theirs


@pytest.mark.slow
def test_a_row_says_why_inductor_has_nothing(monkeypatch):
    if why_not("triton") is not None or why_not("cuda") is not None:
        pytest.skip("nvcc or Triton is not installed")
    row = next(row for row in gpu_model.counted_rows() if row.op == "mask_image")

    def refuse(*_, **__):
        raise NotImplementedError("no such thing\nand more")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", refuse)
    stored = gpu_model.count_row(row)
    assert "no such thing" in stored["refused"] and "\n" not in stored["refused"]
    assert set(stored["counted"]) == {"triton"}
