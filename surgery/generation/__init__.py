"""Text from a captured decoder: one graph becomes a step with a cache of keys and values. See `generate`."""

from surgery.generation.decoder import Decoder, decoder_of
from surgery.generation.generate import generate

__all__ = ["Decoder", "decoder_of", "generate"]
