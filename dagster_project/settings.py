"""Where things are: the only place that reads MESH_* environment variables.

The same definitions run on a laptop and on Kubernetes; what changes is here. Reading the settings
touches no network, no database and creates no file.
"""

from __future__ import annotations

import difflib
import os
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from dagster_project.failures import SettingsError

PREFIX = "MESH_"

#: The checkout (or, in an image, the folder that holds the same files).
PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "dagster_project"
DEFS = PACKAGE / "defs"
DBT_PROJECT_DIR = PROJECT / "dbt_project"
EXPECTATIONS = PROJECT / "expectations"
REQUIREMENTS = PROJECT / "requirements"
WORKSPACE = PROJECT / "workspace.yaml"


class Environment(StrEnum):
    """The closed list of environments: there is no fallback."""

    LOCAL = "local"
    STAGING = "staging"
    PRODUCTION = "production"

    @property
    def speaks_for_all(self) -> bool:
        """Whether what it has is what there is of all that environments have together."""
        return self is Environment.PRODUCTION


class Executor(StrEnum):
    """What executes the steps of a location's runs."""

    #: Side by side in the run's own process, or pod.
    MULTIPROCESS = "multiprocess"
    #: Each in a Kubernetes Job of its own.
    K8S_JOB = "k8s_job"


def _postgresql(url: SecretStr) -> SecretStr:
    scheme, _, rest = url.get_secret_value().partition("://")
    if scheme == "postgres":
        # libpq takes it for the same, SQLAlchemy does not know it.
        return SecretStr(f"postgresql://{rest}")
    if scheme != "postgresql":
        raise ValueError("must be of the form postgresql://user:password@host:port/database")
    if not _is_whole(url.get_secret_value()):
        raise ValueError(
            "must be of the form postgresql://user:password@host:port/database, with characters "
            "such as / # @ in the password percent-encoded"
        )
    return url


def _is_whole(url: str) -> bool:
    """Whether its parts are where they seem to be."""
    try:
        parts = urlsplit(url)
        return parts.netloc.count("@") < 2 and (parts.port is None or bool(parts.hostname))
    except ValueError:
        return False


def _lake(url: str) -> str:
    parts = urlsplit(url)
    if not parts.scheme:
        raise ValueError("must be a URL such as file:///data/lake or s3://bucket/prefix")
    if "@" in parts.netloc:
        raise ValueError("must not hold credentials: an object store's are AWS_ variables")
    return url


def _web(url: str) -> str:
    parts = urlsplit(url)
    # What is asked for is put behind it.
    is_plain = "@" not in parts.netloc and "?" not in url and "#" not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ValueError("must be of the form http://host:port or https://host/path")
    return url.rstrip("/")


def _webhook(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL of http or https")
    return url


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgresql)]


