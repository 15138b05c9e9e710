"""Sends OTLP requests as bytes, to where and how OpenTelemetry's own variables say, and tells what was answered.

The SDK's exporters take its objects and say only whether it went well. What is sent again
are bytes, and it matters why it did not go well: for how long the endpoint wants to be left
alone, whether it refuses these records, or everything. One request is one try: who calls
decides on the next.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from otel_ml import redact
from otel_ml.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "Sender", "sender"]

_OTEL = {"spans": "TRACES", "logs": "LOGS", "points": "METRICS"}
_PATHS = {"spans": "v1/traces", "logs": "v1/logs", "points": "v1/metrics"}
_METHODS = {
    "spans": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "points": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_TIMEOUT_S = 10.0
_MOST_ANSWER = 1 << 16
_OF_THE_RECORDS = frozenset({400, 413, 422})
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    `taken`: the endpoint has it (but for `rejected` records that it does not name). `later`: try
    again, in `after_s` where the endpoint says so. `refused`: it will not take these records.
    `unwelcome`: it takes nothing as it was asked (credentials, path, method).
    """

    kind: Literal["taken", "later", "refused", "unwelcome"]
    reason: str = ""
    after_s: float | None = None
    rejected: int = 0


class Sender(Protocol):
    """One signal's way to its endpoint."""

    where: str

    def send(self, request: bytes, timeout_s: float | None = None) -> Answer:
        """Send one serialised request; never raises for what an endpoint or a network does."""

    def close(self) -> None:
        """Let connections go."""


def sender(signal: str, environ: Mapping[str, str], endpoint: str | None = None) -> Sender:
    """The way of `spans`, `logs` or `points` by the `OTEL_EXPORTER_OTLP_*` variables in `environ`.

    `endpoint` overrules their endpoints: the base URL, as in `OTEL_EXPORTER_OTLP_ENDPOINT`.

    Raises:
        SettingsError: a value that cannot be, or gRPC without the package it needs; says what to type.
    """
    variables = _Variables(signal, environ)
    protocol = variables.protocol()
    if protocol == "grpc":
        return _Grpc(signal, variables, endpoint)
    if protocol == "http/protobuf":
        return _Http(signal, variables, endpoint)
    message = f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: type 'http/protobuf' or 'grpc'"
    raise SettingsError(message)


class _Variables:
    """`OTEL_EXPORTER_OTLP_*` of one signal: its own where it has one, else that of all."""

    def __init__(self, signal: str, environ: Mapping[str, str]) -> None:
        self._signal = _OTEL[signal]
        self._environ = environ

    def own(self, name: str) -> str:
        """The signal's own."""
        return self._environ.get(f"OTEL_EXPORTER_OTLP_{self._signal}_{name}", "").strip()

    def all(self, name: str) -> str:
        """That of all signals."""
        return self._environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()

    def get(self, name: str) -> str:
        """The one that counts."""
        return self.own(name) or self.all(name)

    def protocol(self) -> str:
        """`grpc` or `http/protobuf`; an exporter that is named tells it, too."""
        named = self._environ.get(f"OTEL_{self._signal}_EXPORTER", "")
        for exporter, protocol in (("otlp_proto_grpc", "grpc"), ("otlp_proto_http", "http/protobuf")):
            if exporter in named:
                return protocol
        return self.get("PROTOCOL") or "http/protobuf"

    def headers(self) -> Mapping[str, str]:
        """What is sent with each request."""
        from opentelemetry.util.re import parse_env_headers

        return parse_env_headers(self.get("HEADERS"), liberal=True)

    def timeout_s(self) -> float:
        """How long an answer may take."""
        text = self.get("TIMEOUT")
        try:
            return float(text) if text else _TIMEOUT_S
        except ValueError:
            return _TIMEOUT_S

    def provided(self, protocol: str) -> Any:
        """What a credential provider that is named for this protocol makes; None where none is."""
        prefix = f"OTEL_PYTHON_EXPORTER_OTLP_{protocol}"
        name = self._environ.get(f"{prefix}_CREDENTIAL_PROVIDER") or self._environ.get(
            f"{prefix}_{self._signal}_CREDENTIAL_PROVIDER"
        )
        if not name:
            return None
        from importlib.metadata import entry_points

        found = list(entry_points(group="opentelemetry_otlp_credential_provider", name=name))
        if not found:
            message = f"{prefix}_CREDENTIAL_PROVIDER={name}: no installed package offers it"
            raise SettingsError(message)
        return found[0].load()()


