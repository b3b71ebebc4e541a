"""Training steps of transformers' own models, in bfloat16, with `apply_kernels` and without."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import simmim_kernels as sk
from benchmarks.harness import Row

SIZE, BATCH = 192, 16
MODELS = {
    "ViT": {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "encoder_stride": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "Swin": {"embed_dim": 48, "depths": [2, 2, 2, 2], "window_size": 6, "encoder_stride": 32},
}
# name -> (with kernels, PatchMask, compiled); compiled, ours leaves the reconstruction out
CONTENDERS = {
    "ours": (True, False, False),
    "ours, PatchMask": (True, True, False),
    "ours, compiled": (True, True, True),
    "eager": (False, False, False),
    "compiled": (False, False, True),
}


def build(family: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{family}Config")(image_size=SIZE, **MODELS[family])
    return getattr(transformers, f"{family}ForMaskedImageModeling")(config).train()


class Step:
    """One update of a copy of `model` by the contender called `name`."""

    def __init__(self, model: nn.Module, name: str) -> None:
        kernels, self.units, compile = CONTENDERS[name]
        self.model = copy.deepcopy(model)
        if kernels:
            sk.apply_kernels(self.model, reconstruction=not compile)
        self.run = torch.compile(self.model, dynamic=False) if compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def __call__(self, images: Tensor, mask: sk.PatchMask, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.run(images, bool_masked_pos=mask if self.units else tokens).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def batch_of(model: nn.Module) -> tuple[Tensor, sk.PatchMask, Tensor]:
    side = SIZE // model.config.patch_size
    mask = sk.random_mask(BATCH, (SIZE // 32, SIZE // 32), 0.6)
    return torch.randn(BATCH, 3, SIZE, SIZE), mask, mask.on_grid((side, side)).mask.flatten(1)


def peak_memory(family: str, name: str) -> float:
    """Growth of the process's peak memory over three steps, in MiB, in a process of its own."""
    code = (
        "import json; from benchmarks import bench_transformers as b;"
        f"m = b.build({family!r}); s = b.Step(m, {name!r}); x = b.batch_of(m);"
        "status = lambda: open('/proc/self/status').read();"
        "peak = lambda: int(status().split('VmHWM:')[1].split()[0]) / 1024;"
        "before = peak(); [s(*x) for _ in range(3)]; print(json.dumps(peak() - before))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", MODELS)
def test_transformers(compare, request, family):
    torch.manual_seed(0)
    model = build(family)
    row = Row("transformers", f"{family}, {SIZE} px, batch {BATCH}, bfloat16", "training step", 0)
    contenders = {}
    for name, (_, _, compile) in CONTENDERS.items():
        if compile and family == "Swin":
            continue  # Inductor takes minutes for its windows
        row.notes[name] = {} if compile else {"peak_mib": peak_memory(family, name)}
        contenders[name] = Step(model, name)
    rounds = min(9, request.config.getoption("--rounds"))
    compare(row, contenders, lambda: batch_of(model), tolerance=None, rounds=rounds)
    for name, timing in row.timings.items():
        row.notes[name]["images_per_second"] = BATCH / timing.median * 1e6
