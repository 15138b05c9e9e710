"""Where runs live on disk, and how old and new files are told apart."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_ml.errors import NewerStoreError, StoreError
from otel_ml.store import schema

if TYPE_CHECKING:
    from pathlib import Path

AWKWARD = [
    "", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "a b", ".hidden", "-", "räksmörgås", "日本語", "\ud800",
    "a\0b", "a\nb", "x" * 300, "x" * 301, "x" * 81, "con:1", "a.h0123456789ab", "~", "é", "e\u0301",
]  # fmt: skip


@pytest.mark.parametrize("run_id", AWKWARD)
def test_slug_of_any_id_is_a_plain_name_inside_the_folder(run_id: str, tmp_path: Path) -> None:
    """Whatever the id holds, the run's folder is a visible, plain name directly in the store's folder."""
    slug = schema.run_slug(run_id)

    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}", slug)
    assert schema.run_folder(tmp_path, run_id) == tmp_path.resolve() / slug


@pytest.mark.parametrize("run_id", ["7", "run-1", "job_42.3", "X" * 80, "2026-11-21T10.00.00-ab12"])
def test_slug_of_a_plain_id_is_the_id(run_id: str) -> None:
    """An id that is a plain name is found under that name."""
    assert schema.run_slug(run_id) == run_id


def test_two_ids_never_share_a_folder() -> None:
    """Ids that look alike once cleaned are kept apart, also from an id that imitates a cleaned one."""
    ids = [*AWKWARD, "a-b", "a:b", "a/b/", *(schema.run_slug(run_id) for run_id in AWKWARD)]

    assert len({schema.run_slug(run_id) for run_id in set(ids)}) == len(set(ids))


def test_folder_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    """A symbolic link in the place of a run's folder is not followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run-1").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreError, match=r"leads out of .*remove that link"):
        schema.run_folder(tmp_path / "runs", "run-1")


def test_migrations_are_numbered_in_their_order() -> None:
    """A migration's name says the version it makes."""
    numbers = [int(function.__name__[1:4]) for function in schema.MIGRATIONS]

    assert numbers == list(range(1, len(schema.MIGRATIONS) + 1))


def test_migrated_file_has_every_column_and_the_newest_version() -> None:
    """After all migrations the tables hold exactly the columns that are written and read."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    schema.migrate(connection)

    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables}
    assert {t: tuple(c for c in columns if c != "id") for t, columns in found.items()} == schema.COLUMNS
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)


def test_failed_migration_leaves_the_version_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails half way has changed nothing."""

    def m002_breaks(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        connection.execute("CREATE TABLE half (x)")

    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    version = len(schema.MIGRATIONS)
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, m002_breaks])

    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)


def test_newer_file_is_refused_with_what_to_type() -> None:
    """A file of a later otel-ml is not touched, and the message says how to get on."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA user_version = 999")

    with pytest.raises(NewerStoreError, match=r"schema 999.*pip install --upgrade otel-ml"):
        schema.migrate(connection)


@pytest.mark.skipif(not schema.has_proc(), reason="needs /proc")
def test_process_is_told_from_a_later_one_and_from_a_dead_one() -> None:
    """A process's start is the same each time it is asked, differs from another's, and a zombie has none."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        alive = schema.boot_and_start(child.pid)
        assert alive is not None
        assert alive == schema.boot_and_start(child.pid)
        assert alive != schema.boot_and_start(os.getpid())
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        zombie = schema.boot_and_start(child.pid)
        child.communicate()
    assert [zombie, schema.boot_and_start(child.pid)] == [None, None]
