"""Merging of task vectors, and LITI."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from conftest import MakeModel
from torch import Tensor

from warpflow.merging.chunks import CHUNK, interpolate
from warpflow.merging.methods import (
    DENSITY,
    GRANULARITIES,
    METHODS,
    Elementwise,
    angle,
    layer_groups,
    lerp_norm_matched_coefficients,
    model_stock_coefficients,
    slerp_coefficients,
    ties,
)
from warpflow.merging.streaming import gram_matrix, merge, merge_into

Tensors = dict[str, Tensor]
# Those with coefficients, which move every weight and merge collinear task vectors to their mean.
LINEAR = [name for name, method in METHODS.items() if not isinstance(method, Elementwise)]
NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.weight",
    "model.layers.0.norm.weight",
    "model.layers.1.mlp.weight",
    "model.layers.10.mlp.weight",
    "lm_head.weight",
]


def tensors(seed: int, scale: float = 1.0, names: Sequence[str] = NAMES) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(6, 5, generator=generator) for name in names}


def plus(start: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> Tensors:
    return {name: start[name] + delta[name] for name in start}


def task_vector(policy: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
    """Return all task vectors end to end, in fp64."""
    return torch.cat([(policy[n].double() - start[n].double()).flatten() for n in start])


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a
    )


def assert_close(a: Mapping[str, Tensor], b: Mapping[str, Tensor], atol: float = 1e-6) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=name, check_dtype=False)


def one_tensor(*deltas: Sequence[float]) -> tuple[Tensors, list[Tensors]]:
    """An init far from the origin, and policies with the given task vectors."""
    init = {"w": torch.tensor([4.0, -3.0, 2.0])[: len(deltas[0])]}
    return init, [{"w": init["w"] + torch.tensor(delta)} for delta in deltas]


def merged_delta(method: str, weight: float | None, *deltas: Sequence[float]) -> Tensor:
    init, policies = one_tensor(*deltas)
    return merge(init, policies, method, weight=weight)["w"] - init["w"]


def slerp_vectors(a: Tensor, b: Tensor, step: float) -> Tensor:
    """The paper's formula on two fp64 vectors, for vectors that are not collinear."""
    omega = torch.acos(a @ b / (a.norm() * b.norm()))
    return (torch.sin((1 - step) * omega) * a + torch.sin(step * omega) * b) / torch.sin(omega)


def slerp_sequence(vectors: Sequence[Tensor], steps: Sequence[float]) -> Tensor:
    merged = vectors[0]
    for vector, step in zip(vectors[1:], steps, strict=True):
        merged = slerp_vectors(merged, vector, step)
    return merged


# --- stage 2: merging --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["slerp", "lerp"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_merge_endpoints_are_the_policies_bit_for_bit(method: str, granularity: str) -> None:
    init, policies = tensors(0, 100.0), [tensors(1), tensors(2, 1e-4)]
    for weight in (0, 1):
        assert same_bits(merge(init, policies, method, granularity, weight), policies[weight])


@pytest.mark.parametrize("method", METHODS)
def test_merge_of_one_policy_is_that_policy_bit_for_bit(method: str) -> None:
    init, policy = tensors(0, 100.0), tensors(1)
    policy["lm_head.weight"][0, 0] = -0.0
    assert same_bits(merge(init, [policy], method), policy)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_merge_of_two_is_symmetric(method: str, weight: float) -> None:
    init, a, b = tensors(0), tensors(1), tensors(2, 3.0)
    assert_close(
        merge(init, [a, b], method, weight=weight), merge(init, [b, a], method, weight=1 - weight)
    )


def test_weight_is_that_of_the_second_policy() -> None:
    a, b = [1.0, 0.0], [0.0, 1.0]
    for method in ("slerp", "lerp"):
        near_a, near_b = (merged_delta(method, weight, a, b) for weight in (0.1, 0.9))
        assert near_a[0] > near_a[1]
        assert near_b[0] < near_b[1]


