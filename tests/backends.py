"""Which backends the tests of the ops run, and on which device.

The GPU backends' tests start this suite again in processes of their own: with Triton's interpreter
or the host build of the CUDA sources on CPU tensors, and on CUDA tensors where there is a GPU.
"""

import os

DEVICE = os.environ.get("SIMMIM_TEST_DEVICE", "cpu")
BACKENDS = os.environ.get("SIMMIM_TEST_BACKENDS", "cpu,reference").split(",")
CASES = int(os.environ.get("SIMMIM_TEST_CASES", "0"))  # of a parametrised test; 0: all
EXAMPLES = int(os.environ.get("SIMMIM_TEST_EXAMPLES", "40"))  # of hypothesis
