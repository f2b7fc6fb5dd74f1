"""Training in one process or in several, through torch's own engines: DDP, and FSDP2 on request.

Each process goes through the same steps with its own rows; each ends with the same weights; the first one writes.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from torch.fx import GraphModule
from torch.nn import Parameter

from surgery.anatomy.graphs import attribute
from surgery.diagnostics import SurgeryError


def count() -> int:
    """Processes that train together: those of torch's default group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def place() -> int:
    """This process's number; 0 writes."""
    return distributed.get_rank() if count() > 1 else 0


def settle(value: Any) -> None:
    """Make the floats that an object holds those of the first process: measured ones may differ in their last bit, and
    processes that decide by them would part."""
    names = [name for name, held in vars(value).items() if isinstance(held, float)]
    if count() == 1 or not names:
        return
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    told = torch.tensor([getattr(value, name) for name in names], dtype=torch.float64, device=device)
    distributed.broadcast(told, 0)
    for name, held in zip(names, told.tolist(), strict=True):
        setattr(value, name, held)


@contextmanager
def joined() -> Iterator[bool]:
    """In the group that `torchrun` started this process for, if it did; yields whether this is the first of them.

    Uses NCCL for what is on a GPU, else Gloo. A group that is there already is left as it is.
    """
    alone = int(os.environ.get("WORLD_SIZE", 1)) < 2 or not distributed.is_available() or distributed.is_initialized()
    if alone:
        yield place() == 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield place() == 0
        with suppress(RuntimeError):  # of a process that has failed, which waits for nobody
            distributed.barrier()  # the first holds the store that the others read: it leaves with them
    finally:
        distributed.destroy_process_group()


@dataclass(eq=False)
class Processes:
    """`called` is what a step calls; `trained` the parameters it changes, which FSDP has put other tensors for.
    `apart` are those FSDP leaves whole, each with its own copy in every process."""

    module: GraphModule
    called: Callable[..., Any]
    trained: dict[str, Parameter]
    world: int = 1
    apart: tuple[str, ...] = field(default=())

    @classmethod
    def around(cls, module: GraphModule, trained: Mapping[str, Parameter], shard: str) -> "Processes":
        """Raises SurgeryError (S814) for `shard=fsdp` in a process of its own."""
        world = count()
        if shard == "fsdp" and world == 1:
            raise SurgeryError(
                "shard=fsdp shares a model out among processes, and this is the only one",
                code="S814",
                help="start it with `torchrun --nproc-per-node=N -m surgery apply …`",
            )
        if world == 1:
            return cls(module, module, dict(trained))
        return cls._sharded(module, trained, world) if shard == "fsdp" else cls._copied(module, trained, world)

    @classmethod
    def _copied(cls, module: GraphModule, trained: Mapping[str, Parameter], world: int) -> "Processes":
        """Weights are made equal here: DDP itself would write into tensors that are shared with the caller's model."""
        for parameter in trained.values():
            distributed.broadcast(parameter.data, 0)
        with warnings.catch_warnings():
            # Its successor syncs buffers once, and those of a process (its noise) are its own.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped = torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, init_sync=False)
        return cls(module, wrapped, dict(trained), world)

    @classmethod
    def _sharded(cls, module: GraphModule, trained: Mapping[str, Parameter], world: int) -> "Processes":
        from torch.distributed.fsdp import fully_shard

        for parameter in trained.values():
            distributed.broadcast(parameter.data, 0)
        scalars = {parameter for parameter in module.parameters() if not parameter.dim()}
        fully_shard(module, ignored_params=scalars)
        apart = tuple(name for name, parameter in trained.items() if parameter in scalars)
        return cls(module, module, {name: attribute(module, name) for name in trained}, world, apart)

    @contextmanager
    def passing(self, *, last: bool) -> Iterator[None]:
        """Around one forward and backward pass: gradients are put together in the last pass of a step."""
        if isinstance(self.called, torch.nn.parallel.DistributedDataParallel):
            with nullcontext() if last else self.called.no_sync():
                yield
            return
        if self.world == 1:
            yield
            return
        self.module.set_requires_gradient_sync(last)
        with warnings.catch_warnings():
            # Nothing here writes into outputs in place, which is what it warns of.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
            yield

    def gather_gradients(self) -> None:
        """The gradients of what FSDP leaves whole; it does all others, and DDP does all."""
        for name in self.apart:
            gradient = self.trained[name].grad
            distributed.all_reduce(gradient)
            gradient /= self.world

    def mean(self, values: list[float]) -> list[float]:
        """Each number's mean over all processes, the same in each."""
        if self.world == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64, device=self._device())
        distributed.all_reduce(told)
        return (told / self.world).tolist()

    def agree(self, step: int, identity: Mapping[str, Any]) -> None:
        """Wait for all. Raises SurgeryError (S812) in each process where they would not train the same from the same
        step: they would wait for one another for ever."""
        text = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        for value, what in ((float(step), "checkpoint"), (float(int(text[:4], 16)), "model, data or settings")):
            mean, squares = self.mean([value, value**2])
            if squares - mean**2 > 0.1:
                raise SurgeryError(
                    f"the processes do not see the same {what}",
                    code="S812",
                    help="start each with the same command, and keep checkpoints on a file system that they share",
                )

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of a parameter's form (a weight, a moment), all of it, in every process."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def part(self, tensor: Tensor, like: Parameter) -> Tensor:
        """This process's part of a whole tensor, as `like` is held."""
        if not hasattr(like, "device_mesh"):
            return tensor.to(like.device)
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)

    def _device(self) -> torch.device:
        return next(iter(self.trained.values())).device
