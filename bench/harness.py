"""What every benchmark shares: options, interleaved measuring, a line per case, a document with a plot.

A benchmark yields scenes. A scene is a set of callables that do the same job in different ways, measured in turn; its
cases name which of them is ours and which are the peers, so that many ratios come from one set of rounds.
"""

import argparse
import datetime
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.interleave import Timing, interleaved, speedup


@dataclass(frozen=True)
class Case:
    """One row: `ours` and each of `peers` name a candidate of the scene; `facts` go into the document as they are.

    `name` stands alone; `label` is what a table under the scene's title needs of it. `flops` and `bytes` are the least
    that ours has to do and to move, for the roofline, at the dtype that `facts["dtype"]` names; `build_ms` is what
    building the index cost, which `ours` does not include.
    """

    name: str
    label: str
    ours: str
    peers: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    flops: float | None = None
    bytes: float | None = None
    build_ms: float | None = None


@dataclass(frozen=True)
class Scene:
    """Candidates measured in turn, and the cases read from them. `warmup` are calls of each before the first round."""

    title: str
    candidates: Mapping[str, Callable[[], Any]]
    cases: tuple[Case, ...]
    warmup: int = 3


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    quick: bool
    json: bool
    out: Path | None
    threads: int
    clock: str
    runs: int
    device: str
    only: str = ""
    peers: tuple[str, ...] = ()

    def wants(self, peer: str) -> bool:
        """Whether a peer is to be measured: every one, unless `--peers` names some."""
        return not self.peers or peer in self.peers


