"""Whether the facts that environment variables state can be true."""

from __future__ import annotations

from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError
from health_ml.planning.run_store import is_plain_name
from health_ml.settings import ENV_PROJECT_ROOT, ENV_RUN_ID, ENV_START_DIRECTORY


def check_surroundings(environment: RunEnvironment) -> None:
    """Raises an error unless the folders exist and the id of the run can be one.

    Otherwise a run would make these folders, and write where nobody looks for it.

    :raises ArgumentsError: Naming all variables that are wrong.
    """
    problems = [
        f"{name}={str(folder)!r} is no folder."
        for name, folder in (
            (ENV_START_DIRECTORY, environment.start_directory),
            (ENV_PROJECT_ROOT, environment.project_root),
        )
        if folder is not None and not folder.is_dir()
    ]
    run_id = environment.run_id
    if run_id is not None and not (is_plain_name(run_id) and run_id.isprintable()):
        problems.append(f"{ENV_RUN_ID} or AZUREML_RUN_ID={run_id!r} is no name of a run.")
    if problems:
        raise ArgumentsError(
            f"Environment variables are wrong: {' '.join(problems)}",
            "Unset them: himl-runner sets them for the processes that it starts.",
        )
