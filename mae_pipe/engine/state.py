"""What an engine has learned, in pieces that no number of ranks, ZeRO stage or precision is part of.

A rank holds float32 weights and optimizer numbers of stretches of parameters. DeepSpeed's own checkpoints keep the
flat buffers that these lie in, so only the same ranks at the same stage can read them; here every stretch is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe.engine.lars import Lars

# Kinds of pieces: of trained parameters; of buffers and frozen parameters; of the average of trained parameters.
WEIGHT, WHOLE, AVERAGE = "weight", "whole", "ema"


class Piece(NamedTuple):
    """A stretch of one kind of numbers of a parameter: ``weight``, ``exp_avg``, ...; ``start`` in the flattened one."""

    kind: str
    name: str
    start: int


Read = Callable[[Piece, int], Tensor]  # a stretch of so many numbers, flat


@dataclass
class Held:
    """What one rank holds.

    Attributes:
        pieces: flat tensors, views of the engine's own memory.
        shapes: of every tensor of the task's state dict, with the kind of its pieces.
        numbers: of all ranks alike: the optimizer's step, the loss scale.
    """

    pieces: dict[Piece, Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


class _Stretch(NamedTuple):
    name: str
    start: int  # in the parameter
    offset: int  # in the flat partition
    numel: int


def held(engine: Any, averages: list[Tensor] | None = None) -> Held:
    """What this rank holds between two steps. All ranks call it: at ZeRO 3 frozen parameters are gathered.

    Args:
        averages: ``Average.flats``.
    """
    optimizer, found = engine.optimizer, Held()
    for number, stretches in enumerate(_stretches(engine)):
        with _Present(optimizer, number) as flat:
            kinds = {WEIGHT: flat.detach(), **_moments(optimizer, flat)}
            kinds |= {AVERAGE: averages[number]} if averages else {}
            for one in stretches:
                for kind, values in kinds.items():
                    piece = values[one.offset : one.offset + one.numel]
                    found.pieces[Piece(kind, one.name, one.start)] = (
                        piece.clone() if _swapped(optimizer, number) else piece
                    )
    for name, tensor in _state(engine.module).items():
        trained = isinstance(tensor, nn.Parameter) and tensor.requires_grad
        found.shapes[name] = (WEIGHT if trained else WHOLE, list(getattr(tensor, "ds_shape", tensor.shape)))
        if not trained:
            whole = _gathered(tensor)
            if dist.get_rank() == 0:
                found.pieces[Piece(WHOLE, name, 0)] = whole.flatten()
    found.numbers = {"optimizer_step": _step_of(optimizer), "loss_scale": _loss_scale(optimizer)}
    return found


@torch.no_grad()
def put(
    engine: Any, read: Read, kinds: set[str], numbers: dict[str, Any], averages: list[Tensor] | None = None
) -> None:
    """Take over what ranks of whatever number, stage and precision held. All ranks call it.

    Args:
        read: gives a stretch; called for those that this rank holds.
        kinds: that there are to read; of the optimizer none before the first step.
        averages: ``Average.flats``, to be filled too.
    """
    optimizer = engine.optimizer
    moments = sorted(kinds - {WEIGHT, WHOLE, AVERAGE})
    for number, stretches in enumerate(_stretches(engine)):
        with _Present(optimizer, number, write=True) as flat:
            values = {WEIGHT: flat.data}
            present = moments or list(_moments(optimizer, flat))  # where a run goes back before its first step
            values |= _begin_moments(optimizer, flat, present, numbers["optimizer_step"]) if present else {}
            values |= {AVERAGE: averages[number]} if averages else {}
            for one in stretches:
                for kind, whole in values.items():
                    here = whole[one.offset : one.offset + one.numel]
                    if kind in kinds or kind == AVERAGE:  # which is never made up
                        here.copy_(read(Piece(kind, one.name, one.start), one.numel))
                    else:
                        here.zero_()
    for name, tensor in _state(engine.module).items():
        if not (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
            shape = getattr(tensor, "ds_shape", tensor.shape)
            _set(tensor, read(Piece(WHOLE, name, 0), shape.numel()).reshape(shape))
    _set_loss_scale(optimizer, numbers["loss_scale"])
    renew_working_weights(engine)


def weights(engine: Any) -> dict[str, Tensor]:
    """The task's state dict on the CPU, float32 where trained; whole on rank 0. All ranks call it."""
    mine = held(engine)
    found: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for piece, values in mine.pieces.items():
        if piece.kind == WEIGHT:
            parts.setdefault(piece.name, []).append((piece.start, values))
    for name, (kind, shape) in mine.shapes.items():
        if kind == WHOLE:
            if dist.get_rank() == 0:
                found[name] = mine.pieces[Piece(WHOLE, name, 0)].reshape(shape).cpu().clone()
            continue
        whole = torch.zeros(torch.Size(shape).numel(), device=engine.device)
        for start, values in parts.get(name, []):
            whole[start : start + values.numel()] = values.to(whole.device)
        if dist.get_world_size() > 1:
            dist.reduce(whole, 0)  # the pieces of all ranks, which never overlap
        if dist.get_rank() == 0:
            found[name] = whole.reshape(shape).cpu()
    return found


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name; tensors, not copies."""
    kept = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in kept.items() if isinstance(tensor, Tensor)}


def _stretches(engine: Any) -> Iterator[list[_Stretch]]:
    """For every flat partition of this rank, in order: which stretches of parameters lie where."""
    found: list[list[_Stretch]] = [[] for _ in flats(engine.optimizer)]
    rank, optimizer = dist.get_rank(), engine.optimizer
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_numel"):  # ZeRO 3: every parameter is cut into as many parts as there are ranks
            number, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
            numel = min(part, parameter.ds_numel - rank * part)
            if numel > 0:
                found[number].append(_Stretch(name, rank * part, int(offset), numel))
        elif (mapping := parameter._hp_mapping) is not None:  # ZeRO 1 and 2 cut a group's parameters laid end to end
            inside, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            found[mapping.param_group_index].append(_Stretch(name, inside.start, flat.start, flat.numel))
    return iter(found)


def flats(optimizer: Any) -> list[Tensor]:
    """The float32 partitions that the optimizer steps, of whichever of DeepSpeed's three wrappers."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            found: list[Tensor] = getattr(optimizer, name)
            return found
    raise TypeError(f"no float32 partitions in {type(optimizer).__name__}")


