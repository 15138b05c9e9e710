"""`OTEL_ML_*` is read once, refused early, and OTel's own variables mean what OTel says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from otel_ml.environment import choose_distro, with_flags
from otel_ml.errors import SettingsError
from otel_ml.settings import FIELDS, SETTINGS, Settings, config_file, endpoint_configured, exporters, sdk_disabled

STORE_ONLY = {"traces": ["store"], "metrics": ["store"], "logs": ["store"]}
SENT_AND_STORED = {"traces": ["otlp", "store"], "metrics": ["otlp", "store"], "logs": ["otlp", "store"]}


def test_defaults() -> None:
    """An empty environment gives the documented defaults, and each says that it is one."""
    assert asdict(Settings.from_env({"HOME": "/home/ada"})) == {
        "enabled": True,
        "native": True,
        "summary": True,
        "verbose": False,
        "directory": Path("/home/ada/.local/share/otel-ml"),
        "store": True,
        "store_run_mb": 256,
        "store_total_mb": 2048,
        "store_days": 30,
        "run_id": None,
        "run_name": None,
        "steps_per_second": 1.0,
        "points_per_second": 128.0,
        "points_burst": 2000,
        "buffer": 262144,
        "shutdown_timeout_s": 5.0,
        "profile_steps": None,
        "profile_signal": None,
        "debug": (),
        "backends": None,
        "stack_dir": Path("/home/ada/.local/share/otel-ml-stack"),
        "listen": "127.0.0.1",
        "config": None,
        "strict": False,
        "views_drop": (),
        "views_exponential": (),
        "sources": dict.fromkeys(SETTINGS, "default"),
    }


def test_values_and_sources() -> None:
    """Every setting can be set by its own example, and then says that it came from the environment."""
    given = {name: setting.example for name, setting in SETTINGS.items()}
    settings = Settings.from_env(given)
    assert settings.sources == dict.fromkeys(SETTINGS, "env")
    assert {name: getattr(settings, FIELDS[name]) for name in SETTINGS} == {
        name: setting.parse(setting.example) for name, setting in SETTINGS.items()
    }
    assert settings.views_drop == ("ml.training.grad_norm",)
    assert settings.directory == Path.cwd() / "runs"


def test_empty_is_unset() -> None:
    """An empty or blank value means unset, as in OTel, also for a name that does not exist."""
    environ = dict.fromkeys(SETTINGS, "") | {"OTEL_ML_STORE": "  ", "OTEL_ML_WHAT": ""}
    assert Settings.from_env(environ) == Settings.from_env({})


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_DATA_HOME": "/data", "HOME": "/home/ada"}, "/data/otel-ml"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/home/ada"}, "/home/ada/.local/share/otel-ml"),
        ({"XDG_DATA_HOME": "/data", "OTEL_ML_DIR": "/runs"}, "/runs"),
        ({"OTEL_ML_DIR": "~/runs"}, str(Path.home() / "runs")),
    ],
)
def test_directory(environ: dict[str, str], folder: str) -> None:
    """Runs are kept where XDG says, unless OTEL_ML_DIR says otherwise."""
    assert Settings.from_env(environ).directory == Path(folder)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"OTEL_ML_SUMMARY": "maybe"},
            "OTEL_ML_SUMMARY=maybe: need 1 or 0. Type OTEL_ML_SUMMARY=0, or unset it for 1.",
        ),
        (
            {"OTEL_ML_BUFFER": "64"},
            "OTEL_ML_BUFFER=64: need a whole number ≥ 1024. Type OTEL_ML_BUFFER=1048576, or unset it for 262144.",
        ),
        (
            {"OTEL_ML_STEPS_PER_SECOND": "nan"},
            (
                "OTEL_ML_STEPS_PER_SECOND=nan: need a number from 0 to 1000. "
                "Type OTEL_ML_STEPS_PER_SECOND=0.1, or unset it for 1.0."
            ),
        ),
        (
            {"OTEL_ML_RUN_ID": "a\tb"},
            "OTEL_ML_RUN_ID=a\tb: need at most 200 printable characters. Type OTEL_ML_RUN_ID=gpt-42, or unset it.",
        ),
        (
            {"OTEL_ML_SUMARY": "0"},
            "OTEL_ML_SUMARY: there is no such setting. Did you mean OTEL_ML_SUMMARY?",
        ),
        (
            {"OTEL_ML_QQ": "hunter2"},
            "OTEL_ML_QQ: there is no such setting. Run `otel-ml config` for those there are.",
        ),
        (
            {"OTEL_ML_ENABLE": "0", "OTEL_ML_STORE": "2"},
            (
                "OTEL_ML_ENABLE: there is no such setting. Did you mean OTEL_ML_ENABLED?\n"
                "OTEL_ML_STORE=2: need 1 or 0. Type OTEL_ML_STORE=0, or unset it for 1."
            ),
        ),
    ],
)
def test_refused(environ: dict[str, str], message: str) -> None:
    """A wrong value or an unknown name is refused with what was wrong and what to type, all at once."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    assert str(caught.value) == message


