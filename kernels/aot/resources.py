"""What compiled machine code uses, read from the texts that compilers leave: ptxas's log, PTX, amdgcn. No Triton."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

INSTRUCTIONS = {
    "wgmma": re.compile(r"\bwgmma\.mma_async\b"),
    "mma": re.compile(r"\bmma\.sync\b"),
    "mfma": re.compile(r"\bv_mfma_"),
    "cp.async": re.compile(r"\bcp\.async\.(?:ca|cg|bulk)\b"),
}
PTXAS_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
PTXAS_REGISTERS = re.compile(r"Used (\d+) registers")
AMD_FIELD = re.compile(r"^\s*\.(\w+):\s+(\d+)\s*$", re.MULTILINE)
DOT = re.compile(r"\btt\.dot\b[^\n]*?:\s*tensor<((?:\d+x)+)(\w+)[,>]")
TALL = 64
HALVES = ("f16", "bf16")


@dataclass(frozen=True)
class Resources:
    """What one compilation uses of the chip.

    registers      a thread's (NVIDIA), or a lane's vector registers, accumulators among them (AMD)
    spill_bytes    bytes a thread spills to local memory: the larger of stores and loads
    stack_bytes    bytes of local memory a thread has, spills and all else
    scalar_spills  scalar registers kept in lanes of vector registers (AMD); they touch no memory
    shared         bytes of shared memory (LDS) a program
    instructions   how often the matrix and copy instructions of `INSTRUCTIONS` occur
    slow_dots      shapes of 16-bit dots of 64 rows or more that Triton left to `mma.sync`, as "128x64xbf16"
    error          why there is no machine code
    """

    registers: int = 0
    spill_bytes: int = 0
    stack_bytes: int = 0
    scalar_spills: int = 0
    shared: int = 0
    instructions: Mapping[str, int] = field(default_factory=dict)
    slow_dots: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> "Resources":
        return cls(**{**read, "slow_dots": tuple(read["slow_dots"])})


def count_instructions(text: str) -> dict[str, int]:
    """How often each instruction of `INSTRUCTIONS` occurs in PTX or amdgcn."""
    return {name: len(pattern.findall(text)) for name, pattern in INSTRUCTIONS.items()}


def slow_dots(ttgir: str) -> tuple[str, ...]:
    """The tall 16-bit dots that stayed generic in Triton's GPU dialect; those for `wgmma` are `warp_group_dot` there."""
    found = [(shape.rstrip("x"), dtype) for shape, dtype in DOT.findall(ttgir)]
    rows = {(shape, dtype): int(shape.split("x")[-2]) for shape, dtype in found}
    return tuple(sorted(f"{shape}x{dtype}" for (shape, dtype), n in rows.items() if n >= TALL and dtype in HALVES))


def read_ptxas(log: str) -> tuple[int, int, int]:
    """Registers, spill bytes and stack bytes from `ptxas -v`. Raises ValueError where the log does not say.

    A log that cannot be read must never pass for one without spills.
    """
    frames, registers = PTXAS_FRAME.findall(log), PTXAS_REGISTERS.findall(log)
    if not frames or not registers:
        raise ValueError(f"ptxas did not say what the kernel uses: {log.strip()[:300] or 'an empty log'}")
    spills = [max(int(stores), int(loads)) for _, stores, loads in frames]
    return max(map(int, registers)), max(spills), max(int(stack) for stack, _, _ in frames)


def read_amdgcn(text: str) -> dict[str, int]:
    """Registers, spill bytes, stack bytes, scalar spills, static LDS from the metadata that ends the assembly."""
    said = {name: int(value) for name, value in AMD_FIELD.findall(text)}
    asked = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    missing = [name for name in asked if name not in said]
    if missing:
        raise ValueError(f"the amdgcn text does not say {', '.join(missing)}")
    return {
        "registers": said["vgpr_count"],
        "spill_bytes": 4 * said["vgpr_spill_count"],
        "stack_bytes": said["private_segment_fixed_size"],
        "scalar_spills": said["sgpr_spill_count"],
        "shared": said.get("group_segment_fixed_size", 0),
    }
