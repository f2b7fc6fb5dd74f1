"""The picture beside a benchmark document: how many times faster, per case and peer."""

from pathlib import Path
from typing import Any


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw a dot per case and peer on a log axis, a line at 1 (as fast as the peer).

    A row whose `drawn` is false stays in the document only.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "surgery", "svg.fonttype": "none"}
    rows = [row for row in document["rows"] if row.get("drawn", True)]
    peers = list(dict.fromkeys(peer for row in rows for peer in row["ratio"]))
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.22 * len(rows)), layout="constrained")
    for peer in peers:
        at = [index for index, row in enumerate(rows) if peer in row["ratio"]]
        axes.plot([rows[index]["ratio"][peer] for index in at], at, "o", markersize=4.5, label=f"against {peer}")
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 3, 4, 6, 8])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.margins(y=0.01)
    how = f"{document['device']}, {document['threads']} thread(s), {document['clock']}"
    axes.set_xlabel(f"times faster\n{how}", fontsize=8)
    axes.grid(axis="x", color="0.9")
    figure.legend(fontsize=7, loc="outside upper center", ncols=len(peers))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
