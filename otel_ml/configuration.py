"""What `configure()` and its file may say, as the environment variables that say the same.

One vocabulary: arguments of `configure()`, keys of the YAML file that `OTEL_ML_CONFIG`
names. Each becomes the variables of OpenTelemetry's or ours that mean it, so that all else
reads one place. Arguments come first, then the environment, then the file.
"""

from __future__ import annotations

import socket
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from otel_ml.errors import SettingsError
from otel_ml.settings import INTERNAL_PORTS, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = ["EXPORTERS", "KEYS", "apply", "apply_file", "read_file"]

EXPORTERS = ("otlp", "local", "console", "prometheus", "zipkin", "jaeger")
KEYS = {
    "service_name": "my-model",
    "exporter": "otlp",
    "endpoint": "http://localhost:4318",
    "sample": 0.1,
    "instrument": True,
    "run_name": "baseline",
    "directory": "./runs",
}
"""Each with an example."""

_PROMETHEUS_PORT = 9464
_HOOKS = "otel_ml_torch,otel_ml_jax"
_ENDPOINTS = tuple(f"OTEL_EXPORTER_OTLP_{middle}ENDPOINT" for middle in ("", *(f"{s.upper()}_" for s in SIGNALS)))
_NAMED = tuple(f"OTEL_{s.upper()}_EXPORTER" for s in SIGNALS)


def apply(given: Mapping[str, Any], environ: MutableMapping[str, str]) -> None:
    """Set the variables that mean what was given, over those that are there.

    Raises:
        SettingsError: a key or a value that cannot be, or a port that something listens on; nothing is set then.
    """
    for name, value in _variables(given, environ).items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


def apply_file(environ: MutableMapping[str, str]) -> None:
    """Set what the file that `OTEL_ML_CONFIG` names says, where the environment says nothing of it."""
    path = environ.get("OTEL_ML_CONFIG", "").strip()
    if not path:
        return
    given = read_file(Path(path).expanduser())
    said = any(environ.get(name, "").strip() for name in (*_ENDPOINTS, *_NAMED))
    if said:  # where it goes is one thing: not half of it from here and half from there
        given = {key: value for key, value in given.items() if key not in ("exporter", "endpoint")}
    try:
        variables = _variables(given, environ)
    except SettingsError as error:
        message = f"OTEL_ML_CONFIG={path}: {error}"
        raise SettingsError(message) from None
    for name, value in variables.items():
        if value is not None:
            environ[name] = environ.get(name, "").strip() or value


def read_file(path: Path) -> dict[str, Any]:
    """What a YAML file says, by key.

    Raises:
        SettingsError: it cannot be read, or is no mapping.
    """
    import yaml

    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        message = f"OTEL_ML_CONFIG={path}: {reason}"
        raise SettingsError(message) from None
    if said is None:
        return {}
    if not isinstance(said, dict):
        message = f"OTEL_ML_CONFIG={path}: need lines such as `exporter: otlp`"
        raise SettingsError(message)
    return {str(key): value for key, value in said.items() if value is not None}