# --- HTTP -----------------------------------------------------------------------------------


class _Http:
    def __init__(self, signal: str, variables: _Variables, endpoint: str | None) -> None:
        import requests

        base = endpoint or ("" if variables.own("ENDPOINT") else variables.all("ENDPOINT") or "http://localhost:4318")
        self.where = f"{base.removesuffix('/')}/{_PATHS[signal]}" if base else variables.own("ENDPOINT")
        if urlsplit(self.where).scheme not in ("http", "https"):
            # What it is may hold a password where no scheme tells.
            message = "OTEL_EXPORTER_OTLP_ENDPOINT or --endpoint: an OTLP/HTTP endpoint begins with http:// or https://"
            raise SettingsError(message)
        self._signal = signal
        self._timeout_s = variables.timeout_s()
        self._session = variables.provided("HTTP") or requests.Session()
        self._verify: bool | str = variables.get("CERTIFICATE") or True
        certificate, key = variables.get("CLIENT_CERTIFICATE"), variables.get("CLIENT_KEY")
        self._cert = (certificate, key) if certificate and key else certificate or None
        self._compression = variables.get("COMPRESSION").lower()
        self._headers = {"Content-Type": "application/x-protobuf", **variables.headers()}
        if self._compression in ("gzip", "deflate"):
            self._headers["Content-Encoding"] = self._compression

    def send(self, request: bytes, timeout_s: float | None = None) -> Answer:
        from requests import RequestException

        body = request
        if self._compression == "gzip":
            body = gzip.compress(request, compresslevel=6)
        elif self._compression == "deflate":
            body = zlib.compress(request)
        try:
            with self._session.post(
                self.where,
                data=body,
                headers=self._headers,
                timeout=min(self._timeout_s, timeout_s or self._timeout_s),
                verify=self._verify,
                cert=self._cert,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = response.raw.read(_MOST_ANSWER, decode_content=True)
                return self._answer(response.status_code, response.headers, content)
        except (RequestException, OSError) as error:
            return Answer("later", _short(_root(error)))
        except Exception as error:  # noqa: BLE001 - urllib3's, for an answer that is no HTTP
            return Answer("later", _short(_root(error)))

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> Answer:
        if 200 <= status < 300:
            return _taken(self._signal, content)
        reason = _short(f"{status} {_words(content, headers.get('Content-Type', ''))}".strip())
        if status in _OF_THE_RECORDS:
            return Answer("refused", reason)
        if status == 429 or status >= 500:
            return Answer("later", reason, after_s=_after_s(headers.get("Retry-After")))
        return Answer("unwelcome", reason)

    def close(self) -> None:
        self._session.close()


def _after_s(text: str | None) -> float | None:
    """`Retry-After`: seconds, or a date."""
    import math
    import time

    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text.strip()).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _words(content: bytes, kind: str) -> str:
    """What an endpoint says of its refusal: a `google.rpc.Status`, or text."""
    if "protobuf" in kind:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
        from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it ships no types

        try:
            return str(Status.FromString(content).message)
        except DecodeError:
            return ""
    return content.decode("utf-8", "replace")


def _taken(signal: str, content: bytes) -> Answer:
    """It was taken, but for what the answer says was not."""
    from google.protobuf.message import DecodeError

    try:
        response = _response(signal).FromString(content)
    except DecodeError:
        return Answer("taken")
    part = response.partial_success
    rejected = next((int(value) for name, value in part.ListFields() if name.name.startswith("rejected")), 0)
    return Answer("taken", _short(part.error_message), rejected=rejected)


