"""The shelf's operators, `torch.ops.surgery.*`, and the functions that call them.

Importing this registers all of them; it touches no GPU, and kernels are compiled only when they first run.
"""

from surgery.kernels.operators.block_attention import block_attention
from surgery.kernels.operators.block_decode import block_decode
from surgery.kernels.operators.block_linear import block_linear
from surgery.kernels.operators.block_sparse_linear import BlockSparseLinear
from surgery.kernels.operators.block_weight import BlockWeight
from surgery.kernels.operators.edge_attention import edge_attention
from surgery.kernels.operators.gated_attention import gated_attention
from surgery.kernels.operators.gathered_ffn import FeedForward, gathered_ffn
from surgery.kernels.operators.grouped_mm import grouped_mm
from surgery.kernels.operators.modulation import modulation, pack_modulation, packed_modulation
from surgery.kernels.operators.pattern_attention import pattern_attention
from surgery.kernels.operators.probe_select import probe_select
from surgery.kernels.operators.seen_keys import seen_keys

__all__ = [
    "BlockSparseLinear",
    "BlockWeight",
    "FeedForward",
    "block_attention",
    "block_decode",
    "block_linear",
    "edge_attention",
    "gated_attention",
    "gathered_ffn",
    "grouped_mm",
    "modulation",
    "pack_modulation",
    "packed_modulation",
    "pattern_attention",
    "probe_select",
    "seen_keys",
]
