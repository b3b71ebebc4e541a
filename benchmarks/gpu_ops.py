"""`python -m benchmarks.gpu_ops OUT`: every op on a GPU beside eager PyTorch, torch.compile and copy.

Of `window_loss` and `masked_linear` the column "eager" is our own ops one after another, which they
must beat. Writes `OUT/gpu_ops.json` and, where matplotlib is installed, `OUT/gpu_ops.png`, and prints a table.
`--dry-run` runs the same code on the CPU at tiny sizes to show that it works; its times mean nothing
and are not written.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.gpu_timing import time_contenders
from benchmarks.shapes import RATIO, SWIN_B, VIT_B, Shape
from simmim_kernels import backends

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = Shape("tiny", 3, 32, 16, 16, 2, 64)
NUMBERS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def step(function: Callable, differentiable: tuple[int, ...]) -> Callable:
    """`function` and the gradients of its arguments at the `differentiable` places."""

    def run(*arguments: Any) -> Any:
        out = function(*arguments)
        wanted = [arguments[i] for i in differentiable]
        ones = torch.ones((), dtype=out.dtype, device=out.device).expand(out.shape)
        return out, *torch.autograd.grad(out, wanted, ones)

    return run


def ours(room: str, function: Callable, device: str) -> dict[str, Callable]:
    """`function` on each backend that can serve it."""

    def on(name: str) -> Callable:
        def run(*arguments: Any) -> Any:
            with sk.backend(name):
                return function(*arguments)

        return run

    names = ("triton", "cuda") if device == "cuda" else ("reference", "cpu", "triton")
    return {name: on(name) for name in names if backends.why_not(name, room, device) is None}


def peers_of(function: Callable, device: str) -> dict[str, Callable]:
    contenders = {"eager": function}
    if device == "cuda":
        contenders["compiled"] = torch.compile(function, fullgraph=True, dynamic=False)
    return contenders


def rows(device: str, shapes: tuple[Shape, ...], batches: tuple[int, ...]):
    """Each row: names, bytes that must move, contenders, and what makes their inputs."""
    options = {"device": device}
    for batch in batches:
        for shape in shapes:
            image = (batch, shape.channels, shape.size, shape.size)
            pixels = batch * shape.channels * shape.size**2
            label = f"{shape.name} x{batch}"

            def make_mask(shape=shape, batch=batch):
                return sk.random_mask(batch, shape.grid, RATIO, device=device)

            def draw(shape=shape, batch=batch):
                ids = torch.arange(batch, **options)
                return (ids, shape.grid)

            yield (
                "random_mask", label, 0,
                ours("random_mask", lambda ids, grid: sk.random_mask(ids, grid, RATIO, seed=1), device),
                draw,
            )  # fmt: skip
            for dtype, name in NUMBERS.items():
                yield from _tensor_rows(
                    device, shape, batch, image, pixels, f"{label} {name}", dtype, make_mask
                )


def _tensor_rows(device, shape, batch, image, pixels, label, dtype, make_mask):
    options, size = {"device": device}, dtype.itemsize
    patch = shape.stride

    def tokens():
        mask = make_mask()
        fine = mask.on_grid((shape.tokens,) * 2).mask.long()
        x = torch.randn(batch, shape.tokens**2, shape.width, **options).to(dtype)
        token = torch.randn(1, 1, shape.width, **options).to(dtype)
        return x.requires_grad_(), mask, token.requires_grad_(), fine

    moved = batch * shape.tokens**2 * shape.width * size
    yield (
        "mask_tokens", label, int(moved * (4 - shape.masked)),
        ours("mask_tokens", step(lambda x, m, t, _: sk.mask_tokens(x, m, t), (0, 2)), device)
        | peers_of(step(lambda x, _, t, f: peers.mask_tokens(x, f, t), (0, 2)), device),
        tokens,
    )  # fmt: skip

    def predictions():
        length = (shape.size // patch) ** 2
        pred = torch.randn(batch, length, shape.channels * patch * patch, **options).to(dtype)
        mask = make_mask()
        return pred.requires_grad_(), torch.randn(image, **options), mask, mask.mask.long()

    for kind, loss in (
        ("l1", sk.masked_l1),
        ("mse", sk.masked_mse),
        ("smooth_l1", sk.masked_smooth_l1),
    ):

        def published(pred, target, _, coarse, kind=kind):
            full = peers.tokens_to_image(pred, shape.channels, patch)
            return peers.masked_loss(full, target, coarse, shape.unit, kind)

        yield (
            f"masked_{kind}", label, int(pixels * (shape.masked * (size + 4) + size)),
            ours("masked_loss", step(lambda p, t, m, _, f=loss: f(p, t, m), (0,)), device)
            | peers_of(step(published, (0,)), device),
            predictions,
        )  # fmt: skip

    def photographs():
        return torch.randint(0, 256, image, dtype=torch.uint8, **options), make_mask()

    mean, std = (torch.tensor(values, **options) for values in (MEAN, STD))
    yield (
        "mask_image", label, int(pixels * (1 - shape.masked + size)),
        ours("mask_image", lambda i, m: sk.mask_image(i, m, mean=MEAN, std=STD, dtype=dtype), device)
        | peers_of(lambda i, m: peers.mask_image(i, m.mask, shape.unit, mean, std).to(dtype), device),
        photographs,
    )  # fmt: skip
    yield (
        "normalize_targets", label, 2 * pixels * size,
        ours("normalize_targets", lambda i: sk.normalize_targets(i, 47), device)
        | peers_of(lambda i: peers.normalize_targets(i, 47), device),
        lambda: (torch.rand(image, **options).to(dtype),),
    )  # fmt: skip

    def fused(pred, target, mask, _):
        return sk.masked_l1(pred, target, mask, target_norm=sk.WindowNorm(47))

    def separate(pred, target, mask, _):
        return sk.masked_l1(pred, sk.normalize_targets(target, 47), mask)

    yield (
        "window_loss", label, int(pixels * (4 + shape.masked * size + size)),
        ours("masked_loss", step(fused, (0,)), device) | {"eager": step(separate, (0,))},
        predictions,
    )  # fmt: skip

    def head():
        x = torch.randn(batch, (shape.size // patch) ** 2, shape.width, **options).to(dtype)
        weight = torch.randn(shape.channels * patch * patch, shape.width, **options).to(dtype)
        target = torch.randn(image, **options)
        return x.requires_grad_(), weight.requires_grad_(), target, make_mask()

    def dense(x, weight, target, mask):
        return sk.masked_l1(torch.nn.functional.linear(x, weight), target, mask)

    yield (
        "masked_linear", label, 0,
        ours("masked_linear", step(lambda x, w, t, m: sk.masked_linear_l1(x, w, None, t, m), (0, 1)), device)
        | {"eager": step(dense, (0, 1))},
        head,
    )  # fmt: skip


def copy_of(moved: int, device: str) -> tuple[dict[str, Callable], Callable]:
    half = max(moved // 8, 1)
    return {"copy": lambda source: source.clone()}, lambda: (torch.rand(half, device=device),)


def about(device: str) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }
    if device == "cuda":
        import triton

        facts |= {"gpu": torch.cuda.get_device_name(), "triton": triton.__version__}
        facts["cuda"] = torch.version.cuda
    return facts


def table(results: list[dict]) -> str:
    names = ("eager", "compiled", "triton", "cuda", "copy")
    lines = [f"{'op':<18}{'shape':<24}" + "".join(f"{n:>11}" for n in names) + "   microseconds"]
    for row in results:
        cells = (row["times"].get(name, {}).get("median") for name in names)
        text = "".join(f"{'-':>11}" if c is None else f"{c:>11.1f}" for c in cells)
        lines.append(f"{row['op']:<18}{row['shape']:<24}{text}")
    return "\n".join(lines) + "\n"


def plot(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in results if "median" in row["times"].get("copy", {})]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(shown)))
    for place, name in enumerate(("eager", "compiled", "triton", "cuda")):
        timed = [(i, r) for i, r in enumerate(shown) if "median" in r["times"].get(name, {})]
        axes.barh(
            [i + 0.2 * place for i, _ in timed],
            [100 * r["times"]["copy"]["median"] / r["times"][name]["median"] for _, r in timed],
            height=0.2,
            label=name,
        )
    axes.set_yticks(range(len(shown)), [f"{r['op']} {r['shape']}" for r in shown], fontsize=7)
    axes.set_xlabel("per cent of the speed of a copy of the bytes that must move")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=150, help="stop beginning rows after this")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    shapes, batches = ((TINY,), (2,)) if arguments.dry_run else ((VIT_B, SWIN_B), (256, 128))
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin, results, left = time.monotonic(), [], []
    for op, label, moved, contenders, make in rows(device, shapes, batches):
        if time.monotonic() - begin > arguments.seconds:
            left.append(f"{op} {label}")
            continue
        times = time_contenders(contenders, make, device, arguments.rounds)
        if moved:
            times |= time_contenders(*copy_of(moved, device), device, arguments.rounds)
        results.append({"op": op, "shape": label, "bytes": moved, "times": times})
        if not arguments.dry_run:
            record = about(device) | {"rows": results, "not measured": left}
            (arguments.out / "gpu_ops.json").write_text(json.dumps(record, indent=1) + "\n")
            (arguments.out / "gpu_ops.txt").write_text(table(results))
    if arguments.dry_run:
        broken = [
            (r["op"], n, t["error"]) for r in results for n, t in r["times"].items() if "error" in t
        ]
        assert not broken, broken
        print(f"dry run: {len(results)} rows ran; their times mean nothing")
        return
    record = about(device) | {"rows": results, "not measured": left}
    (arguments.out / "gpu_ops.json").write_text(json.dumps(record, indent=1) + "\n")
    try:
        plot(results, arguments.out / "gpu_ops.png")
    except ImportError:
        print("matplotlib is missing: no plot")
    print(table(results))
    if left:
        print(f"not measured, out of time: {', '.join(left)}")


if __name__ == "__main__":
    main()
