"""What a quality measurement found, and which way each figure is better."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

BETTER = {
    "denoising loss": "lower",
    "loss": "lower",
    "perplexity": "lower",
    "accuracy": "higher",
    "frechet": "lower",
    "paired error": "lower",
    "output error": "lower",
    "output cosine": "higher",
    "logit kl": "lower",
    "agreement": "higher",
    "embedding cosine": "higher",
}


@dataclass(frozen=True)
class Measurement:
    """One module, measured once.

    metrics   figures by name, see BETTER
    absent    names that could not be measured on this data, and why
    samples   [N, C, H, W] float32 generated samples, None where nothing was generated
    labels    [N] int64, what each sample was asked to show
    paired    figures that are comparisons with the original, by name
    """

    metrics: Mapping[str, float]
    absent: Mapping[str, str] = field(default_factory=dict)
    samples: Tensor | None = None
    labels: Tensor | None = None
    paired: Mapping[str, float] = field(default_factory=dict)
