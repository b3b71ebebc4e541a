"""Hashes of what every op computes, to show that a change of the code changed no bit.

    python -m tests.result_hashes store FILE      # with the old code
    python -m tests.result_hashes compare FILE    # with the new code, on the same machine

Inputs come from integers, so that no generator changes them. The CPU kernels serve, or, with
`SIMMIM_TEST_CUDA_MODULE`, the CUDA sources compiled for the host.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from tests.ops.loss_cases import LOSSES, numbers_of

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SETTINGS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
Case = tuple[str, list[Tensor]]


def chosen(cases: Iterable, every: int) -> Iterator:
    """Each `every`-th case, and a different one in each group."""
    yield from islice(cases, every // 2, None, every)


def pattern(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Numbers in [-2, 2), bytes in [0, 256)."""
    count = torch.Size(shape).numel()
    numbers = (torch.arange(count) + 977 * seed) * 2654435761 % 4096
    if dtype == torch.uint8:
        return (numbers // 16).to(dtype).view(shape)
    return (numbers.double() / 1024 - 2).to(dtype).view(shape)


def strided(x: Tensor, how: str) -> Tensor:
    """The same numbers with other strides."""
    if how == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if how == "sliced":
        wide = x.new_zeros(*x.shape[:-1], x.shape[-1] + 3)
        wide[..., 1:-2] = x
        return wide[..., 1:-2]
    if how == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "expanded":
        return x[:1].expand(x.shape)
    return x


def with_gradients(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    if not leaves:
        return [out]
    grad = pattern(*out.shape, dtype=out.dtype, seed=3) if out.dim() else torch.ones_like(out)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def masks(every: int) -> Iterator[Case]:
    ids = torch.tensor([5, 0, 1 << 40, 17, 3])
    for grid, ratio in chosen(
        product(((6, 6), (3, 7), (14, 14), (1, 1), (33, 40)), (0.0, 0.1, 0.6, 1.0)), every
    ):
        options = {"seed": 11, "epoch": 2}
        for name in ("random_mask", "block_mask", "box_mask"):
            yield f"{name} {grid} {ratio}", list(getattr(sk, name)(ids, grid, ratio, **options))
        yield f"box_mask center {grid} {ratio}", list(sk.box_mask(ids, grid, ratio, center=True))
        mask = sk.random_mask(ids, grid, min(ratio, 0.9), **options)
        yield f"avg_dist {grid} {ratio}", [torch.tensor(sk.avg_dist(mask, 8))]


def tokens(every: int) -> Iterator[Case]:
    mask = sk.random_mask(7, (3, 5), 0.6, seed=3)
    for dtype, token_dtype, how, prefix, pos, flat in chosen(
        product(
            FLOATS,
            (torch.float32, None),
            ("", "sliced", "expanded"),
            (0, 2),
            ("", "grid", "all"),
            (True, False),
        ),
        every,
    ):
        if not flat and prefix:
            continue
        shape = (7, prefix + 60, 24) if flat else (7, 6, 10, 24)
        x = strided(pattern(*shape, dtype=dtype), how).detach().requires_grad_()
        token = leaf(pattern(24, dtype=token_dtype or dtype, seed=5))
        rows = {"": 0, "grid": 60, "all": 60 + prefix}[pos]
        embed = leaf(pattern(1, rows, 24, dtype=dtype, seed=6)) if pos else None
        out = sk.mask_tokens(x, mask, token, pos_embed=embed, prefix_tokens=prefix)
        leaves = (x, token, *((embed,) if pos else ()))
        yield (
            f"mask_tokens {dtype} {token_dtype} {how} {prefix} {pos} {flat}",
            with_gradients(out, *leaves),
        )
    for dtype in FLOATS if every == 1 else ():  # streamed stores, many samples
        x, token = leaf(pattern(40, 197, 768, dtype=dtype)), leaf(pattern(768))
        out = sk.mask_tokens(x, sk.random_mask(40, (7, 7), 0.6, seed=1), token, prefix_tokens=1)
        yield f"mask_tokens large {dtype}", with_gradients(out, x, token)


def images(every: int) -> Iterator[Case]:
    for dtype, channels, how in chosen(
        product((*FLOATS, torch.uint8), (1, 3), ("", "channels_last", "sliced", "transposed")),
        every,
    ):
        image = strided(pattern(3, channels, 24, 36, dtype=dtype), how)
        stats = SETTINGS if dtype == torch.uint8 and channels == 3 else {}
        name = f"{dtype} {channels} {how}"
        for window in (1, 5, 47):
            yield (
                f"normalize_targets {name} {window}",
                [sk.normalize_targets(image, window, **stats)],
            )
        for patch in (4, 12):
            yield f"normalize_patches {name} {patch}", [sk.normalize_patches(image, patch, **stats)]
        for grid, out in product(((2, 3), (12, 18)), (None, torch.float32, torch.bfloat16)):
            if dtype == torch.uint8 and out is None:
                continue
            mask = sk.random_mask(3, grid, 0.5, seed=2)
            fill = leaf(pattern(channels, seed=4))
            source = image if dtype == torch.uint8 else image.detach().requires_grad_()
            result = sk.mask_image(source, mask, fill, dtype=out, **stats)
            leaves = (fill,) if dtype == torch.uint8 else (source, fill)
            yield f"mask_image {name} {grid} {out}", with_gradients(result, *leaves)
        yield (
            f"mask_image number {name}",
            [sk.mask_image(image, mask, 0.25, dtype=torch.float32, **stats)],
        )


def embeddings(every: int) -> Iterator[Case]:
    for dtype, channels, how, grid in chosen(
        product((*FLOATS, torch.uint8), (1, 3), ("", "channels_last", "sliced"), ((2, 3), (6, 9))),
        every,
    ):
        image = strided(pattern(3, channels, 24, 36, dtype=dtype), how)
        stats = SETTINGS if dtype == torch.uint8 and channels == 3 else {}
        kind = torch.float32 if dtype == torch.uint8 else dtype
        weight = leaf(pattern(10, channels, 4, 4, dtype=kind, seed=7))
        bias, token = leaf(pattern(10, dtype=kind, seed=8)), leaf(pattern(10, dtype=kind, seed=9))
        pos = leaf(pattern(54, 10, dtype=kind, seed=10))
        source = image if dtype == torch.uint8 else image.detach().requires_grad_()
        mask = sk.random_mask(3, grid, 0.5, seed=2)
        out = sk.masked_patch_embed(source, weight, bias, mask, token, pos_embed=pos, **stats)
        leaves = (weight, bias, token, pos, *(() if dtype == torch.uint8 else (source,)))
        yield f"masked_patch_embed {dtype} {channels} {how} {grid}", with_gradients(out, *leaves)


def rows_of(image: Tensor, patch: int, layout: str, mask: sk.PatchMask) -> Tensor:
    if layout in ("image", "image_last", "image_sliced"):
        return strided(
            image, {"image": "", "image_last": "channels_last", "image_sliced": "sliced"}[layout]
        )
    small = F.pixel_unshuffle(image, patch)
    if layout in ("map", "map_last"):
        return strided(small, "channels_last" if layout == "map_last" else "")
    rows = small.flatten(2).transpose(1, 2).contiguous()
    if layout == "tokens_sliced":
        return strided(rows, "sliced")
    if layout == "units":
        listed = mask.masked.long()[..., None].expand(-1, -1, rows.shape[2])
        return torch.gather(rows, 1, listed)
    return rows


LAYOUTS = (
    "image",
    "image_last",
    "image_sliced",
    "map",
    "map_last",
    "cyx",
    "yxc",
    "tokens_sliced",
    "units",
)


def losses(every: int) -> Iterator[Case]:
    mask = sk.random_mask(3, (3, 2), 0.5, seed=4)
    for layout, dtype, target_dtype, kind in chosen(
        product(LAYOUTS, FLOATS, (None, torch.uint8), LOSSES), every
    ):
        image, target = (
            pattern(3, 3, 48, 32, dtype=dtype),
            pattern(3, 3, 48, 32, dtype=target_dtype or dtype, seed=2),
        )
        stats = SETTINGS if target_dtype else {}
        order = "yxc" if layout == "yxc" else "cyx"
        for patch, reduction, norm in (
            (16, "mean", None), (4, "none", None), (8, "sum", None),
            (16, "mean", sk.WindowNorm(5)), (8, "mean", sk.PatchNorm()),
        ):  # fmt: skip
            fine = mask.on_grid((48 // patch, 32 // patch))
            given = fine if layout == "units" else mask
            pred = leaf(rows_of(image, patch, layout, fine))
            options = {"order": order, "target_norm": norm, "reduction": reduction}
            loss = getattr(sk, f"masked_{kind}")(
                pred, target, given, **options, **stats, **numbers_of(kind, 0.7)
            )
            name = f"masked_{kind} {layout} {dtype} {target_dtype} {patch} {reduction} {norm}"
            yield name, with_gradients(loss, pred)
    fine = sk.random_mask(3, (12, 8), 0.5, seed=4)  # units smaller than tokens
    for layout, dtype in chosen(product(LAYOUTS[:-1], FLOATS), every):
        image, target = (
            pattern(3, 3, 48, 32, dtype=dtype),
            pattern(3, 3, 48, 32, dtype=dtype, seed=2),
        )
        pred = leaf(rows_of(image, 16, layout, fine))
        loss = sk.masked_l1(pred, strided(target, "channels_last"), fine.mask, eps=0.0)
        yield f"masked_l1 fine {layout} {dtype}", with_gradients(loss, pred)
    for dtype in FLOATS if every == 1 else ():
        pred, target = (
            leaf(pattern(6, 196, 768, dtype=dtype)),
            pattern(6, 3, 224, 224, dtype=torch.uint8),
        )
        given = sk.random_mask(6, (7, 7), 0.6, seed=1)
        for norm in (None, sk.WindowNorm(47), sk.PatchNorm()):
            yield (
                f"masked_l1 large {dtype} {norm}",
                with_gradients(
                    sk.masked_l1(pred, target, given, target_norm=norm, **SETTINGS), pred
                ),
            )


def heads(every: int) -> Iterator[Case]:
    mask = sk.random_mask(3, (3, 2), 0.5, seed=4)
    for dtype, kind, given, norm in chosen(
        product(FLOATS, LOSSES, (mask, mask.mask), (None, sk.WindowNorm(5), sk.PatchNorm())), every
    ):
        x = leaf(pattern(3, 24, 20, dtype=dtype))
        weight, bias = (
            leaf(pattern(192, 20, dtype=dtype, seed=5)),
            leaf(pattern(192, dtype=dtype, seed=6)),
        )
        target = pattern(3, 3, 48, 32, seed=2)
        loss = getattr(sk, f"masked_linear_{kind}")(
            x, weight, bias, target, given, target_norm=norm, **numbers_of(kind, 0.7)
        )
        name = f"masked_linear_{kind} {dtype} {type(given).__name__} {norm}"
        yield name, with_gradients(loss, x, weight, bias)


def cases(every: int) -> Iterator[Case]:
    for group in (masks, tokens, images, embeddings, losses, heads):
        yield from group(every)


def digest(results: list[Tensor]) -> str:
    total = hashlib.sha256()
    for result in results:
        result = result.detach().contiguous()
        total.update(f"{result.dtype} {tuple(result.shape)}".encode())
        total.update(result.view(-1).view(torch.uint8).numpy().tobytes() if result.numel() else b"")
    return total.hexdigest()[:16]


def hashes(threads: tuple[int, ...], every: int) -> dict[str, str]:
    found = {}
    for count in threads:
        torch.set_num_threads(count)
        for name, results in cases(every):
            key = f"{name} threads={count}"
            assert key not in found, key
            found[key] = digest(results)
    return found


def load_emulated() -> None:
    """Serve with the CUDA sources that were compiled for the host."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "simmim_kernels._cuda", os.environ["SIMMIM_TEST_CUDA_MODULE"]
    )
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    for order in sk.backends.ORDER:
        sk.backends.ORDER[order] = ("cuda", "cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("store", "compare"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    threads, every = (1, 2, 3), 1
    if "SIMMIM_TEST_CUDA_MODULE" in os.environ:
        load_emulated()
        threads, every = (1,), 7
    found = hashes(threads, every)
    if arguments.action == "store":
        arguments.file.write_text(json.dumps(found, indent=0))
        print(f"{len(found)} results")
        return 0
    stored = json.loads(arguments.file.read_text())
    changed = [name for name in stored if found.get(name, stored[name]) != stored[name]]
    print(
        f"{len(stored)} results, {len(changed)} changed, {len(stored.keys() - found.keys())} missing"
    )
    print(*changed[:40], sep="\n")
    return int(bool(changed) or bool(stored.keys() - found.keys()))


if __name__ == "__main__":
    sys.exit(main())
