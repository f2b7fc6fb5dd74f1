"""A decoder that writes Python, trained on the source of the standard library. See `surgery.zoo.stdlib`.

`surgery zoo train code-gpt`: 16.4 million tokens, 5.7 times the 2.9 million there are, of Python 3.11.7. Held out
(`python -m bench.language --json bench/results/language-cpu.json`): 2.553 nats per token, 1.185 bits per byte over
190,464 tokens of 37 modules. On modules that trained it has 1.796 nats, .811 bits: it has learned a good part of them
by heart, and a spec should be judged on held-out modules alone, as `data stdlib` does.
"""

from surgery.zoo import stdlib
from surgery.zoo.language import Writer
from surgery.zoo.recipe import Training

MODEL = Writer(
    name="code-gpt",
    summary="decoder of Python source, byte-level BPE of 2,048 tokens, trained on the standard library",
    language=stdlib,
    default_data="stdlib",
    network={"width": 192, "depth": 6, "heads": 4},
    training=Training(steps=4_000, batch=8, rate=2e-3, cooldown=0.5),
    half=True,
)
