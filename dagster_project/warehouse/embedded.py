"""The embedded PostgreSQL: one server a home, shared by the commands that need it.

A command leases the server for as long as it works. The first one in starts it, the last one out
stops it, unless it is pinned. Nothing needs to be shut down in order: whatever is killed, and
whenever, the next lease puts right.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from dagster_project.failures import BusyError, WarehouseError
from dagster_project.warehouse import lease as locks
from dagster_project.warehouse.cluster import HOST, SUPERUSER, Cluster, Postmaster, write
from dagster_project.warehouse.programs import version

#: Databases.
WAREHOUSE = "warehouse"
DAGSTER = "dagster"

#: Roles: `mesh` owns the warehouse, `reader` queries it, `dagster` owns Dagster's database.
MESH = "mesh"
READER = "reader"
ROLES = (MESH, READER, DAGSTER)

OWNERS = {WAREHOUSE: MESH, DAGSTER: DAGSTER}

#: Run as superuser, in order, at the first start and again whenever this list changes: each must
#: bear repetition. Roles and databases exist by then.
GRANTS = (
    *(
        f"ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
        for role in ROLES
    ),
    *(f"ALTER DATABASE {database} OWNER TO {owner}" for database, owner in OWNERS.items()),
    *(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC" for name in (*OWNERS, "postgres", "template1")),
    f"GRANT CONNECT ON DATABASE {WAREHOUSE} TO {READER}",
    f"GRANT pg_read_all_data TO {READER}",
    f"ALTER ROLE {READER} SET default_transaction_read_only = on",
    # Dagster commits every event by itself. If the machine loses power, the events of the last
    # moment are lost, never the order: a run then looks unfinished and is started again.
    f"ALTER DATABASE {DAGSTER} SET synchronous_commit = off",
)

#: The server's least; see `_verifier`.
SCRAM_ITERATIONS = 1

#: Seconds that a command waits for one that stops the server, and for one that starts it.
STOPPING_TIMEOUT = 90
STARTING_TIMEOUT = 300
LEAVING_TIMEOUT = 1.0


@dataclass(frozen=True)
class Endpoint:
    """Where the server answers. Its text never shows a password."""

    host: str
    port: int
    #: By role.
    passwords: Mapping[str, str] = field(repr=False, compare=False)

    def url(self, role: str, database: str) -> str:
        """A connection URL, password included. Raises KeyError for a role that is not ours."""
        password = quote(self.passwords[role], safe="")
        return f"postgresql://{role}:{password}@{self.host}:{self.port}/{database}"


@dataclass(frozen=True)
class Status:
    """What is known of the server without touching it."""

    running: bool
    pid: int | None
    port: int | None
    #: Of the installed programs.
    version: str
    pinned: bool
    #: How many leases are held; None where the kernel does not tell.
    users: int | None
    data_bytes: int


class EmbeddedPostgres:
    """The server whose data lies in `home/postgres/`.

    Every method raises WarehouseError if the server cannot be had (the message says why and what
    to do), and BusyError if another command holds it for too long.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home.absolute() / "postgres"
        self._cluster = Cluster(self.folder)
        self._users = self.folder / "users.lock"
        self._starting = self.folder / "start.lock"
        self._pinned = self.folder / "pinned"
        self._port = self.folder / "port"
        self._secrets = self.folder / "passwords.json"
        #: In the data directory, so that it is gone when the data is.
        self._granted = self._cluster.data / "mesh_grants"

    @contextmanager
    def lease(self) -> Iterator[Endpoint]:
        """Share the server, started if need be, for the length of the block.

        A process that is forked within the block shares the lease until it ends, and leaves it
        to its parent to stop the server.
        """
        owner = os.getpid()
        with self._readable_errors():
            place = self._enter()
        try:
            with self._readable_errors():
                endpoint = self._ensure_running()
            yield endpoint
        finally:
            os.close(place)
            if os.getpid() == owner:
                self._stop_if_unused()

    def pin(self) -> Endpoint:
        """Start the server if need be, and keep it when the last command leaves."""
        with self.lease() as endpoint, self._readable_errors():
            write(self._pinned, "")
            return endpoint

    def unpin(self) -> None:
        """Let the last command that leaves stop the server, which may be this one."""
        with self._readable_errors():
            self._pinned.unlink(missing_ok=True)
        self._stop_if_unused()

    def stop(self, force: bool = False) -> bool:
        """Unpin and stop the server; gives whether it ran.

        Raises BusyError, and changes nothing, while other commands use it; `force` takes it from
        them, and their statements fail.
        """
        with self._readable_errors():
            if not self._users.exists():
                return False
            # Long enough for a command that is leaving to have left.
            timeout = 0.0 if force else LEAVING_TIMEOUT
            with locks.held(self._users, exclusive=True, timeout=timeout) as alone:
                if not (alone or force):
                    pids = locks.holders(self._users)
                    who = f" by process {', '.join(map(str, pids))}" if pids else ""
                    raise BusyError(
                        f"The embedded PostgreSQL in {self.folder} is in use{who}: wait until "
                        "that has ended, or stop it all the same with `mesh down --force`"
                    )
                self._pinned.unlink(missing_ok=True)
                return self._stop()

    def status(self) -> Status:
        """Takes no lock and starts nothing."""
        with self._readable_errors():
            running = self._cluster.postmaster()
            users = locks.holders(self._users)
            return Status(
                running=running is not None,
                pid=running.pid if running else None,
                port=running.port if running else None,
                version=version(),
                pinned=self._pinned.exists(),
                users=None if users is None else len(users),
                data_bytes=self._cluster.data_bytes(),
            )

    def _enter(self) -> int:
        """Count in as a user; gives the descriptor that holds the place."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = locks.acquire(self._users, exclusive=False, timeout=STOPPING_TIMEOUT)
        if place is None:
            raise BusyError(
                f"Another command has been stopping the embedded PostgreSQL in {self.folder} for "
                f"{STOPPING_TIMEOUT} s: see `mesh status`, and run this command again afterwards"
            )
        return place

    def _ensure_running(self) -> Endpoint:
        running = self._ready()
        if running is None:
            with self._alone_starting():
                running = self._ready() or self._start()
        passwords = self._passwords()
        return Endpoint(HOST, running.port, {role: passwords[role] for role in ROLES})

    @contextmanager
    def _alone_starting(self) -> Iterator[None]:
        with locks.held(self._starting, exclusive=True, timeout=STARTING_TIMEOUT) as alone:
            if not alone:
                raise BusyError(
                    f"Another command has been starting the embedded PostgreSQL in {self.folder} "
                    f"for {STARTING_TIMEOUT} s: see {self._cluster.log}, end that command, and "
                    "run this one again"
                )
            yield

    def _ready(self) -> Postmaster | None:
        """The server if it can be used as it is."""
        running = self._cluster.postmaster()
        usable = running and running.state == "ready" and self._granted_by() == _grants_digest()
        return running if usable else None

    def _start(self) -> Postmaster:
        if not self._cluster.exists():
            self._cluster.initialise(self._passwords(create=True)[SUPERUSER])
        passwords = self._passwords()
        running = self._cluster.settled() or self._cluster.start(self._remembered_port())
        write(self._port, f"{running.port}\n")
        if self._granted_by() != _grants_digest():
            _grant(running.port, passwords)
            write(self._granted, _grants_digest())
        return running

    def _stop_if_unused(self) -> None:
        if not self._users.exists():
            return  # the home was removed in the meantime
        with self._readable_errors(), locks.held(self._users, exclusive=True) as alone:
            if alone and not self._pinned.exists():
                self._stop()

    def _stop(self) -> bool:
        with self._alone_starting():
            running = self._cluster.postmaster()
            self._cluster.stop()
            return running is not None

    def _passwords(self, create: bool = False) -> dict[str, str]:
        """By role, the superuser included."""
        try:
            passwords = json.loads(self._secrets.read_text(encoding="ascii"))
        except FileNotFoundError:
            if not create:
                raise WarehouseError(
                    f"{self._secrets} is missing: it holds the passwords of the data in "
                    f"{self._cluster.data}. Put it back, or remove the data with `make clean` and "
                    "build it anew with `make run`"
                ) from None
            passwords = {role: secrets.token_urlsafe(32) for role in (SUPERUSER, *ROLES)}
            write(self._secrets, json.dumps(passwords), mode=0o600)
        except ValueError:
            passwords = None
        if not isinstance(passwords, dict) or not {SUPERUSER, *ROLES} <= passwords.keys():
            # Without the text itself, and without the error that quotes it.
            raise WarehouseError(
                f"{self._secrets} does not hold the passwords of {', '.join((SUPERUSER, *ROLES))} "
                "any more. Put it back as it was, or remove it and the data with `make clean` and "
                "build them anew with `make run`"
            )
        return passwords

    def _remembered_port(self) -> int | None:
        try:
            return int(self._port.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def _granted_by(self) -> str | None:
        try:
            return self._granted.read_text(encoding="ascii")
        except FileNotFoundError:
            return None

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Say what of the file system's errors a person needs to know."""
        try:
            yield
        except OSError as error:
            raise WarehouseError(
                f"The embedded PostgreSQL cannot use {error.filename or self.folder}: "
                f"{error.strerror or error}. It needs a local disk with room for the data, and "
                f"{self.folder} to belong to the user who runs the command: mend that, or set "
                "MESH_HOME to another folder"
            ) from error


