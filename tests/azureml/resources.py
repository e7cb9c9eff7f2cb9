"""What control plane handlers share: resources in ARM's form and lists in pages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.azureml.state import now
from tests.azureml.web import Answer, Request

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

PROVIDER = "Microsoft.MachineLearningServices"
W = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{ws}"
"""The start of every path of the control plane."""

ARM = "https://management.azure.com"
DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?")
LONG_URI = re.compile(r"azureml://(?:subscriptions/.+?/workspaces/[^/]+/)?datastores/([^/]+)/paths/(.*)")


def system_data(created: str | None = None) -> dict[str, Any]:
    """Returns who and when, as every resource has it."""
    when = created or now()
    return {"createdAt": when, "createdBy": "Stand-in", "createdByType": "User", "lastModifiedAt": when,
            "lastModifiedBy": "Stand-in", "lastModifiedByType": "User"}  # fmt: skip


def resource(cloud: Cloud, kind: str, path: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Returns a resource of the workspace.

    :param kind: Type below the workspace, for example ``data/versions``.
    :param path: Path below the workspace, for example ``data/images/versions/1``.
    """
    return {
        "id": f"{cloud.workspace.prefix}/{path}",
        "name": path.rpartition("/")[2],
        "type": f"{PROVIDER}/workspaces/{kind}",
        "properties": properties,
        "systemData": system_data(),
    }


def paged(cloud: Cloud, request: Request, items: list[Any]) -> Answer:
    """Returns one page of a list, with the address of the next one."""
    start = int(request.query.get("$skip", 0))
    size = min(cloud.page_size, int(request.query.get("$top", cloud.page_size)))
    body: dict[str, Any] = {"value": items[start : start + size]}
    if start + size < len(items) and "$top" not in request.query:
        base = re.sub(r"([?&])\$skip=\d+&?", r"\1", request.target).rstrip("?&")
        separator = "&" if "?" in base else "?"
        body["nextLink"] = f"https://{request.host}{base}{separator}$skip={start + size}"
    return Answer(body)


def long_uri(cloud: Cloud, uri: str) -> str:
    """Returns the address of data on a datastore in the long form in which the service answers."""
    match = LONG_URI.fullmatch(uri)
    if not match:
        return uri
    workspace = cloud.workspace
    where = f"subscriptions/{workspace.subscription_id}/resourcegroups/{workspace.resource_group}"
    return f"azureml://{where}/workspaces/{workspace.name}/datastores/{match[1]}/paths/{match[2]}"


def seconds(duration: str | None) -> float:
    """Returns how long a duration is that is written like ``PT1H30M``; for ever if there is none."""
    match = DURATION.fullmatch(duration or "")
    if match is None:
        return float("inf")
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))
