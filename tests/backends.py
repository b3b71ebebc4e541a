"""Which backends the tests of the ops run, and on which device.

The GPU backends' tests start this suite again in processes of their own: with Triton's interpreter
or the host build of the CUDA sources on CPU tensors, and on CUDA tensors where there is a GPU.
"""

import importlib.util
import json
import os
from pathlib import Path

# not imported here: other settings must be made before
REPORT = Path(importlib.util.find_spec("simmim_kernels").origin).with_name("_build_info.json")
#: The wheel for every platform, which is tested on what it has; a build that failed is not such a one.
PURE = REPORT.exists() and "has no compiled parts" in json.loads(REPORT.read_text())["_cpu"]
DEVICE = os.environ.get("SIMMIM_TEST_DEVICE", "cpu")
DEFAULT = "reference" if PURE else "cpu,reference"
BACKENDS = os.environ.get("SIMMIM_TEST_BACKENDS", DEFAULT).split(",")
CASES = int(os.environ.get("SIMMIM_TEST_CASES", "0"))  # of a parametrised test; 0: all
EXAMPLES = int(os.environ.get("SIMMIM_TEST_EXAMPLES", "40"))  # of hypothesis
