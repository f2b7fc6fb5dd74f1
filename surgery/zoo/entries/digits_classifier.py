"""The fixed judge of generated digits: it reads them, and its features carry the Fréchet distance."""

from surgery.zoo.classifier import Classifier
from surgery.zoo.recipe import Training

MODEL = Classifier(
    name="digits-classifier",
    summary="convolutional classifier of 8 x 8 digits, the fixed judge of generated samples",
    training=Training(steps=3_000, cooldown=0.7),
)
