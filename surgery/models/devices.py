"""The device that a person names, as `--device cuda:1`."""

import torch

from surgery.diagnostics import SurgeryError


def named_device(name: str) -> torch.device:
    """The device of that name. Errors: S215 for one that is not here, or is none."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _absent(name) from error
    if device.type == "meta":
        raise _absent(name)
    return device


def _absent(name: str) -> SurgeryError:
    known = ", ".join(f"`{each}`" for each in devices())
    return SurgeryError(
        f"there is no device `{name}` here",
        code="S215",
        help=f"there is {known}; `surgery doctor` tells what torch sees",
    )


def devices() -> tuple[str, ...]:
    """What there is to compute on."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if accelerator else 0
    return ("cpu", *(f"{accelerator.type}:{index}" for index in range(count)))