def options(description: str, argv: list[str] | None = None) -> Options:
    """Read the options every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few cases and few rounds")
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON document, and a plot beside it")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 0: all (default 1: ratios hold still)")
    parser.add_argument("--clock", choices=("auto", "wall", "cpu"), default="auto", help="auto: cpu with one thread")
    parser.add_argument("--runs", type=int, help="rounds per scene")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="", metavar="TEXT", help="only scenes with this text in a case's name")
    parser.add_argument("--peers", default="", metavar="NAMES", help="only these peers, by commas (default: all)")
    given = parser.parse_args(argv)
    clock = given.clock if given.clock != "auto" else "cpu" if given.threads == 1 else "wall"
    if clock == "cpu" and given.threads != 1:
        parser.error("--clock cpu counts one thread only: use it with --threads 1")
    runs = given.runs or (9 if given.quick else 21)
    peers = tuple(name.strip() for name in given.peers.split(",") if name.strip())
    return Options(given.quick, given.json, given.out, given.threads, clock, runs, given.device, given.only, peers)


def measure(scene: Scene, asked: Options) -> list[dict[str, Any]]:
    """The rows of a scene: {case, ours_ms, peers_ms, ratio} and, for the document, quartiles, roofline and facts."""
    measured = {name: call for name, call in scene.candidates.items() if measurable(name, scene, asked)}
    times = interleaved(measured, runs=asked.runs, warmup=scene.warmup, budget_s=40, device=asked.device, clock=asked.clock)
    return [row(case, times) | roofline(case, times[case.ours], asked) for case in scene.cases]


def measurable(name: str, scene: Scene, asked: Options) -> bool:
    """Ours always, a peer if it is wanted."""
    return any(name == case.ours for case in scene.cases) or asked.wants(name)


def roofline(case: Case, ours: Timing, asked: Options) -> dict[str, Any]:
    """{build_ms, roofline} as far as the case says what it does; `share` is of the time that the ceilings allow."""
    found: dict[str, Any] = {} if case.build_ms is None else {"build_ms": round(case.build_ms, 3)}
    if case.flops is None or case.bytes is None:
        return found
    from bench.roofline import ceiling

    dtype = str(case.facts.get("dtype", "fp32"))
    dtype = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(dtype, dtype)
    seconds, bound = ceiling(dtype, asked.device, asked.clock).seconds(case.flops, case.bytes)
    share = round(seconds * 1e3 / ours.median_ms, 3)
    return found | {"roofline": {"flops": case.flops, "bytes": case.bytes, "bound": bound, "share": share}}


def row(case: Case, times: Mapping[str, Timing]) -> dict[str, Any]:
    ours = times[case.ours]
    ratios = {peer: speedup(times[peer], ours) for peer in case.peers if peer in times}
    return {
        "case": case.name,
        "ours_ms": round(ours.median_ms, 4),
        "peers_ms": {peer: round(times[peer].median_ms, 4) for peer in ratios},
        "ratio": {peer: round(ratio.median, 3) for peer, ratio in ratios.items()},
        "quartiles": {peer: [round(ratio.low, 3), round(ratio.high, 3)] for peer, ratio in ratios.items()},
        "runs": ours.runs,
        **case.facts,
    }


def main(name: str, scenes: Callable[[Options], Iterable[Scene]], argv: list[str] | None = None) -> int:
    """Run a benchmark: print each scene when it is measured, write the document at the end."""
    asked = options(f"surgery benchmark {name}", argv)
    import torch

    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for scene in scenes(asked):
            if not any(asked.only in case.name for case in scene.cases):
                continue
            measured = measure(scene, asked)
            json_lines(measured) if asked.json else table(scene, measured)
            rows += measured
    if asked.out:
        write(name, rows, asked)
    return 0


PRINTED = ("case", "ours_ms", "peers_ms", "ratio", "build_ms", "roofline")


def json_lines(rows: Iterable[dict[str, Any]]) -> None:
    for entry in rows:
        print(json.dumps({key: entry[key] for key in PRINTED if key in entry}), flush=True)


def table(scene: Scene, rows: list[dict[str, Any]]) -> None:
    """A scene as a table: our time, and how many times faster it is than each peer, whose time heads the column."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    times = {peer: ms for entry in rows for peer, ms in entry["peers_ms"].items()}
    shown = Table(title=scene.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    shown.add_column("")
    shown.add_column("ms", justify="right")
    built = any("build_ms" in entry for entry in rows)
    roofed = any("roofline" in entry for entry in rows)
    for heading in ["index\nms"] * built + ["of the\nroofline"] * roofed:
        shown.add_column(heading, justify="right")
    for peer, ms in times.items():
        shown.add_column(f"{peer}\n{ms:.2f} ms", justify="right")
    for case, entry in zip(scene.cases, rows, strict=True):
        index = [f"{entry['build_ms']:.1f}" if "build_ms" in entry else ""] * built
        share = [f"{entry['roofline']['share']:.0%}" if "roofline" in entry else ""] * roofed
        ratios = (against(entry, peer) for peer in times)
        shown.add_row(case.label, f"{entry['ours_ms']:.3g}", *index, *share, *ratios)
    Console().print(shown)


def against(entry: dict[str, Any], peer: str) -> str:
    """A ratio, bold when clearly faster, red when not."""
    if peer not in entry["ratio"]:
        return ""
    style = "bold" if entry["quartiles"][peer][0] > 1 else "red"
    return f"[{style}]{entry['ratio'][peer]:.2f}x[/]"


def write(name: str, rows: list[dict[str, Any]], asked: Options) -> None:
    """The document at `asked.out` and its plot beside it (the same name, .svg)."""
    from bench.plot import plot

    document = {
        "format": "surgery.bench/1",
        "name": name,
        "command": shlex.join(["python", "-m", f"bench.{name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "threads": asked.threads or "all",
        "clock": {"cpu": "CPU time of the one thread", "wall": "wall time"}[asked.clock],
        **machine(asked.device),
        "rows": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    plot(document, asked.out.with_suffix(".svg"))
    print(f"wrote {asked.out} and {asked.out.with_suffix('.svg')}", file=sys.stderr)


def machine(device: str) -> dict[str, Any]:
    """Device and versions, for a reader who wants to repeat a number."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name()
    return {
        "device": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
