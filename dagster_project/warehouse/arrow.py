"""One transaction over ADBC: Arrow record batches in, statements beside them.

The driver's low-level interface is used, since its DB-API imports pandas, which costs seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from dagster_project.warehouse.arrays import array_of
from dagster_project.warehouse.connection import CONNECT_TIMEOUT, failure

if TYPE_CHECKING:
    import adbc_driver_manager
    import pyarrow as pa


class ArrowSession:
    """A connection inside a transaction; nothing is kept unless `commit` is called."""

    def __init__(self, connection: adbc_driver_manager.AdbcConnection) -> None:
        self._connection = connection

    def run(self, sql: str, parameters: Sequence[str | int] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement with bound parameters; its rows, none if it gives none."""
        import adbc_driver_manager
        import pyarrow as pa

        with adbc_driver_manager.AdbcStatement(self._connection) as statement:
            # COPY, the driver's default for results, takes no statement that writes.
            statement.set_options(**{"adbc.postgresql.use_copy": "false"})
            statement.set_sql_query(sql)
            if parameters:
                names = [str(number) for number in range(len(parameters))]
                values = [
                    array_of([value], pa.int64() if isinstance(value, int) else pa.string())
                    for value in parameters
                ]
                statement.prepare()
                statement.bind(pa.RecordBatch.from_arrays(values, names=names))
            stream, _ = statement.execute_query()
            reader = pa.RecordBatchReader.from_stream(stream)
            if not reader.schema.names:
                return []
            columns = [column.to_pylist() for column in reader.read_all().columns]
            return list(zip(*columns, strict=True))

    def change(self, sql: str) -> int:
        """Execute one statement that writes; the number of rows that it wrote."""
        import adbc_driver_manager

        with adbc_driver_manager.AdbcStatement(self._connection) as statement:
            statement.set_sql_query(sql)
            return int(statement.execute_update())

    def count(self, sql: str) -> int:
        """The one number that the statement gives."""
        return int(self.run(sql)[0][0])

    def ingest(self, name: str, batches: pa.RecordBatchReader) -> None:
        """Stream the batches into a new temporary table."""
        import adbc_driver_manager as adbc

        with adbc.AdbcStatement(self._connection) as statement:
            options = adbc.StatementOptions
            statement.set_options(
                **{
                    options.INGEST_TARGET_TABLE.value: name,
                    options.INGEST_MODE.value: "adbc.ingest.mode.create",
                    options.INGEST_TEMPORARY.value: "true",
                }
            )
            statement.bind_stream(batches)
            statement.execute_update()

    def commit(self) -> None:
        self._connection.commit()


def _with_timeout(url: str) -> str:
    """The URL with a limit on how long connecting may take, unless it has one."""
    parts = urlsplit(url)
    if "connect_timeout" in parts.query:
        return url
    query = "&".join(filter(None, [parts.query, f"connect_timeout={CONNECT_TIMEOUT}"]))
    return urlunsplit(parts._replace(query=query))


@cache
def _database(url: str) -> adbc_driver_manager.AdbcDatabase:
    """What connections are opened from, kept as the driver reads all types of the server for it.

    It holds no connection: forks may share it, and the server may be restarted.
    """
    import adbc_driver_postgresql

    return adbc_driver_postgresql.connect(_with_timeout(url))


@contextmanager
def connect_arrow(url: str, doing: str) -> Iterator[ArrowSession]:
    """A session in a transaction, which is rolled back unless it was committed.

    Raises WarehouseError, or TransientWarehouseError where a rerun can mend it.
    """
    import adbc_driver_manager

    try:
        with adbc_driver_manager.AdbcConnection(_database(url)) as connection:
            connection.set_autocommit(False)
            yield ArrowSession(connection)
    except adbc_driver_manager.Error as error:
        raise failure(url, doing, error) from error