@pytest.mark.parametrize("degrees", [10, 60, 90, 150])
@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_lemmas_1_and_2_norms_of_slerp_and_lerp(degrees: float, weight: float) -> None:
    norm, omega = 2.0, math.radians(degrees)
    a, b = [norm, 0.0], [norm * math.cos(omega), norm * math.sin(omega)]
    assert merged_delta("slerp", weight, a, b).norm().item() == pytest.approx(norm, rel=1e-5)
    shrunk = norm * math.sqrt(1 - 2 * (1 - math.cos(omega)) * (weight - weight**2))
    assert merged_delta("lerp", weight, a, b).norm().item() == pytest.approx(shrunk, rel=1e-5)


@pytest.mark.parametrize("degrees", [30, 90, 120])
def test_slerp_at_one_half_is_lerp_over_cos_of_half_the_angle(degrees: float) -> None:
    omega = math.radians(degrees)
    a, b = [1.0, 0.0], [math.cos(omega), math.sin(omega)]
    ratio = merged_delta("slerp", None, a, b) / merged_delta("lerp", None, a, b)
    torch.testing.assert_close(ratio, torch.full((2,), 1 / math.cos(omega / 2)), atol=1e-5, rtol=0)


def test_the_angle_is_between_task_vectors_not_full_weights() -> None:
    """Full weights are collinear here: with their angle SLERP would be LERP, not 1.414 times it."""
    init, (a, b) = one_tensor([1e-3, 0.0], [0.0, 1e-3])
    assert torch.nn.functional.cosine_similarity(a["w"], b["w"], 0) > 0.99999
    delta = merge(init, [a, b], "slerp")["w"] - init["w"]
    torch.testing.assert_close(delta, torch.full((2,), 1e-3 / math.sqrt(2)), atol=1e-6, rtol=0)
    of_weights = merge(init, [a, b], "slerp", vectors="full_weights")["w"] - init["w"]
    torch.testing.assert_close(of_weights, torch.full((2,), 5e-4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_slerp_of_full_weights_is_the_formula_on_them(weight: float) -> None:
    init, policies = tensors(0), [tensors(1), tensors(2)]
    merged = merge(init, policies, "slerp", "tensor", weight, "full_weights")
    for name in NAMES:
        a, b = (policy[name].double() for policy in policies)
        omega = torch.acos((a * b).sum() / (a.norm() * b.norm()))
        parts = torch.sin((1 - weight) * omega) * a + torch.sin(weight * omega) * b
        torch.testing.assert_close(merged[name], (parts / torch.sin(omega)).float())


@pytest.mark.parametrize("method", LINEAR)
def test_merging_equal_full_weights_returns_them(method: str) -> None:
    init, policy = tensors(0), tensors(1)
    assert_close(merge(init, [policy] * 3, method, vectors="full_weights"), policy)


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [2.0, 4.0], [1.5, 3.0]),
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ],
    ids=["collinear", "equal", "opposite", "both zero"],
)
def test_degenerate_angles_fall_back_to_lerp(
    method: str, a: list[float], b: list[float], expected: list[float]
) -> None:
    torch.testing.assert_close(merged_delta(method, None, a, b), torch.tensor(expected))


