"""What is looked at when a run has done everything that it was asked to: are the results what somebody expects?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from health_ml.backends.azureml_job import JobFacts, stored_files
from health_ml.environment import process_environment
from health_ml.errors import HimlError, PlanError, RegressionTestError, did_you_mean
from health_ml.lightning_container import LightningContainer
from health_ml.settings import ENV_PRIMARY_METRIC


def problem_of_results(
    container: LightningContainer, outputs: Path, metrics: Mapping[str, float], *, job: JobFacts | None
) -> HimlError | None:
    """Returns why the results of a run are not what they should be, or None. Writes the metrics to compare before.

    :param job: What the run knows about itself if it is a job in AzureML.
    """
    try:
        _check_primary_metric(process_environment().get(ENV_PRIMARY_METRIC, ""), metrics)
        _compare_with_expected_results(container, outputs, metrics, job=job)
    except (RegressionTestError, PlanError) as error:
        return error
    return None


def _check_primary_metric(name: str, metrics: Mapping[str, float]) -> None:
    """Raises an error if a search is about a metric that its trial has not logged: it would run blindly to its end."""
    if name and name not in metrics:
        raise PlanError(
            f"The search is about the metric {name!r}, and this trial has logged only {', '.join(sorted(metrics))}.",
            f"{did_you_mean(name, metrics)} Set --primary_metric to one of them.".strip(),
        )


def _compare_with_expected_results(
    container: LightningContainer, outputs: Path, metrics: Mapping[str, float], *, job: JobFacts | None
) -> None:
    if container.regression_metrics:
        from health_ml.training.regression import write_regression_metrics

        write_regression_metrics(container.regression_metrics, metrics, outputs)
    folder = container.regression_test_folder
    # The expected results of a cross-validation are those of its first fold.
    if folder is None or (container.is_running_crossval and container.crossval_index):
        return
    from health_ml.training.regression import compare_folders_and_run_outputs  # few runs need it

    tolerance = container.regression_test_csv_tolerance
    with stored_files(job, process_environment()) as (run, parent):
        compare_folders_and_run_outputs(folder, outputs, tolerance, run=run, parent_run=parent)
