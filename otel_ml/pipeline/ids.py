"""Trace and span ids that are derived from run and step instead of communicated, for our own tracer only."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind, TraceState
    from opentelemetry.util.types import Attributes

__all__ = ["OneShotIds", "RememberingSampler", "SystemIds"]

_REMEMBERED = 4096


class SystemIds(IdGenerator):
    """Random ids from the system's source: the SDK's own draw from `random`, whose seed and state are the user's."""

    def generate_trace_id(self) -> int:
        """128 random bits."""
        return int.from_bytes(os.urandom(16), "big") or 1

    def generate_span_id(self) -> int:
        """64 random bits."""
        return int.from_bytes(os.urandom(8), "big") or 1

    def is_trace_id_random(self) -> bool:
        """True."""
        return True


class OneShotIds(IdGenerator):
    """The next span gets the ids set here; all others those of the provider's own generator."""

    def __init__(self, original: IdGenerator) -> None:
        self.original = SystemIds() if type(original) is RandomIdGenerator else original
        self.trace_id: int | None = None
        self.span_id: int | None = None

    def generate_trace_id(self) -> int:
        """The id set, once, else a generated one."""
        chosen, self.trace_id = self.trace_id, None
        return self.original.generate_trace_id() if chosen is None else chosen

    def generate_span_id(self) -> int:
        """The id set, once, else a generated one."""
        chosen, self.span_id = self.span_id, None
        return self.original.generate_span_id() if chosen is None else chosen

    def is_trace_id_random(self) -> bool:
        """True: hashes are as good, and parents and children must agree on the flag."""
        return True


class RememberingSampler(Sampler):
    """Gives a trace the decision it was given before, so that a step and what is inside it agree."""

    def __init__(self, original: Sampler) -> None:
        self.original = original
        self._decided: OrderedDict[int, SamplingResult] = OrderedDict()

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,  # noqa: ARG002 - the signature is OTel's
    ) -> SamplingResult:
        """The remembered decision, else the original sampler's."""
        known = self._decided.get(trace_id)
        if known is None:
            arguments: dict[str, Any] = {"attributes": attributes, "links": links}
            known = self.original.should_sample(parent_context, trace_id, name, kind, **arguments)
            self._decided[trace_id] = known
            if len(self._decided) > _REMEMBERED:
                self._decided.popitem(last=False)
        return SamplingResult(known.decision, attributes, known.trace_state)

    def get_description(self) -> str:
        """What the original says, and that decisions are remembered."""
        return f"Remembering({self.original.get_description()})"
