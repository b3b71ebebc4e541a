"""What `torch.compile` makes of plain PyTorch on a GPU that is not there, for `gpu_model` to count.

AOTAutograd traces a step on CPU tensors into its forward and backward graph. Inductor gets each graph
with CUDA tensors that hold nothing and the properties of a GPU, and writes its program with Triton
kernels; that program runs on the CPU tensors, its kernels in the machine of tests/gpu/ptx. Each kernel
has the first of the configurations that Inductor would try.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

_compile = torch.compile

# NVIDIA H100 SXM, as its data sheet says.
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    shared_memory_per_multiprocessor=228 << 10, shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10, total_memory=80 << 30, L2_cache_size=50 << 20,
)  # fmt: skip


class _Launcher:
    """A kernel that Inductor has written, started in its first configuration."""

    def __init__(self, name: str, source: str) -> None:
        from torch._inductor.codecache import PyCodeCache

        self.kernel = getattr(PyCodeCache.load(source), name)

    def run(self, *args: Any, stream: int, **kwargs: Any) -> None:
        from torch._inductor.runtime.triton_heuristics import GridExpr, config_to_dict

        config = self.kernel.configs[0]
        function = self.kernel.fn
        names = [p.name for p in function.params if p.name not in config.kwargs]
        given = dict(zip(names, args, strict=False)) | kwargs | config.kwargs
        constants = self.kernel.triton_meta["constants"]
        given |= {name: value for name, value in constants.items() if isinstance(name, str)}
        meta = dict(zip(names, args, strict=False)) | config_to_dict(config)
        grid = GridExpr.from_meta(self.kernel.inductor_meta, config).eval_slow(meta)
        function[grid](
            **{p.name: given[p.name] for p in function.params},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


@contextlib.contextmanager
def _gpu_on_paper() -> Iterator[None]:
    """Inductor finds a GPU, and its programs take CPU tensors."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config, scheduler
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.hints import DeviceProperties

    empty = torch.empty_strided
    properties = {"get_device_properties": lambda device=None: PROPERTIES}
    device = {"current_device": lambda: 0, "device_count": lambda: 1}
    capability = {"get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor)}
    # PyTorch's own answer, which some libraries let depend on the number of devices
    absent = {"is_available": lambda: False}
    launching = {
        "synchronize": lambda *_: None,
        "set_device": lambda _: None,
        "_DeviceGuard": contextlib.nullcontext,
    }
    available = {"is_available": lambda: True, "is_bf16_supported": lambda *_, **__: True}
    changes = [
        (torch.cuda, properties | device | absent | capability | launching),
        (CudaInterface, properties | device | available),
        (CudaInterface.Worker, properties),
        (scheduler, {"has_triton": lambda: True}),
        (triton_helpers, {"set_driver_to_gpu": lambda: None}),
        (torch._C, {"_cuda_getCurrentRawStream": lambda _: 0}),
        (
            torch._C._dynamo.guards,
            {"_empty_strided_cuda": lambda size, stride, dtype: empty(size, stride, dtype=dtype)},
        ),
        (AsyncCompile, {"triton": lambda self, name, source, **_: _Launcher(name, source)}),
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(DeviceProperties.create.cache_clear)
        for owner, values in changes:
            stack.enter_context(mock.patch.multiple(owner, **values))
        # Programs for this GPU are of no use to others.
        stack.enter_context(config.patch(fx_graph_cache=False, fx_graph_remote_cache=False))
        yield


def _on_gpu(graph: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Change a graph's devices to the GPU's, and its inputs to tensors without content there."""
    from torch._guards import detect_fake_mode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = node.kwargs | {"device": torch.device("cuda", 0)}
    graph.recompile()
    mode = detect_fake_mode(inputs)
    with mode:
        fakes = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda:0")
            if isinstance(t, Tensor)
            else t
            for t in inputs
        ]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)
    return fakes


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`function` as `torch.compile` has it for a GPU; call it while Triton's launches are handed to
    the machine. `options` are those of `torch.compile`."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any], backward: bool) -> Callable:
        with _gpu_on_paper():
            fakes = _on_gpu(graph, inputs)
            program = compile_fx_inner(graph, fakes, is_backward=backward, cudagraphs=False)

        def run(given: list) -> Any:
            with _gpu_on_paper():
                return program(given)

        run._boxed_call = True
        return run

    backend = aot_autograd(
        fw_compiler=lambda graph, inputs: compile_graph(graph, inputs, False),
        bw_compiler=lambda graph, inputs: compile_graph(graph, inputs, True),
        decompositions=select_decomp_table,
        partition_fn=min_cut_rematerialization_partition,
    )
    return _compile(function, backend=backend, **options)
