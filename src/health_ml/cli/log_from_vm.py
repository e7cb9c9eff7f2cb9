"""``--log_from_vm``: a training on a machine outside AzureML that logs to a run in AzureML."""

from __future__ import annotations

from health_ml.cli.parse import ParsedCommand
from health_ml.environment import Place, process_environment, set_environment_variables
from health_ml.errors import EXIT_USAGE, exiting_with
from health_ml.settings import ENV_AUTH


def log_to_workspace(parsed: ParsedCommand, place: Place) -> None:
    """Makes the workspace of the user the store that the record is mirrored to.

    :raises WorkspaceError: If no workspace is named, or it cannot be reached.
    :raises AuthenticationError: If nobody can sign in without a person.
    """
    from health_ml.azure.tracking import find_tracking_uri

    config = parsed.experiment_config
    with exiting_with(EXIT_USAGE):  # there is no run yet
        config.tracking_uri = find_tracking_uri(
            process_environment(),
            start_directory=place.start_directory,
            config_path=config.workspace_config_path,
            auth=config.auth_name,
        )
    set_environment_variables({ENV_AUTH: config.auth_name})
