"""Triton's interpreter with a GPU's bfloat16: rounded to nearest even, subnormal numbers kept.

Its own conversion (Triton 3.9) cuts the lower half of a float32 off, so a kernel that is right on
every device would miss the last bit here, in a quarter to half of all values.
"""

import numpy
import torch
import triton.language as tl
from triton.runtime import interpreter


def round_bfloat16():
    """Puts torch's conversions in the place of the interpreter's."""
    builder = interpreter.InterpreterBuilder
    convert = builder.cast_impl

    def cast(self, handle, target):
        types = handle.dtype.scalar, target.scalar
        if types == (tl.float32, tl.bfloat16):
            rounded = _tensor(handle.data).view(torch.float32).bfloat16().view(torch.int16)
            return interpreter.TensorHandle(rounded.numpy().view(numpy.uint16), types[1])
        if types == (tl.bfloat16, tl.float32):
            widened = _tensor(handle.data.view(numpy.int16)).view(torch.bfloat16).float()
            return interpreter.TensorHandle(widened.numpy(), types[1])
        return convert(self, handle, target)

    builder.cast_impl = cast


def _tensor(array):
    return torch.from_numpy(numpy.array(array, copy=True))
