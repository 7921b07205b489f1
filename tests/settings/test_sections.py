"""The models are the one source: of the default config, and of what scripts are told."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import pytest
import write_config_docs
import yaml
from pydantic import TypeAdapter, ValidationError

import warpflow.settings
from warpflow.merging.methods import METHODS
from warpflow.pipeline.code_files import code_files
from warpflow.settings.base import described, named_in
from warpflow.settings.config import LEFT_OUT, Config
from warpflow.settings.estimate_optimum import OptimumSettings
from warpflow.settings.evaluate_policy import EvaluationSettings
from warpflow.settings.merge_policies import MergePolicies
from warpflow.settings.train_policy import ReinforceSettings, TrainPolicy
from warpflow.settings.train_reward_model import TrainRewardModel
from warpflow.settings.train_sft import TrainSft

ROOT = Path(__file__).parents[2]
SECTIONS = {f.name: type(getattr(Config(), f.name)) for f in fields(Config)}
SECTIONS = {name: model for name, model in SECTIONS.items() if is_dataclass(model)}


def test_shipped_files_follow_the_models() -> None:
    write_config_docs.main(["--check"])


def test_the_default_config_holds_the_defaults_of_the_models() -> None:
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    defaults = asdict(Config())
    assert config.pop("experiments")  # data, which the models do not hold
    del defaults["experiments"]
    for name in LEFT_OUT:
        assert not config.get(name)
        config[name] = defaults[name]
    assert config == defaults


def test_defaults_are_valid() -> None:
    """Python does not check a default; this does."""
    TypeAdapter(Config).validate_python(asdict(Config()))


def test_every_setting_is_described() -> None:
    for section, model in SECTIONS.items():
        assert model.__doc__, section
        for name, text in described(model).items():
            assert text.endswith((".", "…")), f"{section}.{name}: {text!r}"


def test_lines_of_the_default_config_fit_a_screen() -> None:
    lines = (ROOT / "config/config.yaml").read_text().splitlines()
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    "model",
    [
        ReinforceSettings,
        OptimumSettings,
        EvaluationSettings,
        TrainSft,
        TrainRewardModel,
        MergePolicies,
        SECTIONS["generate_data"],
        SECTIONS["benchmark_policy"],
    ],
)
def test_what_may_be_null_is_null_unless_given(model: type) -> None:
    """Rules leave a setting that is null out of the flags, so that its default stands for it."""
    instance = model()
    for name, field in model.__pydantic_fields__.items():  # type: ignore[attr-defined]
        try:
            model(**{name: None})
        except ValidationError:
            continue
        assert getattr(instance, name) is None, field


def test_one_run_is_told_the_section_and_how_the_policy_samples() -> None:
    own = set(described(ReinforceSettings)) - set(described(TrainPolicy))
    assert own == {"max_new_tokens", "temperature"} < set(described(SECTIONS["policy"]))


def test_methods_are_those_of_the_code_in_order() -> None:
    schema = TypeAdapter(MergePolicies).json_schema()["properties"]["method"]
    assert schema["enum"] == list(METHODS)


def test_names_of_a_new_method_are_read_without_running_the_code(tmp_path: Path) -> None:
    code = tmp_path / "methods.py"
    code.write_text("import no_such_module\nA = 1\nNAMES: dict = {'one': f, 'two': g}\n")
    check = named_in(str(code), "NAMES")[0].func
    assert check("two") == "two"
    with pytest.raises(ValueError, match="one of one, two"):
        check("three")
    with pytest.raises(ValueError, match=r"methods.py: expected a dict or tuple OTHER"):
        named_in(str(code), "OTHER")


def test_a_section_that_others_do_not_need_is_no_code_of_their_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    prefix = "workflow/warpflow/settings/"
    for script, files in {
        "train_sft": {"train_sft", "supervised"},
        "train_reward_model": {"train_reward_model", "supervised"},
        "merge_policies": {"merge_policies"},
        "evaluate_front": {"evaluate_policy", "rewards", "sampling"},
        "estimate_optimum": {"estimate_optimum", "rewards", "sampling"},
        "generate_data": {"generate_data"},
        "plot_fronts": {"figures"},
    }.items():
        used = {Path(f).stem for f in code_files(script) if f.startswith(prefix)}
        assert used - {"base", "__init__"} == files, script


def test_settings_import_no_library_code() -> None:
    for module in pkgutil.iter_modules(warpflow.settings.__path__):
        path = importlib.import_module(f"warpflow.settings.{module.name}").__file__
        for node in ast.walk(ast.parse(Path(str(path)).read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("warpflow"):
                assert str(node.module).startswith("warpflow.settings"), path


def test_settings_do_not_load_torch() -> None:
    program = "import sys, warpflow.settings.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