def _variables(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str | None]:
    """Variables to set, or to remove where None."""
    for key in given:
        if key not in KEYS:
            near = get_close_matches(key, KEYS, 1)
            advice = f"Did you mean {near[0]}?" if near else f"There is {', '.join(KEYS)}."
            message = f"{key}: there is no such key. {advice}"
            raise SettingsError(message)
    out: dict[str, str | None] = {}
    for key, variable in (
        ("service_name", "OTEL_SERVICE_NAME"), ("run_name", "OTEL_ML_RUN_NAME"), ("directory", "OTEL_ML_DIR"),
    ):  # fmt: skip
        if given.get(key) is not None:
            out[variable] = _text(key, given[key])
    if given.get("sample") is not None:
        out["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
        out["OTEL_TRACES_SAMPLER_ARG"] = str(_share(given["sample"]))
    instrument = given.get("instrument", True)
    if not isinstance(instrument, bool):
        _refuse("instrument", instrument, "need true or false")
    if not instrument:
        others = [n for n in environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",") if n]
        out["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = ",".join([*others, _HOOKS])
    exporter, endpoint = given.get("exporter"), given.get("endpoint")
    if exporter is None and endpoint is not None:
        exporter = "otlp"
    if exporter is not None:
        if exporter not in EXPORTERS:
            near = get_close_matches(str(exporter), EXPORTERS, 1)
            _refuse("exporter", exporter, f"need one of {', '.join(EXPORTERS)}", near[0] if near else None)
        out.update(_exporter(exporter, endpoint, environ))
    return out


def _exporter(exporter: str, endpoint: Any, environ: Mapping[str, str]) -> dict[str, str | None]:
    """What makes each signal go there, and the others nowhere but to the local store."""
    out: dict[str, str | None] = dict.fromkeys((*_ENDPOINTS, *_NAMED))
    if exporter in ("local", "console"):
        if endpoint is not None:
            message = f"endpoint={endpoint!r}: exporter {exporter} has none. Leave it out, or type exporter='otlp'."
            raise SettingsError(message)
        return {**out, **dict.fromkeys(_NAMED, "console")} if exporter == "console" else out
    if exporter == "prometheus":
        host, port = _address(endpoint, environ)
        return {
            **out, "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_HOST": host,
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(port), INTERNAL_PORTS: "1",
        }  # fmt: skip
    url = None if endpoint is None else _url(endpoint)
    if exporter == "zipkin":
        _needs("opentelemetry.exporter.zipkin.json", "zipkin")
        whole = url if url is None or urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/api/v2/spans"
        return {**out, "OTEL_TRACES_EXPORTER": "zipkin_json", "OTEL_EXPORTER_ZIPKIN_ENDPOINT": whole}
    url = url or "http://localhost:4318"
    if exporter == "jaeger":
        grpc = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() == "grpc"
        whole = url if grpc or urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1/traces"
        return {**out, "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": whole}
    return {**out, "OTEL_EXPORTER_OTLP_ENDPOINT": url}


def _address(endpoint: Any, environ: Mapping[str, str]) -> tuple[str, int]:
    """Where Prometheus is to scrape the first rank of this machine."""
    text = "" if endpoint is None else str(endpoint).removeprefix("http://").rstrip("/")
    host, _, number = text.rpartition(":")
    if text and not number.isdecimal():
        _refuse("endpoint", endpoint, "need host:port", f"127.0.0.1:{_PROMETHEUS_PORT}")
    port = int(number or _PROMETHEUS_PORT)
    rank = environ.get("LOCAL_RANK", "").strip()
    mine = port + (int(rank) if rank.isdecimal() else 0)
    host = host or "127.0.0.1"
    _needs("opentelemetry.exporter.prometheus", "prometheus")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), mine))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        example = f"{host}:{mine + 1 if mine < 65535 else _PROMETHEUS_PORT}"
        _refuse("endpoint", f"{host}:{mine}", f"cannot listen there ({reason})", example)
    return host, port


def _needs(module: str, extra: str) -> None:
    from importlib.util import find_spec

    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        message = f"exporter {extra} needs a package more; type: pip install 'otel-ml[{extra}]'"
        raise SettingsError(message)


def _url(endpoint: Any) -> str:
    text = str(endpoint).strip()
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        _refuse("endpoint", endpoint, "need a URL", KEYS["endpoint"])
    return text


def _text(key: str, value: Any) -> str:
    text = str(value).strip()
    if not text or not text.isprintable():
        _refuse(key, value, "need text")
    return text


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        _refuse("sample", value, "need a share from 0 to 1")
    return float(value)


def _refuse(key: str, value: Any, need: str, example: Any = None) -> NoReturn:
    message = f"{key}={value!r}: {need}. Type {key}={KEYS[key] if example is None else example!r}."
    raise SettingsError(message) from None
