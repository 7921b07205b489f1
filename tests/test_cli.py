"""Flags made of models."""

import pytest

from warpflow.cli import parse_arguments
from warpflow.settings.base import section
from warpflow.settings.estimate_optimum import OptimumSettings
from warpflow.settings.merge_policies import MergePolicies
from warpflow.settings.train_policy import ReinforceSettings


@section
class Arguments:
    """Arguments that the tests pass beside settings."""

    out: str
    """Where to; 100 % of it."""
    names: list[str]
    """Some names."""
    extra: dict[str, int] | None = None
    """A mapping."""


NEEDED = ["--out", "a", "--names", "x"]


def test_values_have_the_types_of_the_fields() -> None:
    flags = [
        "--steps",
        "3",
        "--beta",
        "1e-2",
        "--gradient_checkpointing",
        "--lora_rank",
        "2",
        "--extra",
    ]
    arguments, settings = parse_arguments(
        "", [*NEEDED, *flags, '{"a": 1}'], Arguments, ReinforceSettings
    )
    assert (arguments.out, arguments.names, arguments.extra) == ("a", ["x"], {"a": 1})
    assert (settings.steps, settings.beta, settings.lora_rank) == (3, 0.01, 2)
    assert settings.gradient_checkpointing is True
    assert settings.mu == ReinforceSettings().mu


@pytest.mark.parametrize("text", ["True", "true", "False", "false"])
def test_a_truth_value_as_rules_write_it(text: str) -> None:
    (settings,) = parse_arguments("", ["--gradient_checkpointing", text], ReinforceSettings)
    assert settings.gradient_checkpointing is (text.lower() == "true")


@pytest.mark.parametrize(
    ("texts", "value"), [(["auto"], "auto"), (["0.1", "2"], [0.1, 2.0]), (["1"], [1.0])]
)
def test_a_list_or_one_word(texts: list[str], value: object) -> None:
    (settings,) = parse_arguments("", ["--betas", *texts], OptimumSettings)
    assert settings.betas == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bta", "1"], "unrecognized arguments: --bta 1"),
        (["--bet", "1"], "unrecognized arguments: --bet 1"),
        (["--beta", "high"], "argument --beta: got 'high', expected a valid number"),
        (["--beta", "-1"], "argument --beta: got '-1', expected greater than or equal to 0"),
        (["--steps", "1.5"], "argument --steps: got '1.5', expected a valid integer"),
        (["--anchor", "emma"], "argument --anchor: got 'emma', expected one of ema, init"),
        (["--evaluate_weights", "ema", "ema"], "expected no value twice"),
    ],
)
def test_a_bad_flag_is_named(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        parse_arguments("", flags, ReinforceSettings)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_what_has_no_default_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments("", ["--out", "a"], Arguments)
    assert "required: --names" in capsys.readouterr().err


def test_help_has_descriptions_choices_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments("About.", ["--help"], Arguments, ReinforceSettings, MergePolicies)
    text = " ".join(capsys.readouterr().out.split())
    assert "100 % of it." in text
    assert "--baseline none|batch|rloo" in text
    assert "--method slerp|lerp|" in text
    assert "Temperature" not in text
    assert "in training and evaluation. Paper: 0.9. Default: 0.9" in text