def _grants_digest() -> str:
    parts = (*ROLES, *OWNERS, *GRANTS, str(SCRAM_ITERATIONS))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _verifier(password: str) -> str:
    """What verifies the password, which is all that the server is told (RFC 5803).

    Iterations make a password hard to guess that a person chose. These are random, so they would
    buy nothing, and cost milliseconds of every connection; Dagster opens two an event.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(SCRAM_ITERATIONS, *encoded)


def _grant(port: int, passwords: Mapping[str, str]) -> None:
    """Create what is missing of roles and databases, and set who may do what."""
    import psycopg
    from psycopg import sql

    try:
        with psycopg.connect(
            host=HOST,
            port=port,
            user=SUPERUSER,
            password=passwords[SUPERUSER],
            dbname="postgres",
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            existing = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
            for role in ROLES:
                if role not in existing:
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
                verifier = _verifier(passwords[role])
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(verifier)
                    )
                )
            existing = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for database in OWNERS:
                if database not in existing:
                    connection.execute(
                        sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database))
                    )
            for statement in GRANTS:
                connection.execute(sql.SQL(statement))
    except psycopg.Error as error:
        raise WarehouseError(
            f"The roles and databases of the embedded PostgreSQL on {HOST}:{port} could not be "
            f"set up: {error}\nRun the command again; if it stays so, `make clean` removes the "
            "data and `make run` builds it anew"
        ) from error
