"""The architectures that kernels ship for, and what each of them has room for. Loads no Triton."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """An architecture as Triton names it, and its limits.

    backend, chip, warp   the arguments of Triton's `GPUTarget`
    shared                bytes of shared memory (AMD: LDS) that one program may have
    tall_dot              the instruction that a 16-bit dot of 64 rows or more must become, if the chip has such
    """

    arch: str
    backend: str
    chip: int | str
    warp: int
    shared: int
    tall_dot: str | None = None


TARGETS = {
    target.arch: target
    for target in (
        Target("sm80", "cuda", 80, 32, 166_912),
        Target("sm90", "cuda", 90, 32, 232_448, tall_dot="wgmma"),
        Target("gfx942", "hip", "gfx942", 64, 65_536, tall_dot="mfma"),
    )
}
