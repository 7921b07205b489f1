"""Section `merge_policies` of the config. The methods are those of warpflow.merging.methods."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Share, named_in, section

# Names that belong to the code, read from there: a new method is named nowhere here.
Method = Annotated[str, *named_in("merging/methods.py", "METHODS")]
Granularity = Annotated[str, *named_in("merging/methods.py", "GRANULARITIES")]
Vectors = Annotated[str, *named_in("merging/methods.py", "VECTORS")]
Dtype = Annotated[str, *named_in("merging/chunks.py", "DTYPES")]


@section
class MergePolicies:
    """Stage 2, the merge of the M policies."""

    method: Method = "slerp"
    """slerp (WARP), lerp, lerp_norm_matched, karcher, model_stock, ties.
    lerp_norm_matched: lerp rescaled to the members' norm. karcher: the spherical mean of all
    members at once, whatever their order. model_stock: lerp, the nearer to the initialisation the
    wider the angles (arXiv 2403.19522). ties: of each weight the mean over the members that agree
    on its sign, among each member's largest (arXiv 2306.01708). Another method is one function and
    one line of METHODS in warpflow.merging.methods."""
    granularity: Granularity = "layer"
    """What shares one angle Ω: layer (the paper's), tensor, model. A layer is a transformer
    block."""
    vectors: Vectors = "task_vectors"
    """What is merged: task_vectors (the paper's) or full_weights. The angle of full weights is
    about 0: SLERP of them is about LERP (Fig. 9)."""
    weight: Share | None = None
    """λ of the second of two policies; null: 1/m, one after another. For two policies that is 1/2;
    for more, the m-th has λ = 1/m (Eq. 26)."""
    density: Annotated[Share, Field(gt=0)] | None = None
    """Share of each task vector that method ties keeps; null: 0.2. It is the share of the
    weights of each group (see granularity), the largest."""
    dtype: Dtype | None = None
    """Of the merged weights: float32, bfloat16, float16; null: the policies'. Merging itself is
    fp32; bf16 loses small task vectors."""