def _moments(optimizer: Any, flat: Tensor) -> dict[str, Tensor]:
    """The optimizer's numbers a weight, by kind; none before its first step."""
    state = optimizer.optimizer.state.get(flat, {})
    return {kind: v for kind, v in sorted(state.items()) if isinstance(v, Tensor) and v.shape == flat.shape}


def _begin_moments(optimizer: Any, flat: Tensor, kinds: list[str], step: float) -> dict[str, Tensor]:
    """The same, made where the optimizer has not made a step yet, and at step ``step``."""
    base = optimizer.optimizer
    state = base.state[flat]
    for kind in kinds:
        if kind not in state:
            state[kind] = torch.zeros_like(flat.data)
    group = next((g for g in base.param_groups if any(p is flat for p in g["params"])), base.param_groups[0])
    if isinstance(base, torch.optim.SGD | Lars):
        pass  # they do not count
    elif "step" in group:  # DeepSpeed's FusedAdam counts in the group
        group["step"] = int(step)
    elif type(base).__module__.startswith("torch."):
        where = flat.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=where)
    else:
        state["step"] = int(step)
    return {kind: state[kind] for kind in kinds}


def _step_of(optimizer: Any) -> float:
    """How many steps the optimizer has made, without those that were skipped."""
    base = optimizer.optimizer
    for flat in flats(optimizer):
        if "step" in (state := base.state.get(flat, {})):
            return float(state["step"])
    return float(max((group.get("step", 0) for group in base.param_groups), default=0))


def _loss_scale(optimizer: Any) -> dict[str, float]:
    """fp16's moving loss scale; without it the fields are there and do not move."""
    scaler = getattr(optimizer, "loss_scaler", None)
    return {n: v for n, v in vars(scaler).items() if isinstance(v, int | float)} if scaler is not None else {}


def _set_loss_scale(optimizer: Any, numbers: dict[str, float]) -> None:
    scaler = getattr(optimizer, "loss_scaler", None)
    if scaler is not None and getattr(scaler, "dynamic", False) and numbers.get("dynamic"):
        vars(scaler).update({name: value for name, value in numbers.items() if name in vars(scaler)})


def _swapped(optimizer: Any, number: int) -> bool:
    """Whether a flat partition lies on a disk between steps."""
    asks = getattr(optimizer, "_swappable_optimizer_subgroup", None)
    return bool(asks is not None and asks(number))


class _Present:
    """A flat partition while it is in memory."""

    def __init__(self, optimizer: Any, number: int, *, write: bool = False) -> None:
        self.optimizer, self.number, self.write = optimizer, number, write

    def __enter__(self) -> Tensor:
        if _swapped(self.optimizer, self.number):
            self.optimizer._optimizer_states_and_gradient_swap_in(self.number)
        return flats(self.optimizer)[self.number]

    def __exit__(self, *unused: object) -> None:
        if _swapped(self.optimizer, self.number):
            if self.write:
                self.optimizer._optimizer_states_and_gradient_swap_out(self.number)
            else:
                self.optimizer._release_swap_buffers(self.number)


def renew_working_weights(engine: Any) -> None:
    """Make the weights that the model computes with from the float32 ones, as a step does."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer.update_lp_params()
        return
    for number in range(len(flats(optimizer))):
        with _Present(optimizer, number):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
    if optimizer.persistent_parameters:  # small ones, which every rank keeps whole
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    optimizer.invalidate_secondary_tensor()


def _gathered(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "ds_numel"):
        return tensor.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def _set(tensor: Tensor, value: Tensor) -> None:
    """Into a buffer or a frozen parameter, unless its own number only is more precise."""
    if not hasattr(tensor, "ds_numel"):
        if not torch.equal(tensor.to(value.device, value.dtype), value):
            tensor.data.copy_(value)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
        tensor.data.copy_(value)
