"""A diffusion transformer on the digits that reads time as SiT does: in [0, 1).

Time in [0, 1) hardly moves the slow sinusoidal features, so the time embedding is one large vector and little else. The
time MLP starts wide, which settles how large: time outweighs class in c, and the coordinates it pushes far below zero
are dead under SiLU however large their magnitude. Ranking |c| keeps them; ranking |SiLU(c)| does not.
"""

from surgery.zoo.denoiser import Denoiser
from surgery.zoo.recipe import Training

MODEL = Denoiser(
    name="digits-sit",
    summary="class-conditional DiT on 8 x 8 digits, time as in SiT ([0, 1))",
    time_scale=0.01,
    network={"width": 64, "depth": 8, "heads": 4, "mlp_ratio": 2.0, "time_std": 0.25},
    training=Training(steps=3_500, rate=2e-3, cooldown=0.5),
)
