"""Operators of `aten` that a file from a stranger may not call, and why.

A graph is data, so what it can do is what its operators can do. The public functional part of `aten` computes: it
checks shapes and bounds and touches nothing but its arguments and the random generator. What remains is refused:
operators that reach outside (files, streams, process-wide settings), that re-point or resize the memory behind a
tensor, that build tensors whose invariants nobody checks (sparse, nested, quantized, packed weights), backward
formulas (they trust what forward saved), writers into `out=`, and everything private (`_name`) save a short list
which `torch.export` emits for public functions. In-place arithmetic is admitted: models with caches need it.
This is about what operators may do, not how long they take: a hostile graph can still ask for more memory or time
than there is, and fails like any large model does.
"""

from functools import cache

from torch._ops import OpOverload

REASONS = {
    "from_file": "it opens files",
    "record_stream": "it touches the memory allocator",
    "pin_memory": "it touches the memory allocator",
    "is_pinned": "it touches the memory allocator",
    "set": "it re-points a tensor's memory",
    "set_": "it re-points a tensor's memory",
    "set_data": "it re-points a tensor's memory",
    "as_strided_": "it re-points a tensor's memory",
    "requires_grad_": "it changes what autograd records",
    "retain_grad": "it changes what autograd records",
    "segment_reduce": "it can be told to skip its bounds checks",
    "ctc_loss": "it reads label indices unchecked",
    "native_batch_norm": "it trusts the sizes of its statistics",
    "lu_unpack": "it trusts pivots unchecked",
    "lu_solve": "it trusts pivots unchecked",
    "linalg_lu_solve": "it trusts pivots unchecked",
    "linalg_ldl_solve": "it trusts pivots unchecked",
    "fractional_max_pool2d": "it computes indices from its samples unchecked",
    "fractional_max_pool3d": "it computes indices from its samples unchecked",
    "slice_inverse": "it re-points a tensor's memory",
    "data": "it takes a tensor out of autograd's sight",
    "get_gradients": "it reads the state of distributed autograd",
    "empty_quantized": "it builds quantized tensors",
    "copy_sparse_to_sparse": "it builds sparse tensors",
    "copy_sparse_to_sparse_": "it builds sparse tensors",
    "to_padded_tensor": "it trusts the offsets of a nested tensor",
    "rename": "named tensors are not admitted",
    "rename_": "named tensors are not admitted",
    "align_to": "named tensors are not admitted",
}
PREFIXES = {
    "batch_norm_": "it is internal to one backend",
    "resize": "it resizes a tensor's memory",
    "sparse_": "it builds sparse tensors whose indices are not checked",
    "to_sparse": "it builds sparse tensors",
    "nested_": "it builds nested tensors whose offsets are not checked",
    "quantize_": "it builds quantized tensors",
    "quantized_": "it takes packed weights unchecked",
    "fbgemm_": "it takes packed weights unchecked",
    "mkldnn_": "it is internal to one backend",
    "to_mkldnn": "it is internal to one backend",
    "cudnn_": "it is internal to one backend",
    "miopen_": "it is internal to one backend",
    "mps_": "it is internal to one backend",
}
PRIVATE_ADMITTED = frozenset(
    [
        "_assert_async",
        "_assert_scalar",
        "_assert_tensor_metadata",
        "_functional_assert_async",
        "_functional_assert_scalar",
        "_conj",
        "_conj_physical",
        "_convolution",
        "_grouped_mm",
        "_int_mm",
        "_is_all_true",
        "_is_any_true",
        "_local_scalar_dense",
        "_log_softmax",
        "_neg_view",
        "_safe_softmax",
        "_scaled_grouped_mm",
        "_scaled_mm",
        "_shape_as_tensor",
        "_softmax",
        "_to_copy",
        "_trilinear",
        "_unique2",
        "_unsafe_view",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
        "_weight_norm",
    ]
)


@cache
def danger(operator: OpOverload) -> str:
    """Why an `aten` operator is refused; empty when it is admitted."""
    name = operator._schema.name.partition("::")[2]
    if name in REASONS:
        return REASONS[name]
    for prefix, reason in PREFIXES.items():
        if name.startswith(prefix):
            return reason
    if "backward" in name:
        return "it is a backward formula, which trusts what forward saved"
    if name.startswith("_") and not name.startswith("__") and name not in PRIVATE_ADMITTED:
        return "it is private to torch, and private operators check less"
    if any(argument.is_out for argument in operator._schema.arguments):
        return "it writes into `out=`, which can resize memory"
    return ""
