"""`python -m benchmarks.gpu_step OUT`: whole training steps on a GPU, in bfloat16.

Ours, the published algorithm, transformers, and ours with the published arithmetic in it (`--plain`);
then the first three compiled; each with whichever attention path is faster for it. Writes
`OUT/gpu_step.json`, with what each kernel of one of our steps took, and `OUT/gpu_step.txt`.
`--dry-run` runs the same code on the CPU at tiny sizes; its times mean nothing and are not written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import simmim_kernels as sk
from benchmarks import peers
from benchmarks.gpu_ops import about
from benchmarks.gpu_timing import Clock, peak_bytes, spread
from benchmarks.step_models import (
    MEAN,
    STD,
    VIT_B,
    VIT_TI,
    Encoder,
    Step,
    published,
    set_attention,
    simmim,
    transformers,
)

WINDOW = 47
UNIT = 32


@dataclass(frozen=True)
class Steps:
    """A row of the step table.

    Attributes:
        encoder: its `patch` is the side of the tokens that the published mask lies on.
        published: makes the published algorithm around that encoder.
        compile: whether the contenders run under `torch.compile`.
    """

    name: str
    encoder: Encoder
    size: int
    window: int | None
    published: Callable[[Encoder, int, int | None], nn.Module]
    compile: bool = False

    def contenders(self) -> Iterator[tuple[str, Callable, bool]]:
        """Name, model, and whether it takes bytes."""
        yield "ours", simmim(plain=False), True
        yield "published", self.published, False
        if self.window is None:  # transformers has no window targets
            yield "transformers", transformers, False
        if not self.compile:
            yield "ours --plain", simmim(plain=True), True

    def batch(self, count: int, device: str) -> tuple:
        """As `step_models.batch_of`, with the published mask on this encoder's tokens."""
        images = torch.randint(
            0, 256, (count, 3, self.size, self.size), dtype=torch.uint8, device=device
        )
        mask = sk.random_mask(count, (self.size // UNIT,) * 2, 0.6, device=device)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
        tokens = mask.on_grid((self.size // self.encoder.patch,) * 2).mask.long()
        return images, mask, (images / 255 - mean) / std, tokens


class PublishedSwin(nn.Module):
    """SimMIM's arithmetic around timm's Swin: tokens masked after the patch embedding, dense head."""

    def __init__(self, swin: nn.Module, size: int, window: int | None, patch: int) -> None:
        super().__init__()
        self.swin, self.window, self.patch = swin, window, patch
        self.mask_token = nn.Parameter(torch.zeros(1, 1, swin.embed_dim))
        stride = patch * 2 ** (swin.num_layers - 1)
        self.head = nn.Conv2d(swin.num_features, 3 * stride**2, 1)
        self.shuffle = nn.PixelShuffle(stride)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        x = self.swin.patch_embed(images)
        x = peers.mask_tokens(x.flatten(1, 2), mask, self.mask_token).view(x.shape)
        x = self.swin.norm(self.swin.layers(x))
        pred = self.shuffle(self.head(x.permute(0, 3, 1, 2)))
        target = images if self.window is None else peers.normalize_targets(images, self.window)
        return peers.masked_loss(pred.float(), target, mask, self.patch, "l1")


def published_swin(
    name: str, options: dict[str, Any], encoder: Encoder, size: int, window: int | None
) -> nn.Module:
    swin = timm.create_model(name, img_size=size, num_classes=0, global_pool="", **options)
    return PublishedSwin(swin, size, window, encoder.patch)


SWIN = partial(published_swin, "swin_base_patch4_window7_224", {"window_size": 6})
SWIN_V2 = partial(published_swin, "swinv2_base_window12_192", {})
SWIN_B = Encoder("simmim_swin_base", 128, 4, 24, 4)
SWIN_V2_B = Encoder("swinv2_base_window12_192", 128, 4, 24, 4)
SWIN_T = Encoder("swin_tiny_patch4_window7_224", 96, 3, 12, 4)
TINY_SWIN = partial(published_swin, SWIN_T.name, {})
# The compiled ones last, for compiling takes a minute each.
ROWS = (
    Steps("ViT-B", VIT_B, 224, None, published),
    Steps("Swin-B, window", SWIN_B, 192, WINDOW, SWIN),
    Steps("SwinV2-B, window", SWIN_V2_B, 192, WINDOW, SWIN_V2),
    Steps("ViT-B, compiled", VIT_B, 224, None, published, compile=True),
)
TINY = (
    Steps("ViT-Ti", VIT_TI, 64, None, published),
    Steps("Swin-T, window", SWIN_T, 64, 7, TINY_SWIN),
)


def faster_attention(step: Step, batch: tuple, clock: Clock) -> str:
    """Leaves the model on the attention path whose step is the faster one."""
    taken = {}
    for fused in (False, True):
        set_attention(step.model, fused)
        step.step(batch)
        taken[fused] = min(clock(lambda: step.step(batch)) for _ in range(2))
    set_attention(step.model, fused := taken[True] <= taken[False])
    return "sdpa" if fused else "products"


def measure(
    row: Steps, count: int, device: str, rounds: int, until: float
) -> tuple[dict[str, dict[str, Any]], dict[str, float], list[str]]:
    """Each contender's times, our kernels' milliseconds, and what time did not suffice for."""
    clock, batch, results, left = Clock(device), row.batch(count, device), {}, []
    steps: dict[str, Step] = {}
    for name, make, uint8 in row.contenders():
        if time.monotonic() > until:
            left.append(f"{row.name} {name}")
            continue
        try:
            torch.manual_seed(0)
            model = make(row.encoder, row.size, row.window)
            step = Step(model, device, uint8=uint8, compile=False)
            attention = faster_attention(step, batch, clock)
            if row.compile:
                step.run = torch.compile(model, dynamic=False)
            step.step(batch)
            results[name] = {"attention": attention}
            peak = peak_bytes(lambda step=step: step.step(batch), device)
            if peak is not None:
                results[name]["peak_bytes"] = peak
            steps[name] = step
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        batch = row.batch(count, device)
        for name, step in steps.items():
            samples[name].append(clock(lambda step=step, batch=batch: step.step(batch)))
    for name, values in samples.items():
        results[name] |= spread(values)
        results[name]["images_per_second"] = count / results[name]["median"] * 1e6
    return results, kernels(steps["ours"], batch) if "ours" in steps else {}, left


def kernels(step: Step, batch: tuple, most: int = 25) -> dict[str, float]:
    """The kernels that take most of a step, in milliseconds."""
    with torch.profiler.profile() as profile:
        step.step(batch)
    spent = {e.key: e.self_device_time_total / 1e3 for e in profile.key_averages()}
    longest = sorted((key for key in spent if spent[key] > 0), key=spent.get, reverse=True)
    return {key: spent[key] for key in longest[:most]}


def table(results: list[dict], left: list[str]) -> str:
    lines = [
        f"{'step':<32}{'contender':<22}{'images/s':>10}{'MiB':>9}  attention  against published"
    ]
    for row in results:
        published_speed = row["times"].get("published", {}).get("images_per_second")
        for name, times in row["times"].items():
            if "error" in times:
                lines.append(f"{row['step']:<32}{name:<22}{times['error'][:60]}")
                continue
            speed, peak = times["images_per_second"], times.get("peak_bytes")
            memory = f"{'-':>9}" if peak is None else f"{peak / 2**20:>9.0f}"
            against = f"{speed / published_speed:.2f}" if published_speed else "-"
            lines.append(
                f"{row['step']:<32}{name:<22}{speed:>10.0f}{memory}  {times['attention']:<9}  {against}"
            )
    lines += [f"steps not measured, out of time: {', '.join(left)}"] if left else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=130, help="build no contender after this")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    device, rows, count = ("cpu", TINY, 2) if arguments.dry_run else ("cuda", ROWS, 256)
    arguments.out.mkdir(parents=True, exist_ok=True)
    until, results, left = time.monotonic() + arguments.seconds, [], []
    for row in rows:
        times, spent, missed = measure(row, count, device, arguments.rounds, until)
        left += missed
        name = f"{row.name}, {row.size} px, x{count}"
        results.append({"step": name, "window": row.window, "times": times, "kernels": spent})
        if device == "cuda":
            torch.cuda.empty_cache()
            record = about(device) | {"rows": results, "not measured": left}
            (arguments.out / "gpu_step.json").write_text(json.dumps(record, indent=1) + "\n")
            (arguments.out / "gpu_step.txt").write_text(table(results, left))
    print(table(results, left))
    if arguments.dry_run:
        broken = [(r["step"], n, t) for r in results for n, t in r["times"].items() if "error" in t]
        assert not broken, broken
        print(f"dry run: {len(results)} rows ran; their times mean nothing")


if __name__ == "__main__":
    main()
