"""Values of another width than keys, as multi-head latent attention has them: zeros make one width, for any kernel.

A channel of zeros adds nothing to q · k, and makes a channel of the output that is cut off again.
"""

from collections.abc import Iterable

from torch import Tensor
from torch.nn.functional import pad


def differ(k: Tensor, v: Tensor) -> bool:
    """Whether keys and values [B, H, Sk, ..] differ in their last axis alone."""
    return k.dim() == v.dim() == 4 and k.shape[:3] == v.shape[:3] and k.shape[3] != v.shape[3]


def one_width(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All with the widest one's last axis, zeros behind."""
    width = max(each.shape[-1] for each in tensors)
    return tuple(each if each.shape[-1] == width else pad(each, (0, width - each.shape[-1])) for each in tensors)


def as_wide(made: Iterable[Tensor], likes: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Each cut to the last axis of its like."""
    return tuple(each[..., : like.shape[-1]].contiguous() for each, like in zip(made, likes, strict=True))
