"""Runs of several processes started by torchrun or srun: Lightning Fabric, and what it does not cover."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from simmim.errors import LostProcessError, UserError, require
from simmim.launchers import (
    describe_as_torchrun,
    is_started_by_srun,
    is_started_with_others,
)
from simmim.training.mixed_precision import MixedPrecision
from simmim.training.sharding import shard

fabric_package = require("lightning_fabric")
environments = require("lightning_fabric.plugins.environments")
strategies = require("lightning_fabric.strategies")


def chosen_device(device: str) -> str:
    """``"cpu"`` or ``"cuda"``, also for ``"auto"``; raises ``UserError`` where there is no GPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return device


def launch(device: str, precision: str, sharded: bool) -> fabric_package.Fabric:
    """Fabric for this process and, under torchrun or srun, for those that were started with it.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: Fabric's name, for instance ``"bf16-mixed"``.
        sharded: spread the model over the processes (FSDP) instead of holding it in each (DDP).

    Raises:
        UserError: no such device, more processes than GPUs, or nothing to spread over.
    """
    by_srun, together = is_started_by_srun(), is_started_with_others()
    here, world = 1, 1
    if together:
        describe_as_torchrun()
        here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    device = chosen_device(device)
    if device == "cuda" and here > torch.cuda.device_count():
        advice = (
            "give --gpus-per-node, not --gpus-per-task" if by_srun else "lower --nproc-per-node"
        )
        raise UserError(
            f"{'srun' if by_srun else 'torchrun'} started {here} processes here, but PyTorch sees "
            f"{torch.cuda.device_count()} GPUs: {advice}, or use --device cpu"
        )
    if sharded and world == 1:
        raise UserError(
            "--shard spreads the model over several processes: start them with "
            "torchrun --nproc-per-node N -m simmim pretrain ..."
        )
    if "MASTER_ADDR" not in os.environ and by_srun:
        nodes = os.environ["SLURM_STEP_NODELIST"]
        os.environ["MASTER_ADDR"] = environments.SLURMEnvironment.resolve_root_node_address(nodes)
    # named, or Fabric finds others by their variables: Slurm's in jobs whose one process trains alone
    started = (
        environments.TorchElasticEnvironment if together else environments.LightningEnvironment
    )
    plugins = [started()]
    if precision.endswith("-mixed"):
        plugins.append(MixedPrecision(precision, device))
    fabric = fabric_package.Fabric(
        accelerator=device,
        devices=here,
        num_nodes=world // here,
        precision=precision if len(plugins) == 1 else None,
        plugins=plugins,
        strategy=_strategy(world, sharded),
    )
    fabric.launch()
    return fabric


def _strategy(world: int, sharded: bool) -> object:
    if world == 1:
        return "auto"
    if sharded:
        return strategies.ModelParallelStrategy(
            shard, data_parallel_size=world, tensor_parallel_size=1
        )
    # the only buffers are constants
    return strategies.DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


class Peers:
    """Communication between a run's ``world`` processes, this one number ``rank``, other than
    gradients; always on the CPU."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._group = None
        if world > 1 and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers, in every process.

        Waits for the others, so that none goes on alone when one was told to stop; and where one
        has died this is the call that notices, since a GPU would wait for it in silence.
        """
        if self.world == 1:
            return number
        value = torch.tensor(number)
        distributed.all_reduce(value, distributed.ReduceOp.MAX, group=self._group)
        return int(value)

    def union(self, own: dict[str, str]) -> dict[str, str]:
        """All processes' entries together."""
        if self.world == 1:
            return own
        parts: list[dict[str, str]] = [{}] * self.world
        distributed.all_gather_object(parts, own, group=self._group)
        return {key: value for part in parts for key, value in part.items()}

    @contextmanager
    def watched(
        self, what_remains: Callable[[], str], say: Callable[[str], None]
    ) -> Iterator[None]:
        """Turn the failure of talking to a dead process into a line that helps.

        Raises:
            LostProcessError: another process is gone; ``say`` was told, before torchrun's SIGTERM
                can silence this process too.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not _is_lost_connection(error):
                raise
            text = (
                f"process {self.rank} of {self.world} lost another one, whose own last words say "
                f"why; {what_remains()}"
            )
            say(text)
            raise LostProcessError(text) from error

    def leave(self) -> None:
        """End the connection in order; PyTorch warns about processes that just go."""
        if self.world > 1:
            distributed.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    # gloo's failures have no type of their own
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
