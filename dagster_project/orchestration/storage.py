"""Dagster's storage in PostgreSQL, with a connection that stays open.

Dagster's own class opens a connection for every statement. An event is two or three statements, a
connection some 5 ms of processor time: a third of what a whole run takes.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, utils
from dagster_postgres.utils import (
    DagsterPostgresException,
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
)

from dagster_project.failures import CatalogError

_IS_DELIVERED = sa.text("SELECT to_regclass('mesh.catalog_destinations') IS NOT NULL")
_UNTOLD = sa.text(
    "SELECT destination FROM (SELECT destination, event_id FROM mesh.catalog_destinations "
    "ORDER BY told_at DESC NULLS LAST LIMIT 1) last "
    "WHERE event_id < (SELECT max(id) FROM event_logs WHERE run_id = :run_id)"
)
#: Connections that a process opens at most when several of its threads write at once.
AT_ONCE = 20
#: Seconds that a run waits for Dagster's database to come back, and between two looks.
PATIENCE, PAUSE = 180.0, 2.0

T = TypeVar("T")

_logger = logging.getLogger("dagster.storage")


def wait_for_database() -> None:
    """Have this process, and what it forks, wait for Dagster's PostgreSQL while it restarts.

    Dagster gives up after eleven seconds, and a run that cannot write an event is a failed run. For
    runs only: who serves people is to say that nobody answers.
    """
    utils.retry_pg_connection_fn = _persist  # type: ignore[assignment]


def _persist(connect: Callable[[], T], *_: object, **__: object) -> T:
    give_up: float | None = None
    while True:
        try:
            return connect()
        except (sa.exc.DatabaseError, sa.exc.TimeoutError) as error:
            if give_up is None:
                give_up = time.monotonic() + PATIENCE
                _logger.warning("Dagster's database does not answer, and is waited for: %s", error)
            if time.monotonic() > give_up:
                raise DagsterPostgresException(
                    f"Dagster's database did not answer for {PATIENCE:.0f} s"
                ) from error
        time.sleep(PAUSE)


class PooledPostgresStorage(DagsterPostgresStorage):
    """DagsterPostgresStorage that keeps one connection a process, for runs, events and schedules.

    It is configured as that is. A connection that was lost, because the server was restarted, is
    replaced before it is used.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        engine = create_pg_engine(
            self.postgres_url,
            options.get("token_provider"),
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=AT_ONCE - 1,
            pool_pre_ping=True,
        )
        # A fork opens its own: a connection that two processes talk on is lost to both.
        forget = weakref.WeakMethod(engine.dispose)
        os.register_at_fork(after_in_child=lambda: (dispose := forget()) and dispose(close=False))
        self._run_storage._engine = engine
        self._event_log_storage._engine = engine
        self._schedule_storage._engine = engine
        delete_run = self._run_storage.delete_run

        def delete_told_run(run_id: str) -> None:
            self._refuse_untold(run_id)
            delete_run(run_id)

        # The events of a run go with it.
        self._run_storage.delete_run = delete_told_run  # type: ignore[method-assign]

    def _refuse_untold(self, run_id: str) -> None:
        """Raise CatalogError for a run of which the catalog is still to be told.

        That is the destination that was told last; if nobody delivers, nothing is refused.
        """
        with self._event_log_storage.index_connection() as connection:
            if not connection.execute(_IS_DELIVERED).scalar():
                return
            waiting = connection.execute(_UNTOLD, {"run_id": run_id}).scalar()
        if waiting:
            raise CatalogError(
                f"the run {run_id} has events that {waiting} was not told of: have them delivered "
                "(`mesh catalog deliver`), then delete it"
            )

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        return cls(
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
            token_provider=get_token_provider_from_config(config_value),
        )