def test_internal_names_are_no_settings() -> None:
    """What our own processes tell each other is not refused."""
    assert Settings.from_env({"OTEL_ML_INTERNAL_LAUNCHER": "1"}) == Settings.from_env({})


def test_every_setting_is_documented() -> None:
    """Each setting has a sentence and an example that differs from its default."""
    for name, setting in SETTINGS.items():
        assert setting.doc.endswith("."), name
        assert setting.example != setting.default_text({}), name


@pytest.mark.parametrize(
    ("environ", "expected", "endpoint"),
    [
        ({}, STORE_ONLY, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, SENT_AND_STORED, True),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://jaeger:4318/v1/traces"},
            STORE_ONLY | {"traces": ["otlp", "store"]},
            True,
        ),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, STORE_ONLY | {"metrics": ["prometheus", "store"]}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, STORE_ONLY | {"traces": ["otlp", "store"]}, True),
        ({"OTEL_LOGS_EXPORTER": "none"}, STORE_ONLY | {"logs": []}, False),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
                "OTEL_TRACES_EXPORTER": "console , otlp",
                "OTEL_LOGS_EXPORTER": "none",
            },
            {"traces": ["console", "otlp", "store"], "metrics": ["otlp", "store"], "logs": []},
            True,
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_TRACES_EXPORTER": ""}, STORE_ONLY, False),
        ({"OTEL_CONFIG_FILE": "otel.yaml", "OTEL_TRACES_EXPORTER": "console"}, STORE_ONLY, False),
        ({"OTEL_SDK_DISABLED": "TRUE"}, {"traces": [], "metrics": [], "logs": []}, False),
    ],
)  # fmt: skip
def test_exporters(environ: dict[str, str], expected: dict[str, list[str]], endpoint: bool) -> None:
    """Each signal goes where its variables say, to the store as well, and nowhere for `none`."""
    assert exporters(environ) == expected
    assert endpoint_configured(environ) is endpoint


def test_exporters_without_store() -> None:
    """With the store switched off and no endpoint, nothing goes anywhere."""
    assert exporters({}, store=False) == {"traces": [], "metrics": [], "logs": []}


def test_predicates() -> None:
    """OTEL_SDK_DISABLED counts when it is true, OTEL_CONFIG_FILE when it is not empty."""
    assert [sdk_disabled({"OTEL_SDK_DISABLED": value}) for value in ("true", "True", "1", "false", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert [config_file({"OTEL_CONFIG_FILE": value}) for value in ("a.yaml", "")] == ["a.yaml", None]


def test_distro_is_chosen_unless_the_user_chose() -> None:
    """Ours wins beside other distros, but never over the user's own choice."""
    environ = {"OTEL_PYTHON_DISTRO": "theirs"}
    choose_distro(environ)
    detectors = environ.pop("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS")
    assert environ == {"OTEL_PYTHON_DISTRO": "theirs", "OTEL_PYTHON_CONFIGURATOR": "otel_ml"}
    assert detectors == "otel,otel_ml"


@pytest.mark.parametrize(
    ("before", "after"), [("*", "*"), ("process, os", "process,os,otel_ml"), ("otel_ml", "otel_ml")]
)
def test_resources_name_the_run(before: str, after: str) -> None:
    """Whoever makes a resource finds the run in it, beside the detectors that the user chose."""
    environ = {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": before}
    choose_distro(environ)
    assert environ["OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"] == after


def test_launcher_flags_count_before_the_program() -> None:
    """`opentelemetry-instrument` flags of ours are seen before the program starts, the program's own are not."""
    argv = ["opentelemetry-instrument", "--traces_exporter", "--ml_store", "--ml_dir=/runs", "--ml_summary", "0",
            "python", "--ml_buffer", "1"]  # fmt: skip
    assert with_flags({"A": "b"}, argv) == {"A": "b", "OTEL_ML_DIR": "/runs", "OTEL_ML_SUMMARY": "0"}


def test_launcher_learns_our_names() -> None:
    """Every setting is a constant of the environment module; importing it costs neither SDK nor framework."""
    program = (
        "import sys, otel_ml.environment as e\n"
        "print(*sorted(n for n in dir(e) if n.startswith('OTEL_')))\n"
        "print([m for m in ('opentelemetry', 'torch', 'jax', 'rich', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [" ".join(sorted(SETTINGS)), "[]"]
