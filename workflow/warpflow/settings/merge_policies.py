"""Section `merge_policies` of the config. The methods are those of warpflow.merging.methods."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Share, named_in, section

# These names belong to the code and are read from there, so a new method needs no edit here.
Method = Annotated[str, *named_in("merging/methods.py", "METHODS")]
Granularity = Annotated[str, *named_in("merging/methods.py", "GRANULARITIES")]
Vectors = Annotated[str, *named_in("merging/methods.py", "VECTORS")]
Dtype = Annotated[str, *named_in("merging/chunks.py", "DTYPES")]


@section
class MergePolicies:
    """Stage 2, the merge of the M policies."""

    method: Method = "slerp"
    """The method of the merge: slerp (WARP), lerp, lerp_norm_matched, karcher, model_stock or ties.
    lerp_norm_matched rescales lerp to the members' norm. karcher is the spherical mean of all
    members at once, whatever their order. model_stock is lerp drawn towards the initialisation, the
    more the wider the angles are (arXiv 2403.19522). ties keeps the largest weights of each task
    vector and averages each weight over the members that agree on its sign (arXiv 2306.01708).
    Another method is one function and one line of METHODS in warpflow.merging.methods
    (docs/extend.md)."""
    granularity: Granularity = "layer"
    """Which tensors share one angle Ω: those of a layer (as in the paper), of a tensor, or of the
    model. A layer is a transformer block."""
    vectors: Vectors = "task_vectors"
    """What is merged: task_vectors (as in the paper) or full_weights. The angle between full
    weights is about 0, so SLERP of them is about LERP (Fig. 9)."""
    weight: Share | None = None
    """λ, the weight of the second of two policies; null takes 1/m, one after another. For two
    policies this is 1/2; of more policies the m-th has λ = 1/m (Eq. 26)."""
    density: Annotated[Share, Field(gt=0)] | None = None
    """The share of each task vector that method ties keeps; null takes 0.2. These are the largest
    weights of each group (see granularity)."""
    dtype: Dtype | None = None
    """The type of the merged weights: float32, bfloat16 or float16; null takes that of the
    policies. Merging itself is done in fp32. bf16 loses small task vectors."""
