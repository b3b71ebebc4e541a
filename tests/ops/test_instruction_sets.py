"""Every instruction set in the wheel gives the same results: one process each runs all calls.

A build in place holds the instruction set of its machine alone; the wheel holds all of them.
"""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.ops.digests import digest
from tests.repo.wheel import ROOT, build, call, shared_folder

pytestmark = pytest.mark.slow
ISAS = ("baseline", "avx2", "avx512")
# The masks against the NumPy oracle, AvgDist against its definition, and a hash of everything else.
CODE = """
import json
import numpy as np
import torch
import simmim_kernels as sk
from simmim_kernels.backends.cpu import kernels, unavailable
if kernels is None:
    print("unavailable", unavailable)
    raise SystemExit
from tests.ops.digests import digest
from tests.ops.test_avg_dist import pair_by_pair
from tests.ops.test_mask_workers import EXPECTED, SAMPLES, STRATEGIES
for name, expected in EXPECTED.items():
    made = STRATEGIES[name](SAMPLES)
    np.testing.assert_array_equal(made.mask, [expected(i) for i in range(SAMPLES)])
    for sample in range(SAMPLES):
        flat = expected(sample).ravel()
        np.testing.assert_array_equal(made.masked[sample], np.flatnonzero(flat))
        np.testing.assert_array_equal(made.visible[sample], np.flatnonzero(~flat))
mask = torch.rand(3, 4, 5) < 0.6
np.testing.assert_allclose(sk.avg_dist(mask, 3), pair_by_pair(mask, 3), rtol=1e-13)
assert "site" in sk.__file__, sk.__file__
print(json.dumps({"isa": kernels.isa, **digest()}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = shared_folder(tmp_path_factory)
    build(folder)
    return folder / "site"


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_on_every_instruction_set(site, isa):
    paths = os.pathsep.join(map(str, (site, ROOT)))
    settings = {"SIMMIM_KERNELS_ISA": isa, "SIMMIM_KERNELS_BACKEND": "cpu", "PYTHONPATH": paths}
    ran = call(sys.executable, "-c", CODE, **settings)
    assert ran.returncode == 0, ran.stderr
    if ran.stdout.startswith("unavailable"):
        assert "is not available on this processor" in ran.stdout
        pytest.skip(f"{isa} does not run here")
    assert json.loads(ran.stdout) == {"isa": isa, **digest()}


@pytest.mark.parametrize("isa", ["sse9", "baseline,avx2"])
def test_an_unknown_instruction_set_is_named(site, isa):
    script = "import simmim_kernels.backends.cpu as c; print(c.kernels, c.unavailable)"
    ran = call(sys.executable, "-c", script, PYTHONPATH=str(site), SIMMIM_KERNELS_ISA=isa)
    assert f"SIMMIM_KERNELS_ISA={isa} is not available" in ran.stdout
    assert "avx512, avx2, baseline; use one of these" in ran.stdout
