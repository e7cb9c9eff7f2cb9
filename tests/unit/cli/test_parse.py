"""From a command line to a container: precedence, sources, and everything that can be wrong, all at once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_ml.cli.parse import ParsedCommand, parse
from health_ml.deep_learning_config import LRSchedulerType, OptimizerType
from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError, ContainerError, HimlError, ModelSearchError, PlanError
from health_ml.experiment_config import DebugDDPOptions, ExperimentConfig, RunnerMode
from tests.helpers.police import REPOSITORY
from tests.unit.cli import sample_containers
from tests.unit.cli.sample_containers import Colour

MODULE = "tests.unit.cli.sample_containers"


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the model makes the current folder importable, and only the runner takes that back."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def parsed(*arguments: str, model: str = "Everything", folder: Path = REPOSITORY) -> ParsedCommand:
    return parse([f"--model={MODULE}.{model}", *arguments], start_directory=folder)


def container(*arguments: str, **kwargs: Any) -> Any:
    return parsed(*arguments, **kwargs).container


# --- values -----------------------------------------------------------------------------------------------------------


def test_syntaxes_that_users_of_hi_ml_know() -> None:
    result = container(
        "--max_epochs",
        "5",
        "--pl_limit_val_batches=0.5",
        "--use_mixed_precision=false",
        "--hyperdrive",
        "no",
        "--adam_betas=0.9,0.99",
        "--l_rate_scheduler=cosine",
        "--optimizer_type=sgd",
        "--l_rate_multi_step_milestones=5,10",
        "--local_datasets=/x,/y",
        "--azure_datasets=a,b",
    )
    assert result.max_epochs == 5
    assert result.pl_limit_val_batches == 0.5
    assert result.use_mixed_precision is False
    assert result.hyperdrive is False
    assert result.adam_betas == (0.9, 0.99)
    assert result.l_rate_scheduler is LRSchedulerType.Cosine
    assert result.optimizer_type is OptimizerType.SGD
    assert result.l_rate_multi_step_milestones == [5, 10]
    assert result.local_datasets == [Path("/x"), Path("/y")]


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--a_switch"], True),
        (["--a-switch"], True),
        (["--a_switch", "Yes"], True),
        (["--a_switch=off"], False),
        (["--a_switch", "--no-a_switch"], False),
        (["--no_a_switch", "--a_switch"], True),
        (["--no-a-switch"], False),
    ],
)
def test_switches(flags: list[str], value: bool) -> None:
    assert container(*flags).a_switch is value


def test_a_switch_that_is_on_can_be_given_bare() -> None:
    assert container("--a_true_switch").a_true_switch is True


def test_the_last_occurrence_wins_even_over_a_wrong_one() -> None:
    assert container("--an_integer=x", "--an_integer=4", "--a_colour=blue", "--a-colour", "red").an_integer == 4


def test_negative_numbers_after_a_space() -> None:
    result = container("--a_count_or_share", "-1e-3", "--max_num_gpus", "-1")
    assert (result.a_count_or_share, result.max_num_gpus) == (-1e-3, -1)


@pytest.mark.parametrize(("text", "value"), [("4", 4), ("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("None", None)])
def test_batch_limits_tell_one_batch_from_all_batches(text: str, value: float | None) -> None:
    result = container(f"--pl_limit_train_batches={text}").pl_limit_train_batches
    assert (type(result), result) == (type(value), value)


def test_an_empty_number_is_the_default() -> None:
    result = parsed("--pl_limit_val_batches=", "--an_integer=")
    assert result.container.pl_limit_val_batches is None  # type: ignore[unreachable]
    assert result.sources["pl_limit_val_batches"] == "default"


def test_a_learning_rate_stays_a_float() -> None:
    assert isinstance(container("--l_rate=1").l_rate, float)


def test_enums_by_name_paths_and_user_types() -> None:
    result = container("--a_colour=Colour.DARK_BLUE", "--an_even=4", "--a_temperature=25C", "--debug_ddp=off")
    assert (result.a_colour, result.an_even.number, result.a_temperature) == (Colour.DARK_BLUE, 4, 25.0)


def test_relative_paths_are_relative_to_where_the_command_was_typed(tmp_path: Path) -> None:
    flags = ["--a_path=a", "--some_paths=b,/c", "--output_to=out", "--local_datasets=d", "--src_checkpoint=x.ckpt"]
    result = parse([f"--model={MODULE}.Everything", *flags], start_directory=tmp_path).container
    assert result.a_path == tmp_path / "a"  # type: ignore[attr-defined]
    assert result.some_paths == [tmp_path / "b", Path("/c")]  # type: ignore[attr-defined]
    assert result.output_to == tmp_path / "out"
    assert result.local_datasets == [tmp_path / "d"]
    assert str(result.src_checkpoint) == "x.ckpt"  # may be the id of a run; who fetches it knows where it was typed


def test_home_folder() -> None:
    assert container("--a_path=~/x").a_path == Path.home() / "x"


def test_experiment_config_reaches_the_container() -> None:
    result = parsed("--mode=EVAL_FULL", "--src_checkpoint=run_1", "--debug_ddp=DETAIL", "--log-level=warn")
    assert result.experiment_config.debug_ddp is DebugDDPOptions.DETAIL
    assert result.container.runner_mode is RunnerMode.EVAL_FULL
    assert result.container.num_nodes == 1
    assert result.argv[1:] == ("--mode=EVAL_FULL", "--src_checkpoint=run_1", "--debug_ddp=DETAIL", "--log-level=warn")


# --- precedence and sources -------------------------------------------------------------------------------------------


def test_sources_of_a_container_with_presets() -> None:
    result = parsed("--weight_decay=0", model="Preset")
    assert {name: result.sources[name] for name in ("max_epochs", "l_rate", "weight_decay", "momentum", "mode")} == {
        "max_epochs": "container Preset",
        "l_rate": "container Preset",
        "weight_decay": "command line",
        "momentum": "default",
        "mode": "default",
    }
    assert result.container.output_to == REPOSITORY / "results"


def test_command_line_over_file_over_variant_over_container(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a_temperature: 30C\nan_integer: 4\na_text: file\n")
    (tmp_path / "b.yaml").write_text("an-integer: 5\n")
    flags = ["--config", "a.yaml", "--config=b.yaml", "--model_variant=hot", "--a_text=flag", "--a_text_or_none=None"]
    model = f"--model={MODULE}.Everything"
    result = parse([*flags, model], start_directory=tmp_path)
    own: Any = result.container
    assert (own.a_text, own.an_integer, own.a_temperature, own.some_texts) == ("flag", 5, 30.0, ["p", "hot"])
    names = ("a_text", "an_integer", "a_temperature", "some_texts", "a_number", "max_epochs")
    assert [result.sources[name] for name in names] == [
        "command line",
        "config file b.yaml",
        "config file a.yaml",
        "model variant hot",
        "container Everything",
        "default",
    ]


def test_update_experiment_config_sees_the_flags_and_loses_against_them() -> None:
    result = parsed("--share=0.25", "--tracking_uri=http://localhost", model="Mover")
    assert result.experiment_config.tracking_uri == "http://localhost"
    assert result.experiment_config.docker_shm_size == "1g"
    assert result.container.share == 0.25  # type: ignore[attr-defined]
    assert result.sources["tracking_uri"] == "command line"
    assert result.sources["docker_shm_size"] == "update_experiment_config"


def test_update_experiment_config_changes_what_was_not_given() -> None:
    result = parsed(model="Mover")
    assert result.experiment_config.tracking_uri == "none-0.5"
    assert result.sources["tracking_uri"] == "update_experiment_config"


def test_a_parameter_named_like_a_flag_of_the_runner_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="health_ml"):
        result = parsed(model="Namesake")
    assert result.container.config == "mine"  # type: ignore[attr-defined]
    assert "Namesake declares parameters with the names of flags of the runner: config." in caplog.text


# --- mistakes ---------------------------------------------------------------------------------------------------------


def problems_of(*arguments: str, model: str = "Everything") -> str:
    with pytest.raises(ArgumentsError, match=r".") as caught:
        parsed(*arguments, model=model)
    return str(caught.value)


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    text = problems_of(
        "stray",
        "--max_epochs=0",
        "--an_integer=11",
        "--a_number=x",
        "--a_colour=green",
        "--an_even=3",
        "--a_temperature=-300",
        "--num_nodes=0",
        "--mode=test",
        "--max_epoch=3",
        "--unheard-of",
        "--a_text",
        "--no-a_switch=1",
        "--config",
        "--trainer.device=2",
        "--trainer.logger=x",
        "--trainer.limit_val_batches=3",
    )
    for expected in (
        "17 things are wrong",
        "Unexpected argument 'stray'",
        "--max_epochs=0: Parameter 'max_epochs' must be at least 1, not 0.",
        "--an_integer=11: Parameter 'an_integer' must be at most 10, not 11.",
        "--a_number=x: it takes a number.",
        "--a_colour=green: it takes red or blue.",
        "--an_even=3: 3 is odd, and only even numbers make pairs",
        "--a_temperature=-300: -300.0 degrees is below absolute zero",
        "--num_nodes=0: Parameter 'num_nodes' must be at least 1, not 0.",
        "--mode=test: it takes train or eval_full.",
        "Unknown flag --max_epoch. Did you mean --max_epochs?",
        "Unknown flag --unheard-of.",
        "--a_text: needs a value: --a_text=TEXT.",
        "--no-a_switch=1: a flag that starts with --no takes no value.",
        "--config needs a value: --config=FILE.yaml.",
        "--trainer.device=2: the Lightning Trainer has no argument 'device'. Did you mean 'devices'?",
        "--trainer.limit_val_batches=3: this argument of the Trainer has a flag of its own, use "
        "--pl_limit_val_batches.",
        f"See himl-runner --model={MODULE}.Everything --help.",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--adam_betas=1.5,2", "takes numbers of at least 0 and below 1, not 1.5"),
        ("--adam_betas=nan,0.9", "takes numbers of at least 0 and below 1, not nan"),
        ("--adam_betas=0.9", "it takes 2 numbers of at least 0 and below 1, separated by commas"),
        ("--opt_eps=-1", "must be at least 0, not -1"),
        ("--weight_decay=-1", "must be at least 0, not -1"),
        ("--weight_decay=nan", "it takes a number, at least 0"),
        ("--momentum=-1", "must be at least 0, not -1"),
        ("--rms_alpha=2", "must be at most 1, not 2"),
        ("--l_rate_polynomial_gamma=-5", "must be at least 0, not -5"),
        ("--l_rate_exponential_gamma=nan", "it takes a number, at least 0"),
        ("--l_rate_exponential_gamma=-2", "must be at least 0, not -2"),
        ("--l_rate_step_gamma=-0.5", "must be at least 0, not -0.5"),
        ("--l_rate_multi_step_gamma=-0.5", "must be at least 0, not -0.5"),
        ("--l_rate_step_step_size=0", "must be at least 1, not 0"),
        ("--l_rate=1e400", "takes finite numbers, not inf"),
        ("--l_rate=-inf", "takes finite numbers, not -inf"),
        ("--pl_limit_val_batches=inf", "takes finite numbers, not inf"),
        ("--pl_limit_val_batches=nan", "it takes a number, at least 0"),
        ("--max_num_gpus=-2", "must be at least -1, not -2"),
        ("--max_num_gpus_inference=-2", "must be at least -1, not -2"),
        ("--max_epochs=99999999999999999999", "must be at most 1000000000, not 99999999999999999999"),
        ("--sweep=adam_betas='0.9,0.99','1.5,2'", "takes numbers of at least 0 and below 1, not 1.5"),
        ("--sweep=momentum=0.5,-1", "must be at least 0, not -1"),
    ],
)
def test_numbers_out_of_range(flag: str, message: str) -> None:
    with pytest.raises(HimlError, match=r".") as caught:
        parsed(flag)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_there_are_no_abbreviations() -> None:
    assert "Unknown flag --max_e. Did you mean --max_epochs?" in problems_of("--max_e=5")
    assert "Unknown flag --num. Did you mean --num_nodes?" in problems_of("--num=3")


def test_a_trainer_argument_without_prefix_is_explained() -> None:
    assert "Did you mean --trainer.gradient_clip_val" in problems_of("--gradient_clip_val=1")
    assert "Did you mean --pl_limit_val_batches?" in problems_of("--limit_val_batches=3")


def test_a_word_after_a_switch_that_is_not_on_or_off() -> None:
    assert "Unexpected argument 'maybe'" in problems_of("--a_switch", "maybe")


def test_missing_model() -> None:
    expected = "Parameter 'model' needs to be set to specify which model to run. Try --model=HelloWorld"
    with pytest.raises(ArgumentsError, match=expected):
        parse([], start_directory=REPOSITORY)


def test_missing_model_and_other_mistakes() -> None:
    with pytest.raises(ArgumentsError, match=r"(?s)--num_nodes=0.*Parameter 'model' needs to be set"):
        parse(["--num_nodes=0"], start_directory=REPOSITORY)


def test_misspelt_model() -> None:
    with pytest.raises(ModelSearchError, match="HelloWorld"):
        parse(["--model=HelloWorlt"], start_directory=REPOSITORY)


def test_misspelt_model_and_other_mistakes() -> None:
    with pytest.raises(ArgumentsError, match=r"(?s)--mode=x: it takes.*HelloWorlt"):
        parse(["--model=HelloWorlt", "--mode=x"], start_directory=REPOSITORY)


def test_unknown_variant() -> None:
    assert problems_of("--model_variant=cold") == "There is no variant called cold, only hot."


def test_users_own_validation() -> None:
    assert problems_of("--a_text=forbidden") == "a_text must not be forbidden"


def test_validation_and_contradictions_together() -> None:
    text = problems_of("--run_inference_only", "--max_epochs=3")
    assert "Cannot run inference without a src_checkpoint" in text
    assert "--max_epochs has no effect with --run_inference_only" in text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["--", "--no-", "--trainer.", ""]),
            st.sampled_from(sorted(sample_containers.Everything.param)) | st.text(max_size=5),
            st.sampled_from(["", "="]),
            st.text(max_size=6),
        ).map("".join),
        max_size=4,
    )
)
def test_nothing_but_a_himl_error_comes_out(argv: list[str]) -> None:
    assume_is_a_run = [token for token in argv if not token.startswith("--config")]
    try:
        parsed(*assume_is_a_run)
    except HimlError as error:
        assert error.exit_code == 2  # noqa: PT017


@pytest.mark.parametrize(
    "name",
    [
        "max_epochs", "random_seed", "num_nodes", "a_number", "a_path", "cluster", "max_run_duration", "tag",
        "log_level", "workspace_config_path", "src_checkpoint", "early_termination", "sampling",
    ],
)  # fmt: skip
def test_what_is_left_empty_changes_nothing_and_is_said_aloud(name: str, caplog: pytest.LogCaptureFixture) -> None:
    result = parsed(f"--{name}=")
    assert "command line" not in result.sources.get(name, "")
    assert caplog.messages == [f"--{name}= is empty and changes nothing. Is a variable of the shell not set?"]


def test_what_is_left_empty_leaves_what_was_said_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "some.yaml").write_text("max_epochs: 3\ntag: from the file\nexperiment: ''\n")
    result = parsed("--config=some.yaml", "--max_epochs=", "--tag", "", folder=tmp_path)
    assert (result.container.max_epochs, result.container.tag, result.container.experiment) == (3, "from the file", "")
    assert [message.partition(" is empty")[0] for message in caplog.messages] == ["--max_epochs=", "--tag "]


def test_an_empty_text_where_there_is_another_by_default(caplog: pytest.LogCaptureFixture) -> None:
    assert container("--a_text=").a_text == ""
    assert caplog.messages == []


def test_an_empty_argument_of_the_trainer(caplog: pytest.LogCaptureFixture) -> None:
    assert container("--trainer.gradient_clip_val=").trainer_argument_overrides == {}
    (message,) = caplog.messages
    assert message.startswith("--trainer.gradient_clip_val= is empty and changes nothing.")


# --- arguments of the Trainer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--trainer.gradient_clip_val=0.5"], "gradient_clip_val", 0.5),
        (["--trainer.gradient-clip-val", "1e-3"], "gradient_clip_val", 1e-3),
        (["--trainer.devices=2"], "devices", 2),
        (['--trainer.val_check_interval={"minutes": 30}'], "val_check_interval", {"minutes": 30}),
        (["--trainer.accelerator=cpu"], "accelerator", "cpu"),
        (["--trainer.precision=16-mixed"], "precision", "16-mixed"),
        (["--trainer.max_time=00:12:00:00"], "max_time", "00:12:00:00"),
        (["--trainer.enable_model_summary"], "enable_model_summary", True),
        (["--trainer.enable_model_summary", "false"], "enable_model_summary", False),
        (["--trainer.max_time=none"], "max_time", None),
    ],
)
def test_trainer_arguments(flags: list[str], name: str, value: Any) -> None:
    result = parsed(*flags)
    assert result.container.trainer_argument_overrides == {name: value}
    assert type(result.container.trainer_argument_overrides[name]) is type(value)
    assert result.sources[f"trainer.{name}"] == "command line"


def test_values_that_the_trainer_refuses_are_named_with_all_else_that_is_wrong() -> None:
    text = problems_of("--trainer.precision=99", "--trainer.gradient_clip_val=abc", "--trainer.min_steps=1",
                       "--docker_shm_size=1g")  # fmt: skip
    assert text.startswith("3 things are wrong with the arguments:")
    assert "--docker_shm_size has no effect on this machine" in text
    assert "--trainer.precision=99: the Lightning Trainer refuses it: Precision 99 is invalid" in text
    assert "--trainer.gradient_clip_val=abc: the Lightning Trainer refuses it: `gradient_clip_val` should be" in text
    assert "min_steps" not in text


def test_values_that_the_trainer_refuses_only_together_are_named_together() -> None:
    text = problems_of("--trainer.overfit_batches=2", "--trainer.devices=1", "--trainer.val_check_interval=0.5",
                       "--trainer.accelerator=cpu", "--trainer.strategy=fsdp")  # fmt: skip
    assert "--trainer.strategy=fsdp" in text
    assert "the Lightning Trainer refuses it" in text


@pytest.mark.parametrize(
    "flag", ["--max_epochs=3", "--pl_limit_train_batches=2", "--autosave_every_n_val_epochs=2", "--trainer.max_steps=3"]
)
def test_flags_without_effect_in_a_trial_run(flag: str) -> None:
    assert f"{flag.split('=')[0]} has no effect with --pl_fast_dev_run" in problems_of("--pl_fast_dev_run=1", flag)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer.callbacks=x", "return them from get_callbacks"),
        ("--trainer.num_nodes=2", "use --num_nodes"),
        ("--trainer.default_root_dir=x", "use --output_to"),
        ("--trainer.devices", "needs a value"),
        ("--trainer.gpus=1", "Use devices and accelerator"),
        ("--trainer.enable_progress_bar=false", "use --pl_progress_bar_refresh_rate"),
        ("--trainer.devices=[1", "it is not JSON"),
        ("--trainer.max_time=1", "max_time takes days:hours:minutes:seconds like 00:12:00:00, or a mapping"),
        ("--trainer=5", "--trainer=5: this name takes arguments of the Lightning Trainer, for example --trainer.max"),
    ],
)
def test_trainer_arguments_that_are_refused(flag: str, message: str) -> None:
    assert message in problems_of(flag)


def test_trainer_arguments_do_not_clash_with_flags() -> None:
    text = problems_of("--trainer.devices=2", "--max_num_gpus=1")
    assert text.startswith("--max_num_gpus and --trainer.devices decide the same thing")


# --- flags without effect ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wait_for_completion"], "--wait_for_completion has no effect on this machine"),
        (["--docker_shm_size=1g", "--conda_env=e.yml"], "--conda_env and --docker_shm_size have no effect"),
        (["--dataset_mountpoints=/mnt/x"], "--dataset_mountpoints has no effect on this machine"),
        (["--regression_test_csv_tolerance=0.1"], "no effect without --regression_test_folder"),
        (["--trust_checkpoint"], "it needs --src_checkpoint with --resume_training"),
        (["--trust_checkpoint", "--src_checkpoint=a/b.ckpt"], "loads trained_weights_path itself decides how"),
        (["--num_nodes=2"], "--num_nodes=2 would wait for ever"),
        (
            ["--datastore=blobs", "--azure_datasets=a", "--local_datasets=/x"],
            "--datastore has no effect on this machine",
        ),
        (["--mode=eval_full"], "To use model evaluation, you need to provide a checkpoint"),
        (["--mode=eval_full", "--src_checkpoint=x", "--max_epochs=2"], "--max_epochs has no effect with --mode"),
        (["--mode=eval_full", "--src_checkpoint=x", "--pl_limit_val_batches=2"], "which only tests"),
        (["--mode=eval_full", "--src_checkpoint=x", "--pl_limit_test_batches=0"], "--mode=eval_full nothing to do"),
        (["--pl_limit_train_batches=0"], "greater than 0, not 0"),
        (["--pl_limit_val_batches=0", "--run_extra_val_epoch"], "no effect with --pl_limit_val_batches=0"),
        (["--pl_limit_val_batches=0", "--pl_num_sanity_val_steps=2"], "no effect with --pl_limit_val_batches=0"),
        (
            ["--run_inference_only", "--src_checkpoint=x", "--pl_limit_val_batches=0", "--pl_limit_test_batches=0"],
            "leave --run_inference_only nothing to do",
        ),
        (["--mode=eval_full", "--src_checkpoint=x", "--run_inference_only"], "contradict each other"),
        (["--run_inference_only", "--src_checkpoint=x", "--l_rate=2"], "--l_rate has no effect with"),
        (["--run_inference_only", "--src_checkpoint=x", "--pl_log_every_n_steps=2"], "n_steps has no effect with"),
        (["--run_inference_only", "--src_checkpoint=x", "--max_num_gpus=0"], "those of --max_num_gpus_inference"),
        (["--run_inference_only", "--src_checkpoint=x", "--trainer.devices=2"], "--trainer.devices has no effect with"),
        (["--log_from_vm", "--tracking_uri=none"], "--log_from_vm and --tracking_uri contradict each other"),
        (["--log_from_vm", "--cluster=local"], "--log_from_vm has no effect with --cluster"),
        (["--cluster=gpu", "--strictly_aml_v1"], "--strictly_aml_v1 has no effect with --cluster=gpu"),
        (["--cluster=gpu", "--sweep=an_integer=1,2", "--fail_fast"], "--fail_fast has no effect with --cluster=gpu"),
        (["--cluster=gpu", "--output_to=x"], "--output_to has no effect with --cluster=gpu"),
        (["--cluster=gpu", "--src_checkpoint=environment.yml"], "is a file of this machine, which a job there cannot"),
        (["--hyperdrive"], "--hyperdrive: Everything defines no search"),
        (["--different_seeds=2", "--random_seed=1"], "--random_seed is given and varied by --different_seeds=2"),
        (["--sweep=an_integr=1,2"], "Did you mean 'an_integer' or"),
        (["--sweep=an_integer=1,99"], "--an_integer=99: "),
        (["--sweep=a_colour=red,green"], "--a_colour=green: "),
        (["--sweep=an_integer=1.."], "a range without end"),
        (["--sweep=a_number=uniform(0,1)"], "a_number may take any value of a range"),
        (["--sampling=random"], "--sampling=random has no effect without a search"),
        (["--early_termination=median_stopping"], "--early_termination=median_stopping has no effect without a search"),
        (
            ["--early_termination=bandit( slack_factor=0.1,delay_evaluation=3 )"],
            "--early_termination=bandit(delay_evaluation=3, slack_factor=0.1) has no effect without a search",
        ),
        (["--cluster=gpu", "--interactive_services=foo"], "list of jupyter, vscode, tensorboard or ssh"),
        (["--max_concurrent_trials=2"], "--max_concurrent_trials=2 has no effect without a search"),
        (["--fail_fast"], "--fail_fast has no effect on a single run"),
        (["--sweep=an_integer=1,2", "--early_termination=bandit"], "needs either slack_factor or slack_amount"),
        (["--cluster=lcal:x"], "there is no back end 'lcal'. Did you mean 'local'?"),
        (["--cluster=local", "--docker_shm_size=1g"], "--docker_shm_size has no effect with --cluster=local"),
        (["--max_snapshot_mb=1"], "--max_snapshot_mb has no effect on this machine"),
    ],
)
def test_nothing_that_was_typed_is_ignored(flags: list[str], message: str) -> None:
    with pytest.raises(HimlError, match=r".") as caught:
        parsed(*flags)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("--sweep=hub_token=sweepTok3nABCDEF123456,b address=x,y", "hub_token"),
        ("--fan_out={'parameters': {'hub_token': ['sweepTok3nABCDEF123456', 'b'], 'pin_password': [1, 2]}}",
         "hub_token, pin_password"),
        ("--sweep=address='https://me:sweepTok3nABCDEF123456@host',x", "address"),
    ],
)  # fmt: skip
def test_a_search_over_secrets_is_refused(flag: str, names: str) -> None:
    with pytest.raises(PlanError, match=f"and those of {names} are secrets") as caught:
        parse([f"--model={MODULE}.Hub", flag], start_directory=REPOSITORY)
    assert "sweepTok3nABCDEF123456" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_search_over_what_only_sounds_secret_is_none() -> None:
    parsed_hub = parse([f"--model={MODULE}.Hub", "--sweep=pad_token=a,b"], start_directory=REPOSITORY)
    assert parsed_hub.search_space is not None


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-wait_for_completion", "--hyperdrive=false", "--different_seeds=0", "--crossval_count=1"],
        ["--crossval_count=5", "--crossval_index=4"],
        ["--run_inference_only", "--src_checkpoint=x", "--pl_limit_test_batches=2", "--no-run_extra_val_epoch"],
        ["--run_inference_only", "--src_checkpoint=x", "--pl_limit_val_batches=0"],
        ["--pl_limit_val_batches=0", "--pl_limit_test_batches=0"],
        ["--azure_datasets=a", "--local_datasets=/x"],
    ],
)
def test_what_has_an_effect_is_accepted(flags: list[str]) -> None:
    assert parsed(*flags).sources


def test_several_nodes_are_fine_where_somebody_started_them() -> None:
    environment = RunEnvironment(world_size=2, main_address="host")
    argv = [f"--model={MODULE}.Everything", "--num_nodes=2"]
    assert parse(argv, start_directory=REPOSITORY, environment=environment).container.num_nodes == 2


def test_flags_of_a_job_are_fine_inside_the_job() -> None:
    environment = RunEnvironment(is_in_azureml=True)
    argv = [f"--model={MODULE}.Everything", "--cluster=gpu", "--docker_shm_size=1g", "--azure_datasets=a"]
    assert parse(argv, start_directory=REPOSITORY, environment=environment).experiment_config.cluster == "gpu"


def test_the_container_that_cannot_be_built(tmp_path: Path) -> None:
    text = "from health_ml.lightning_container import LightningContainer\n\n\nclass Broken(LightningContainer):\n"
    text += "    def __init__(self):\n        super().__init__()\n        1 / 0\n"
    (tmp_path / "cli_broken_container.py").write_text(text)
    with pytest.raises(ContainerError, match="division by zero"):
        parse(["--model=cli_broken_container.Broken"], start_directory=tmp_path)


def test_every_experiment_flag_has_a_source() -> None:
    assert set(ExperimentConfig.param) - {"name"} <= set(parsed().sources)