class Settings(BaseSettings):
    """The platform's settings, each from the environment variable of its name after MESH_."""

    # A variable that is empty counts as one that is not set: MESH_HOME= is not the current folder.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    env: Environment = Field(Environment.LOCAL, description="Which environment this is.")
    home: Path = Field(
        PROJECT / ".mesh",
        description="Where all local state lies: the embedded warehouse, the lake, connectors' "
        "environments, DAGSTER_HOME, logs. `make clean` removes it.",
    )
    warehouse_url: PostgresUrl | None = Field(
        None, description="A PostgreSQL (16 or newer) to use in place of the embedded one."
    )
    dagster_url: PostgresUrl | None = Field(
        None,
        description="Dagster's own storage. Never follows the warehouse; the embedded PostgreSQL "
        "if unset.",
    )
    lake_url: Annotated[str, AfterValidator(_lake)] | None = Field(
        None,
        description="The object store: file:// or s3://. A folder under MESH_HOME if unset. S3's "
        "endpoint, region and credentials are AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY.",
    )
    faker_users: int = Field(
        10_000, ge=1, le=50_000_000, description="How many users the shop's reference source has."
    )
    reference_url: str | None = Field(
        None,
        description="Where the reference source systems of fleet and weather answer. `mesh run` "
        "starts them on a free port of loopback if unset.",
    )
    docs_url: Annotated[str, AfterValidator(_web)] | None = Field(
        None,
        description="Where people's browsers find the site that `mesh docs` builds; checks link "
        "there. On loopback `mesh ui` serves it. If unset: http://127.0.0.1:3001 in the "
        "environment local; elsewhere checks link to the objects in the lake.",
    )
    ui_url: Annotated[str, AfterValidator(_web)] | None = Field(
        None,
        description="Where people's browsers find the Dagster UI; alerts link there. "
        "http://127.0.0.1:3000 if unset; `mesh ui` knows better.",
    )
    alerts_webhook: Annotated[SecretStr, AfterValidator(_webhook)] | None = Field(
        None,
        description="Where alerts are sent, in the format of Slack's incoming webhooks. They are "
        "written to a file under MESH_HOME and shown by `mesh status` in any case.",
    )
    datahub_gms_url: Annotated[str, AfterValidator(_web)] | None = Field(
        None,
        description="Where DataHub's server, GMS, answers: http://host:8080, or the frontend's way "
        "to it, https://host/api/gms. What DataHub is told is written to files under MESH_HOME "
        "if unset.",
    )
    datahub_token: SecretStr | None = Field(
        None, description="The access token that DataHub's server asks for, if it does."
    )
    datahub_url: Annotated[str, AfterValidator(_web)] | None = Field(
        None,
        description="Where people's browsers find DataHub; assets in the Dagster UI link there. No "
        "links if unset.",
    )
    connectors_dir: Path | None = Field(
        None,
        description="Where the connectors' environments lie, as in an image that has them: "
        "connectors/ under MESH_HOME if unset.",
    )
    dbt_target_dir: Path | None = Field(
        None,
        description="Where the parsed dbt project lies, as in an image that has it, written by "
        "`mesh deploy prepare` and only read from then on: dbt/ under MESH_HOME if unset.",
    )
    sync_timeout: int = Field(
        3600, ge=1, description="Seconds after which a connector that still runs is stopped."
    )
    step_retries: int = Field(
        2,
        ge=0,
        description="How often a step is tried again whose source, lake or warehouse was away.",
    )
    parallel_steps: int | None = Field(
        None,
        ge=1,
        description="Steps of one run that may run side by side; the CPU count if unset.",
    )

    executor: Executor = Field(
        Executor.MULTIPROCESS,
        description="What executes the steps of a run: multiprocess, in the run's own process; on "
        "Kubernetes k8s_job, each in a Job of its own, for locations whose steps are all heavy.",
    )

    @property
    def lake(self) -> str:
        return self.lake_url or (self.home.absolute() / "lake").as_uri()

    @property
    def docs(self) -> str | None:
        """Where the site of all results answers; None if nobody serves it."""
        if self.docs_url is None and self.env is Environment.LOCAL:
            return "http://127.0.0.1:3001"
        return self.docs_url

    @property
    def ui(self) -> str:
        """Where the Dagster UI answers."""
        return self.ui_url or "http://127.0.0.1:3000"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    @property
    def dbt_target(self) -> Path:
        """Where the parsed dbt project lies, read by every code location."""
        return self.dbt_target_dir or self.dbt_work

    @property
    def dbt_work(self) -> Path:
        """Where dbt writes what it makes besides; the same folder on a laptop."""
        return self.home / "dbt"

    @property
    def dbt_runs(self) -> Path:
        """What dbt writes while it builds: a folder a run."""
        return self.dbt_work / "runs"

    @property
    def connectors(self) -> Path:
        """One Python environment a connector."""
        return connectors_folder(self.home, self)


def connectors_folder(home: Path, settings: Settings | None = None) -> Path:
    """Where the connectors' environments of a home lie, unless they all lie elsewhere."""
    folder = (settings or get_settings()).connectors_dir
    return folder.absolute() if folder else home.absolute() / "connectors"


def _unknown(environ: dict[str, str]) -> list[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    lines = []
    for name in sorted({n for n in environ if n.startswith(PREFIX)} - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
        lines.append(f"{name} is not a setting: {hint}")
    return lines


def read_settings() -> Settings:
    """The settings of this process's environment, read anew.

    Raises SettingsError, naming each mistaken variable and what is allowed, never its value.
    """
    problems = _unknown(dict(os.environ))
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_url=False):
            name = PREFIX + str(fault["loc"][0]).upper()
            problems.append(f"{name}: {fault['msg']}")
        settings = None
    if problems or settings is None:
        raise SettingsError("\n".join(problems))
    return settings


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return read_settings()


def warehouse_url(settings: Settings | None = None) -> str:
    """The warehouse's URL, with its password. Raises SettingsError if this process knows none."""
    settings = settings or get_settings()
    if settings.warehouse_url is None:
        raise SettingsError(
            "no warehouse: MESH_WAREHOUSE_URL is not set. `mesh run`, `mesh ui` and `mesh exec` "
            "set it to the embedded PostgreSQL; elsewhere it names yours"
        )
    return settings.warehouse_url.get_secret_value()
