"""The options of a masked loss: one table of names a language, and nothing unknown computes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import simmim_kernels as sk
from simmim_kernels.backends import _loss_spec
from simmim_kernels.backends._loss_spec import LossSpec
from tests.backends import BACKENDS

SPEC = LossSpec("l1", 1.0, "cyx", 1e-5, "mean")
CSRC = Path(__file__).parents[2] / "csrc"


NAMES = {
    "kind": _loss_spec.KINDS,
    "order": _loss_spec.ORDERS,
    "reduction": _loss_spec.REDUCTIONS,
    "norm": _loss_spec.NORMS,
}


def test_every_loss_has_its_branch_in_triton():
    """Seen here at once; the kernel itself refuses a loss that it lacks, in the slow tests."""
    source = Path(sk.__file__).parent / "backends/triton/_loss_pass.py"
    assert {*re.findall(r'KIND == "(\w+)"', source.read_text())} == {*_loss_spec.KINDS}


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_knows_the_same_names_and_refuses_others(backend, field):
    """The message lists the names that the backend knows: of compiled ones, those it was built with."""
    pred, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 2, 2, dtype=torch.bool)
    run = sk.backends._served("masked_loss", "masked_loss", "cpu", backend)
    for name in ("huge", "", "L1"):
        message = f"{field} is {name!r}; allowed: {', '.join(map(repr, NAMES[field]))}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            run(pred, pred, mask, None, None, None, SPEC._replace(**{field: name}), False)


def test_the_registered_schema_has_the_fields():
    schema = str(torch.ops.simmim_kernels.masked_loss.default._schema)
    for name in LossSpec._fields:
        assert f" {name}," in schema
    with pytest.raises(ValueError, match="kind is 'huge'"):
        pred, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 2, 2, dtype=torch.bool)
        spec = SPEC._replace(kind="huge")
        torch.ops.simmim_kernels.masked_loss(pred, pred, mask, None, None, None, *spec, False)


def test_no_function_has_more_than_twelve_parameters():
    root = Path(sk.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            if any("triton" in ast.unparse(one) for one in node.decorator_list):
                continue
            given = node.args
            count = len(given.args) + len(given.posonlyargs) + len(given.kwonlyargs)
            assert count <= 12, f"{path.relative_to(root)}: {node.name}"
    for path in (CSRC / "cpu/kernels.h", CSRC / "cuda/kernels.h"):
        for name, given in re.findall(r"\w+ (\w+)\(([^)]*)\);", path.read_text()):
            assert given.count(",") < 12, f"{path.name}: {name}"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_factor_multiplies_loss_and_gradient(backend, dtype, reduction):
    pred, target = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(2, 3, 4, 4)
    mask = sk.random_mask(2, (2, 2), 0.5, seed=0).mask
    spec = SPEC._replace(kind="smooth_l1", beta=0.5, reduction=reduction)
    op, arguments = torch.ops.simmim_kernels.masked_loss, (pred, target, mask, None, None, None)
    with sk.backend(backend):
        loss, grad, scale = op(*arguments, *spec, True)
        times = op(*arguments, *spec._replace(factor=0.25), True)
        with pytest.raises(ValueError, match="factor is 0"):
            op(*arguments, *spec._replace(factor=0.0), True)
    assert torch.equal(times[0], loss / 4) and torch.equal(times[2], scale / 4)
    assert torch.equal(times[1], grad if scale.numel() else grad / 4)
