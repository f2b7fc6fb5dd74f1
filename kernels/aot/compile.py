"""Compile one kernel for a chip that is not here, and read what it uses. Loads Triton; never under its interpreter."""

import contextlib
import io
import time
from types import ModuleType

import triton
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.aot.resources import Resources, count_instructions, read_amdgcn, read_ptxas, slow_dots
from surgery.kernels.aot.targets import TARGETS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction


def kernel_source(module: ModuleType, compilation: Compilation) -> ASTSource:
    """What Triton compiles. Raises TypeError where names do not fit the kernel's arguments."""
    kernel = getattr(module, compilation.function, None)
    if not isinstance(kernel, JITFunction):
        raise TypeError(f"{compilation.kernel} is no @triton.jit function")
    names = kernel.arg_names
    constants = {name for name, kind in compilation.signature.items() if kind == "constexpr"}
    _same("signature", set(compilation.signature), set(names))
    _same("constexprs", set(compilation.constexprs), constants)
    if wrong := [name for name in compilation.aligned if name not in names or name in constants]:
        raise TypeError(f"aligned names {', '.join(wrong)}: no run-time argument of {compilation.kernel}")
    signature = {name: compilation.signature[name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in compilation.aligned}
    return ASTSource(kernel, signature, dict(compilation.constexprs), attributes)


def _same(what: str, said: set[str], wanted: set[str]) -> None:
    if said != wanted:
        missing, extra = ", ".join(sorted(wanted - said)), ", ".join(sorted(said - wanted))
        raise TypeError(f"{what} lacks [{missing}] and has [{extra}] that the kernel does not")


def options(compilation: Compilation) -> dict:
    """Launch options. Fused multiply-add is asked for by name: its default differs between versions of Triton."""
    launch = {"num_warps": compilation.num_warps, "num_stages": compilation.num_stages, "enable_fp_fusion": True}
    return {**launch, **compilation.options}


def measure(source: ASTSource, compilation: Compilation, arch: str) -> Resources:
    """Compile and read. What the compiler refuses comes back as `error`, not as an exception."""
    target, started = TARGETS[arch], time.perf_counter()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            chip = GPUTarget(target.backend, target.chip, target.warp)
            compiled = triton.compile(source, target=chip, options=options(compilation))
        found = _read_cuda(compiled, printed.getvalue()) if target.backend == "cuda" else _read_hip(compiled)
    except Exception as error:  # any refusal is a result: the caller compiles hundreds
        found = {"error": _first_lines(error)}
    return Resources(seconds=round(time.perf_counter() - started, 2), **found)


def _read_cuda(compiled, log: str) -> dict:
    registers, spilled, stack = read_ptxas(log)
    return {
        "registers": registers,
        "spill_bytes": spilled,
        "stack_bytes": stack,
        "shared": compiled.metadata.shared,
        "instructions": count_instructions(compiled.asm["ptx"]),
        "slow_dots": slow_dots(compiled.asm["ttgir"]),
    }


def _read_hip(compiled) -> dict:
    text = compiled.asm["amdgcn"]
    found = read_amdgcn(text)
    used = count_instructions(text)
    generic = () if used["mfma"] else slow_dots(compiled.asm["ttgir"])
    shared = max(found["shared"], compiled.metadata.shared)
    return {**found, "shared": shared, "instructions": used, "slow_dots": generic}


def _first_lines(error: Exception, lines: int = 8) -> str:
    text = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    return "\n".join([f"{type(error).__name__}: {text[0] if text else 'no message'}", *text[1:lines]])
