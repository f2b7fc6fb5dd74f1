"""A decoder that copies letters, names who was given something, and writes a later year. See `surgery.zoo.tasks`.

`surgery zoo train tasks-gpt`. Of 4,096 held-out rows (`python -m bench.language`) every answer is right. Nats per
answer: copy .00006, names .00017, greater 3.753, where an even choice among the later years has 3.671.
"""

from surgery.zoo import tasks
from surgery.zoo.language import Writer
from surgery.zoo.recipe import Training

MODEL = Writer(
    name="tasks-gpt",
    summary="decoder of whole words that copies, finds the other name and writes later years",
    language=tasks,
    default_data="tasks",
    network={"width": 64, "depth": 4, "heads": 8, "base": 100.0},
    training=Training(steps=3_500, batch=128, rate=3e-3, cooldown=0.5),
)
