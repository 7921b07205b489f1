"""Section `merge_policies` of the config. The methods are those of warpflow.merging.methods."""

from __future__ import annotations

from typing import Annotated

from warpflow.settings.base import Share, named_in, section

# Names that belong to the code, read from there: a new method is named nowhere here.
Method = Annotated[str, *named_in("merging/methods.py", "METHODS")]
Granularity = Annotated[str, *named_in("merging/methods.py", "GRANULARITIES")]
Vectors = Annotated[str, *named_in("merging/methods.py", "VECTORS")]
Dtype = Annotated[str, *named_in("merging/streaming.py", "DTYPES")]


@section
class MergePolicies:
    """Stage 2, the merge of the M policies."""

    method: Method = "slerp"
    """slerp (WARP), lerp, lerp_norm_matched, karcher, or another of METHODS.
    lerp_norm_matched: lerp rescaled to the members' norm. karcher: the spherical mean of all
    members at once, whatever their order."""
    granularity: Granularity = "layer"
    """What shares one angle Ω: layer (the paper's), tensor, model. A layer is a transformer
    block."""
    vectors: Vectors = "task_vectors"
    """What is merged: task_vectors (the paper's) or full_weights. The angle of full weights is
    about 0: SLERP of them is about LERP (Fig. 9)."""
    weight: Share | None = None
    """λ of the second of two policies; null: 1/m, one after another. For two policies that is 1/2;
    for more, the m-th has λ = 1/m (Eq. 26)."""
    dtype: Dtype | None = None
    """Of the merged weights: float32, bfloat16, float16; null: the policies'. Merging itself is
    fp32; bf16 loses small task vectors."""