@pytest.mark.parametrize("method", ["slerp", "lerp"])
def test_a_zero_task_vector_counts_as_lerp(method: str) -> None:
    """mergekit gives .707 here; the paper's formula is undefined, its limit by convention LERP."""
    torch.testing.assert_close(
        merged_delta(method, 0.25, [0.0, 0.0], [4.0, 0.0]), torch.tensor([1.0, 0.0])
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("excess", [0, 1e-15, 1e-12, 1e-9])
def test_rounding_beyond_the_range_of_acos_gives_no_nan(sign: int, excess: float) -> None:
    cosine = sign * (1 + excess)
    assert angle(1.0, 1.0, cosine) == (0 if sign == 1 else math.pi)
    gram = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
    assert slerp_coefficients(gram, 0.3).tolist() == pytest.approx([0.7, 0.3])


def test_nearly_collinear_task_vectors_merge_to_their_mean() -> None:
    for noise in (1e-3, 1e-5, 1e-7, 1e-9):
        a, b = torch.randn(100, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
        stack = torch.stack([a, a + noise * b])
        coefficients = slerp_coefficients(stack @ stack.T)
        assert coefficients.tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize("members", [3, 4, 5])
def test_more_than_two_are_merged_in_sequence_with_weight_one_over_m(members: int) -> None:
    """Eq. 26. A known bug is 1/M at every merge, under which the first policy dominates."""
    init = {"w": torch.randn(40)}
    policies = [{"w": init["w"] + (1 + m) * torch.randn(40)} for m in range(members)]
    merged = task_vector(merge(init, policies), init)
    vectors = [task_vector(policy, init) for policy in policies]
    expected = slerp_sequence(vectors, [1 / m for m in range(2, members + 1)])
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)
    bug = slerp_sequence(vectors, [1 / members] * (members - 1))
    assert (merged - bug).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize("members", [2, 3, 5])
def test_lerp_is_the_mean_of_all_policies(members: int) -> None:
    policies = [tensors(m) for m in range(1, members + 1)]
    mean = {name: torch.stack([p[name] for p in policies]).mean(0) for name in NAMES}
    assert_close(merge(tensors(0), policies, "lerp"), mean)


@pytest.mark.parametrize("members", [2, 3, 5])
def test_lemma_1_holds_through_the_sequence(members: int) -> None:
    """Orthogonal task vectors of norm 1: the merge keeps norm 1, and the last to come has the
    coefficient sin(π / 2M)."""
    coefficients = slerp_coefficients(torch.eye(members, dtype=torch.float64))
    assert coefficients.norm().item() == pytest.approx(1)
    assert coefficients[-1].item() == pytest.approx(math.sin(math.pi / (2 * members)))


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_tensor_is_merged(method: str, granularity: str) -> None:
    """A known bug is a loop that stops after the first tensor."""
    init, policies = tensors(0), [tensors(1), tensors(2)]
    merged = merge(init, policies, method, granularity)
    assert list(merged) == NAMES
    for name in NAMES:
        for other in (init, *policies):
            assert (merged[name] - other[name]).abs().min() > 0


def test_norm_matched_lerp_has_the_direction_of_lerp_and_the_mean_norm() -> None:
    a, b, weight = [3.0, 0.0, 0.0], [1.0, 0.0, 1.0], 0.3
    matched, lerp = (merged_delta(m, weight, a, b) for m in ("lerp_norm_matched", "lerp"))
    torch.testing.assert_close(matched / matched.norm(), lerp / lerp.norm(), atol=1e-6, rtol=0)
    assert matched.norm().item() == pytest.approx(0.7 * 3 + 0.3 * math.sqrt(2), rel=1e-5)


def test_norm_matched_lerp_is_slerp_for_two_of_equal_norm_at_one_half() -> None:
    gram = torch.tensor([[4.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(lerp_norm_matched_coefficients(gram), slerp_coefficients(gram))


# --- Model Stock and TIES ----------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [20, 60, 89])
def test_model_stock_of_two_is_at_its_ratio_on_the_way_to_the_mean(degrees: float) -> None:
    """t = 2 cosθ / (1 + cosθ): the foot of the perpendicular from the centre that is sought."""
    cosine = math.cos(math.radians(degrees))
    gram = torch.tensor([[4.0, 4 * cosine], [4 * cosine, 4.0]], dtype=torch.float64)
    coefficients = model_stock_coefficients(gram).tolist()
    assert coefficients == pytest.approx([cosine / (1 + cosine)] * 2)


@pytest.mark.parametrize("members", [2, 5])
def test_model_stock_trusts_members_that_agree_and_none_that_do_not(members: int) -> None:
    same = torch.ones(members, members, dtype=torch.float64)
    assert model_stock_coefficients(same).sum().item() == pytest.approx(1)
    assert not model_stock_coefficients(torch.eye(members, dtype=torch.float64)).any()


def test_model_stock_is_nearest_to_the_centre_of_noisy_members() -> None:
    """It is nearest among all points between the init and the members' mean, for members that are a
    common vector and their own noise."""
    centre = torch.randn(100_000).double()
    vectors = torch.stack([centre + 2 * torch.randn(100_000).double() for _ in range(4)])
    ratio = model_stock_coefficients(vectors @ vectors.T).sum().item()
    mean = vectors.mean(0)
    assert ratio == pytest.approx(float(mean @ centre / (mean @ mean)), rel=0.02)


def dense_ties(deltas: Tensor, density: float, weights: Sequence[float]) -> Tensor:
    """The paper's three steps on whole task vectors [M, d]."""
    members, size = deltas.shape
    kept = torch.zeros_like(deltas)
    for m in range(members):
        for d in deltas[m].abs().argsort(descending=True)[: math.ceil(density * size)]:
            kept[m, d] = deltas[m, d]
    merged = torch.zeros(size, dtype=deltas.dtype)
    for d in range(size):
        up = sum(w * max(v, 0.0) for w, v in zip(weights, kept[:, d].tolist(), strict=True))
        down = sum(w * max(-v, 0.0) for w, v in zip(weights, kept[:, d].tolist(), strict=True))
        sign = 1 if up > down else -1
        agree = [m for m in range(members) if kept[m, d] * sign > 0]
        if agree:
            share = sum(weights[m] for m in agree)
            merged[d] = sum(weights[m] * kept[m, d] for m in agree) / share
    return merged


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("density", [None, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("members", [2, 3, 5])
def test_ties_is_the_papers_three_steps(
    members: int, density: float | None, granularity: str
) -> None:
    init = tensors(0)
    policies = [plus(init, tensors(m, 0.1 * m)) for m in range(1, members + 1)]
    merged = merge(init, policies, "ties", granularity, density=density)
    for names in layer_groups(NAMES, granularity).values():
        flat = [torch.cat([t[n].flatten() for n in names]) for t in (init, *policies)]
        deltas = torch.stack([policy - flat[0] for policy in flat[1:]]).double()
        expected = dense_ties(deltas, density or DENSITY, [1 / members] * members)
        found = torch.cat([merged[name].flatten() for name in names])
        torch.testing.assert_close(found.double(), flat[0].double() + expected, atol=1e-6, rtol=0)


def test_ties_counts_members_by_their_weights() -> None:
    deltas = torch.tensor([[1.0, -2.0, 3.0], [2.0, 3.0, -4.0]])
    assert merged_delta("ties", 0.25, *deltas.tolist())[2].item() == pytest.approx(3.0), "trimmed"
    init, policies = one_tensor(*deltas.tolist())
    merged = merge(init, policies, "ties", weight=0.25, density=1.0)["w"] - init["w"]
    torch.testing.assert_close(merged, torch.tensor([1.25, -2.0, 3.0]))


def test_ties_of_equal_members_is_their_trimmed_task_vector() -> None:
    delta = torch.randn(1000)
    threshold = delta.abs().sort().values[800]
    trimmed = torch.where(delta.abs() >= threshold, delta, 0.0)
    for members in (1, 2, 3):
        weights = torch.full((members,), 1 / members)
        merged = ties(delta.expand(members, -1), weights, threshold.expand(members))
        torch.testing.assert_close(merged, trimmed)
    init = {"w": torch.randn(1000)}
    merged_in = merge(init, [plus(init, {"w": delta})] * 3, "ties")["w"] - init["w"]
    assert int((merged_in != 0).sum()) == 200


def test_ties_that_are_even_leave_the_init() -> None:
    assert torch.equal(merged_delta("ties", None, [1.0, 0.0], [-1.0, 0.0]), torch.zeros(2))


def angled(degrees: Mapping[str, float]) -> tuple[Tensors, list[Tensors]]:
    """Return two policies whose task vectors have the given angle in each tensor and norm 1."""
    init = {name: torch.tensor([5.0, 5.0]) for name in degrees}
    second = {
        name: torch.tensor([math.cos(math.radians(d)), math.sin(math.radians(d))])
        for name, d in degrees.items()
    }
    first = {name: torch.tensor([1.0, 0.0]) for name in degrees}
    return init, [plus(init, first), plus(init, second)]


def test_granularities_differ_where_angles_differ() -> None:
    init, policies = angled(dict(zip(NAMES, [90, 30, 120, 60, 100, 20], strict=True)))
    layer, tensor, model = (merge(init, policies, "slerp", g) for g in ("layer", "tensor", "model"))
    in_blocks = [name for name in NAMES if name.startswith("model.layers.0.")]
    for name in NAMES:
        # A group of one tensor has that tensor's own angle; block 0 has two with one angle.
        same = torch.allclose(layer[name], tensor[name], atol=1e-6)
        assert same == (name not in in_blocks), name
        assert not torch.allclose(model[name], layer[name], atol=1e-3), name


def test_granularities_agree_where_angles_agree_and_for_lerp() -> None:
    init, policies = angled(dict.fromkeys(NAMES, 70.0))
    by_layer = merge(init, policies, "slerp", "layer")
    for granularity in ("tensor", "model"):
        assert_close(by_layer, merge(init, policies, "slerp", granularity))
    init, policies = tensors(0), [tensors(1), tensors(2)]
    for granularity in ("tensor", "model"):
        assert_close(merge(init, policies, "lerp"), merge(init, policies, "lerp", granularity))


def test_layer_groups_hold_each_tensor_once(make_model: MakeModel, architecture: str) -> None:
    names = [name for name, _ in make_model(architecture).named_parameters()]
    groups = layer_groups(names)
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    blocks = {group: members for group, members in groups.items() if len(members) > 1}
    assert list(blocks) == ["layer 0", "layer 1"]
    assert all(len(members) > 5 for members in blocks.values())


def test_layers_1_and_10_are_not_confused() -> None:
    assert list(layer_groups(NAMES)) == [
        "model.embed_tokens.weight",
        "layer 0",
        "layer 1",
        "layer 10",
        "lm_head.weight",
    ]


def test_two_stacks_do_not_share_an_angle() -> None:
    names = ["vision.layers.0.w", "text.layers.0.w", "text.layers.1.w", "head.w"]
    assert [len(group) for group in layer_groups(names).values()] == [1, 1, 1, 1]
    assert list(layer_groups(names[1:])) == ["layer 0", "layer 1", "head.w"]


def test_integer_buffers_are_carried_over_and_must_agree() -> None:
    init, a, b = ({"w": torch.randn(3), "steps": torch.tensor([7])} for _ in range(3))
    for merged in (merge(init, [a, b]), interpolate(init, a, 0.3)):
        assert torch.equal(merged["steps"], torch.tensor([7]))
        assert merged["steps"].dtype == torch.int64
    b["steps"] = torch.tensor([8])
    with pytest.raises(ValueError, match="integer tensor steps"):
        merge(init, [a, b])
    with pytest.raises(ValueError, match="integer tensor steps"):
        interpolate(init, b, 1)


def test_small_task_vectors_of_bf16_checkpoints_are_measured_exactly() -> None:
    start = torch.randn(1000).bfloat16()
    policies = [torch.nextafter(start, torch.full_like(start, sign * 9)) for sign in (1, -1)]
    vectors = torch.stack([p.double() - start.double() for p in policies])
    sources = [{"w": tensor} for tensor in (start, *policies)]
    gram = gram_matrix(sources, ["w"], torch.empty(3, CHUNK))[1:, 1:]
    torch.testing.assert_close(gram, vectors @ vectors.T, rtol=1e-6, atol=0)


def test_fp32_policies_of_a_bf16_init_are_not_rounded_to_bf16() -> None:
    """Rounding the result to the init's bf16 would lose the task vectors."""
    start = torch.randn(1000).bfloat16()
    init = {"w": start}
    policies = [{"w": start.float() + 1e-4 * torch.randn(1000)} for _ in range(2)]
    mean = {"w": (policies[0]["w"] + policies[1]["w"]) / 2}
    assert_close(merge(init, policies, "lerp"), mean, atol=1e-6)
    halfway = {"w": (start.float() + policies[0]["w"]) / 2}
    assert_close(interpolate(init, policies[0], 0.5), halfway, atol=1e-6)
    assert same_bits(interpolate(init, policies[0], 1), policies[0])


def test_merge_errors_name_what_is_wrong() -> None:
    init, policy = tensors(0), tensors(1)
    with pytest.raises(ValueError, match=f"'mean': expected one of {', '.join(METHODS)}$"):
        merge(init, [policy], "mean")
    with pytest.raises(ValueError, match="'block': expected one of layer, tensor, model"):
        merge(init, [policy], granularity="block")
    with pytest.raises(ValueError, match="vectors 'deltas': expected one of task_vectors"):
        merge(init, [policy], vectors="deltas")
    with pytest.raises(ValueError, match="at least one"):
        merge(init, [])
    with pytest.raises(ValueError, match="expected 0 <= weight <= 1"):
        merge(init, [policy] * 2, weight=1.5)
    for vectors, density, message in (
        ("full_weights", None, "ties trims task vectors"),
        ("task_vectors", 0.0, "expected 0 < density <= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(init, [policy] * 2, "ties", vectors=vectors, density=density)
    with pytest.raises(ValueError, match="method slerp keeps all weights"):
        merge(init, [policy] * 2, density=0.2)
    with pytest.raises(ValueError, match=r"0\.3 for 3"):
        merge(init, [policy] * 3, weight=0.3)
    less = {name: tensor for name, tensor in policy.items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"policy 1 .*missing=\['lm_head.weight'\]"):
        merge(init, [policy, less])
    with pytest.raises(ValueError, match=r"extra=\['lm_head.weight'\]"):
        merge(less, [policy])
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(2,\), expected \(6, 5\)"):
        merge(init, [policy | {"lm_head.weight": torch.zeros(2)}])


def test_averaging_lora_factors_is_not_averaging_their_product() -> None:
    """This is why only full weights are merged. An adapter's update is B A, which is not linear in
    the pair (A, B), so a merge of the factors is another policy. Angles of the factors say nothing,
    since (B R, R⁻¹ A) is the same policy for every invertible R."""
    start = torch.zeros(8, 8)
    pairs = [(torch.randn(8, 2), torch.randn(2, 8)) for _ in range(2)]
    policies = [{"w": start + b @ a} for b, a in pairs]
    merged = merge({"w": start}, policies, "lerp")["w"]
    of_factors = (pairs[0][0] + pairs[1][0]) / 2 @ (pairs[0][1] + pairs[1][1]) / 2
    assert (merged - of_factors).norm() > 0.1 * merged.norm()
    flipped = [policies[0], {"w": start + (-pairs[1][0]) @ (-pairs[1][1])}]
    torch.testing.assert_close(merge({"w": start}, flipped, "lerp")["w"], merged)


def test_geometry_reports_angles_of_task_vectors_and_of_weights() -> None:
    init, policies = angled(dict(zip(NAMES, [90, 60, 60, 60, 180, 0], strict=True)))
    rows: list[dict[str, Any]] = merge_into(lambda *piece: None, init, [*policies, init])
    pairs = [(row["member_a"], row["member_b"]) for row in rows[:3]]
    assert pairs == [(0, 1), (0, 2), (1, 2)]
    first = {row["group"]: row for row in rows if (row["member_a"], row["member_b"]) == (0, 1)}
    assert list(first) == list(layer_groups(NAMES))
    cosines = [row["cosine_task_vectors"] for row in first.values()]
    assert cosines == pytest.approx([0, 0.5, 0.5, -1, 1], abs=1e-5)
    assert all(row["cosine_weights"] > 0.9 for row in first.values())
    assert first["layer 0"]["norm_b"] == pytest.approx(math.sqrt(2), rel=1e-5)
    with_init = [row for row in rows if row["member_b"] == 2]
    assert all(math.isnan(row["cosine_task_vectors"]) for row in with_init)


# --- stage 3: LITI -----------------------------------------------------------------------------


def test_liti_endpoints_are_bit_for_bit() -> None:
    init, policy = tensors(0, 1e3), tensors(1, 1e-3)
    init["lm_head.weight"][0, 0] = policy["lm_head.weight"][0, 0] = -0.0
    assert same_bits(interpolate(init, policy, 0), init)
    assert same_bits(interpolate(init, policy, 1), policy)


@pytest.mark.parametrize("eta", [0.1, 0.3, 0.5, 0.8, 1.5, 2.0])
def test_liti_is_linear_and_extrapolates(eta: float) -> None:
    init, policy = tensors(0), tensors(1)
    moved = task_vector(interpolate(init, policy, eta), init)
    torch.testing.assert_close(moved, eta * task_vector(policy, init), atol=1e-5, rtol=0)


def test_liti_twice_is_liti_of_the_product() -> None:
    init, policy = tensors(0), tensors(1)
    twice = interpolate(init, interpolate(init, policy, 0.5), 0.6)
    assert_close(twice, interpolate(init, policy, 0.3))


@pytest.mark.parametrize("eta", [-0.1, 2.1, math.nan])
def test_liti_refuses_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        interpolate(tensors(0), tensors(1), eta)


def test_liti_refuses_another_architecture() -> None:
    with pytest.raises(ValueError, match="missing"):
        interpolate(tensors(0), tensors(1, names=NAMES[:2]), 0.5)
