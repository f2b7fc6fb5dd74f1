"""The picture beside a benchmark document: how many times faster, per case and peer."""

from pathlib import Path
from typing import Any


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw a dot per case and peer on a log axis, a line at 1 (as fast as the peer)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "surgery"
    rows = document["rows"]
    peers = list(dict.fromkeys(peer for row in rows for peer in row["ratio"]))
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.22 * len(rows)), layout="constrained")
    for peer in peers:
        at = [index for index, row in enumerate(rows) if peer in row["ratio"]]
        axes.plot([rows[index]["ratio"][peer] for index in at], at, "o", markersize=4.5, label=f"against {peer}")
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel(f"times faster · {document['device']}, {document['threads']} thread(s), {document['clock']}")
    axes.grid(axis="x", color="0.9")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 1.2 / (1.2 + 0.22 * len(rows))), ncols=3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