def _response(signal: str) -> Any:
    if signal == "spans":
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        return ExportTraceServiceResponse
    if signal == "logs":
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

        return ExportLogsServiceResponse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    return ExportMetricsServiceResponse


def _root(error: BaseException) -> str:
    """The innermost cause in words: what a user can act on."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    said = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _short(said: str) -> str:
    """Foreign words, short, on one line and without secrets."""
    return redact.text(" ".join(said.split()))[:_LONGEST_REASON]


# --- gRPC -----------------------------------------------------------------------------------


class _Grpc:
    def __init__(self, signal: str, variables: _Variables, endpoint: str | None) -> None:
        try:
            import grpc  # type: ignore[import-untyped]  # it ships no types
        except ImportError:
            message = "OTLP over gRPC needs a package; type: pip install 'otel-ml[grpc]'"
            raise SettingsError(message) from None
        self._grpc = grpc
        self._signal = signal
        self.where = endpoint or variables.get("ENDPOINT") or "http://localhost:4317"
        parts = urlsplit(self.where)
        target = parts.netloc or self.where
        plain = variables.get("INSECURE").lower()
        insecure = parts.scheme != "https" and (plain == "true" if plain else parts.scheme == "http")
        compression = grpc.Compression.Gzip if variables.get("COMPRESSION").lower() == "gzip" else None
        if insecure:
            self._channel = grpc.insecure_channel(target, compression=compression)
        else:
            self._channel = grpc.secure_channel(target, self._credentials(variables), compression=compression)
        self._call = self._channel.unary_unary(_METHODS[signal])  # bytes in, bytes out
        self._metadata = tuple((name.lower(), value) for name, value in variables.headers().items())
        self._timeout_s = variables.timeout_s()

    def _credentials(self, variables: _Variables) -> Any:
        provided = variables.provided("GRPC")
        if provided is not None:
            return provided
        files = [variables.get(name) for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")]
        return self._grpc.ssl_channel_credentials(*(_content(file) if file else None for file in files))

    def send(self, request: bytes, timeout_s: float | None = None) -> Answer:
        timeout_s = min(self._timeout_s, timeout_s or self._timeout_s)
        try:
            return _taken(self._signal, self._call(request, timeout=timeout_s, metadata=self._metadata))
        except self._grpc.RpcError as error:
            return self._answer(error)

    def _answer(self, error: Any) -> Answer:
        codes = self._grpc.StatusCode
        code, details = error.code(), error.details() or ""
        reason = _short(f"{code.name} {details}")
        if code == codes.INVALID_ARGUMENT or (code == codes.RESOURCE_EXHAUSTED and "larger than max" in details):
            return Answer("refused", reason)
        if code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED, codes.UNIMPLEMENTED, codes.NOT_FOUND):
            return Answer("unwelcome", reason)
        return Answer("later", reason, after_s=_retry_delay_s(error))

    def close(self) -> None:
        self._channel.close()


def _content(file: str) -> bytes:
    from pathlib import Path

    try:
        return Path(file).read_bytes()
    except OSError as error:
        message = f"{file} cannot be read ({error.strerror}); it is named by OTEL_EXPORTER_OTLP_*CERTIFICATE or _KEY"
        raise SettingsError(message) from None


def _retry_delay_s(error: Any) -> float | None:
    """What `google.rpc.RetryInfo` says, if it is there."""
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # it ships no types
    from google.rpc.status_pb2 import Status

    info = RetryInfo()
    trailers = dict(error.trailing_metadata() or ())
    try:
        if "google.rpc.retryinfo-bin" in trailers:
            info.ParseFromString(trailers["google.rpc.retryinfo-bin"])
        elif not any(
            detail.Unpack(info) for detail in Status.FromString(trailers.get("grpc-status-details-bin", b"")).details
        ):
            return None
    except DecodeError:
        return None
    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
