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
HEADER = Path(__file__).parents[2] / "csrc/common/loss_spec.h"


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("kLossKinds", _loss_spec.KINDS),
        ("kOrders", _loss_spec.ORDERS),
        ("kReductions", _loss_spec.REDUCTIONS),
        ("kNorms", _loss_spec.NORMS),
    ],
)
def test_the_tables_of_both_languages_agree(table, names):
    found = re.search(rf"{table}\[\] = {{(.*?)}}", HEADER.read_text())[1]
    assert tuple(re.findall(r'"(\w+)"', found)) == names


@pytest.mark.parametrize("field", ["kind", "order", "reduction", "norm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_refuses_an_unknown_name(backend, field):
    pred, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 2, 2, dtype=torch.bool)
    run = sk.backends._served("masked_loss", "masked_loss", "cpu", backend)
    for name in ("huge", "", "L1"):
        with pytest.raises(ValueError, match=f"{field} is '{name}'; allowed: '"):
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
    for path in (HEADER.parents[2] / "cpu/kernels.h", HEADER.parents[2] / "cuda/kernels.h"):
        for name, given in re.findall(r"\w+ (\w+)\(([^)]*)\);", path.read_text()):
            assert given.count(",") < 12, f"{path.name}: {name}"
