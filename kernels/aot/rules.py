"""What every shipped compilation must hold, a function a rule: None, or what is wrong."""

from collections.abc import Callable
from dataclasses import dataclass

from surgery.kernels.aot.resources import Resources
from surgery.kernels.aot.targets import TARGETS, Target


@dataclass(frozen=True)
class Entry:
    """A compilation as the harness lists it: where it is found again, what it is called, what it promises.

    file, index   the `index`-th of what `file` ships for `arch`
    key           the hash of all that its machine code depends on
    fault         why it cannot even be asked for (a file that does not load, arguments that do not fit)
    """

    file: str
    index: int
    arch: str
    kernel: str
    name: str
    key: str = ""
    expects: tuple[str, ...] = ()
    aligned: int = 0
    fault: str | None = None

    @property
    def title(self) -> str:
        return f"{self.arch} {self.kernel} [{self.name}]"


Rule = Callable[[Target, Entry, Resources], str | None]


def is_aligned(target: Target, entry: Entry, used: Resources) -> str | None:
    """Without divisible pointers Triton loads element by element."""
    return None if entry.aligned else "names no `aligned` argument: loads would not be vectors"


def does_not_spill(target: Target, entry: Entry, used: Resources) -> str | None:
    return f"spills {used.spill_bytes} bytes (fewer rows, more warps)" if used.spill_bytes else None


def stays_in_registers(target: Target, entry: Entry, used: Resources) -> str | None:
    if used.spill_bytes or not used.stack_bytes:
        return None
    return f"keeps {used.stack_bytes} bytes a thread in local memory"


def fits_shared_memory(target: Target, entry: Entry, used: Resources) -> str | None:
    if used.shared <= target.shared:
        return None
    return (
        f"takes {used.shared} bytes of shared memory, {target.arch} has {target.shared} (fewer stages, smaller blocks)"
    )


def has_expected_instructions(target: Target, entry: Entry, used: Resources) -> str | None:
    missing = [name for name in entry.expects if not used.instructions.get(name)]
    return f"has no {', '.join(missing)}" if missing else None


def tall_dots_are_fast(target: Target, entry: Entry, used: Resources) -> str | None:
    """Seen in the code, whether the kernel's author promised it or not."""
    if target.tall_dot is None or not used.slow_dots:
        return None
    return f"leaves dots of {', '.join(used.slow_dots)} without {target.tall_dot}"


RULES: tuple[Rule, ...] = (
    is_aligned,
    does_not_spill,
    stays_in_registers,
    fits_shared_memory,
    has_expected_instructions,
    tall_dots_are_fast,
)


def violations(entry: Entry, used: Resources) -> list[str]:
    """All that is wrong with a compilation; what did not compile has that one fault."""
    if entry.fault or used.error:
        return [entry.fault or f"does not compile: {used.error}"]
    target = TARGETS[entry.arch]
    return [said for rule in RULES if (said := rule(target, entry, used))]


def doubled(entries: list[Entry]) -> list[tuple[Entry, str]]:
    """Compilations that cannot be told apart: one name for different machine code."""
    seen: dict[str, str] = {}
    twice = []
    for entry in entries:
        if seen.setdefault(entry.title, entry.key) != entry.key:
            twice.append((entry, "has the name of another compilation: give it a label of its own"))
    return twice
