"""A diffusion transformer on the digits that reads time as DiT does: 0..990."""

from surgery.zoo.denoiser import Denoiser
from surgery.zoo.recipe import Training

MODEL = Denoiser(
    name="digits-dit",
    summary="class-conditional DiT on 8 x 8 digits, time as in DiT (0..990)",
    time_scale=10.0,
    network={"width": 96, "depth": 8, "heads": 6, "mlp_ratio": 2.0},
    training=Training(steps=5_000, cooldown=0.3),
)
