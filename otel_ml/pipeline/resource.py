"""Who a process is, as an OpenTelemetry resource.

Also the resource detector `otel_ml`: both launchers name it in
`OTEL_EXPERIMENTAL_RESOURCE_DETECTORS`, so that providers which a program or another
distribution makes say which run and rank they belong to, as ours do.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource, ResourceDetector

from otel_ml import names
from otel_ml.core.identity import resolve

if TYPE_CHECKING:
    from otel_ml.core.identity import Identity

__all__ = ["RunResourceDetector", "resource_of"]


class RunResourceDetector(ResourceDetector):
    """Finds the run by the environment."""

    def detect(self) -> Resource:
        """The run's and the rank's attributes, without a service's name and instance, which are the user's."""
        return Resource(_attributes(resolve(os.environ, sys.orig_argv)))


def resource_of(identity: Identity, extra: dict[str, Any]) -> Resource:
    """The resource of the providers that we make; what the user's environment says wins."""
    given = Resource.create()
    known = {**extra, "telemetry.distro.name": names.SCOPE, **_attributes(identity)}
    if str(given.attributes.get("service.name", "")).startswith("unknown_service"):
        known["service.name"] = identity.run_name
    if "service.instance.id" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        known["service.instance.id"] = identity.instance_id
    return given.merge(Resource(known))


def _attributes(identity: Identity) -> dict[str, Any]:
    known = {
        names.RUN_ID: identity.run_id,
        names.RUN_NAME: identity.run_name,
        names.RUN_ATTEMPT: identity.attempt,
        names.RANK: identity.rank,
        names.LOCAL_RANK: identity.local_rank,
        names.WORLD_SIZE: identity.world_size,
        names.LAUNCHER: identity.launcher,
    }
    return {str(name): value for name, value in known.items() if value is not None}
