"""A diffusion transformer on the digits that reads time as SiT does: in [0, 1)."""

from surgery.zoo.denoiser import Denoiser
from surgery.zoo.recipe import Training

MODEL = Denoiser(
    name="digits-sit",
    summary="class-conditional DiT on 8 x 8 digits, time as in SiT ([0, 1))",
    time_scale=0.01,
    network={"width": 64, "depth": 8, "heads": 4, "mlp_ratio": 2.0},
    training=Training(steps=7_000, cooldown=0.4),
)
