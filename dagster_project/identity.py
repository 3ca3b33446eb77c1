"""The one name of a table.

Every table, stream and object prefix of the platform is named here and nowhere else: its Dagster
asset key, its relation in PostgreSQL, its dbt node, its place in the lake and its URNs in DataHub
follow from one value. Nothing in this module imports a framework: an asset key is a tuple of
strings, a URN is a string.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

#: The dbt project's name, as in dbt_project/dbt_project.yml.
DBT_PROJECT = "mesh"

#: What PostgreSQL keeps of an identifier.
NAME_BYTES = 63
RAW_SUFFIX = "_raw"
STAGING_SUFFIX = "_staging"


def quoted(identifier: str) -> str:
    """The identifier quoted for SQL, whatever it holds."""
    if "\x00" in identifier:
        raise ValueError("an SQL identifier cannot hold a NUL character")
    return '"' + identifier.replace('"', '""') + '"'


def fitting(name: str, suffix: str = "") -> str:
    """The name with the suffix, shortened to what PostgreSQL keeps of an identifier."""
    whole = name + suffix
    if len(whole.encode()) <= NAME_BYTES:
        return whole
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    room = NAME_BYTES - len(f"_{digest}{suffix}")
    return f"{name.encode()[:room].decode(errors='ignore')}_{digest}{suffix}"


@dataclass(frozen=True, order=True, slots=True)
class Table:
    """A table or view of the warehouse."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Table:
        """`schema.table` as a Table. Raises ValueError if the text is not of that form."""
        schema, dot, name = text.partition(".")
        if not (dot and schema and name) or "." in name:
            raise ValueError(f"{text!r} is not of the form schema.table")
        return cls(schema, name)

    @property
    def domain(self) -> str:
        """The domain that owns the schema: `fleet`, `fleet_raw` and `fleet_staging` are fleet's."""
        for suffix in (RAW_SUFFIX, STAGING_SUFFIX):
            if self.schema.endswith(suffix):
                return self.schema.removesuffix(suffix)
        return self.schema

    @property
    def asset_key(self) -> tuple[str, str]:
        return (self.schema, self.name)

    @property
    def is_raw(self) -> bool:
        """Whether it holds what a source gave."""
        return self.schema.endswith(RAW_SUFFIX)

    @property
    def relation(self) -> str:
        """The quoted relation, safe to put into SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def rejects(self) -> Table:
        """Where rows that could not be loaded are kept, with the reason."""
        return Table(self.schema, fitting(self.name, "__rejects"))

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def raw_table(domain: str, stream: str) -> Table:
    """Where a domain's stream or feed is loaded."""
    return Table(f"{domain}{RAW_SUFFIX}", stream)


@dataclass(frozen=True, order=True, slots=True)
class Stream:
    """A stream of an Airbyte connection, from its source system to its prefix in the lake."""

    domain: str
    connection: str
    name: str

    @property
    def source(self) -> str:
        """The source system that it is of, among those of all domains."""
        return f"{self.domain}.{self.connection}"

    @property
    def source_key(self) -> tuple[str, ...]:
        """The asset key of the stream in its source system."""
        return ("source", self.domain, self.connection, self.name)

    @property
    def asset_key(self) -> tuple[str, ...]:
        """The asset key of the stream's objects in the lake."""
        return ("lake", self.domain, self.connection, self.name)

    @property
    def prefix(self) -> str:
        return f"{self.domain}/{self.connection}/{self.name}"

    @property
    def table(self) -> Table:
        return raw_table(self.domain, self.name)


@dataclass(frozen=True, order=True, slots=True)
class Feed:
    """Files that a system outside drops into the lake's landing zone."""

    domain: str
    name: str

    @property
    def asset_key(self) -> tuple[str, ...]:
        return ("landing", self.domain, self.name)

    @property
    def prefix(self) -> str:
        return f"landing/{self.domain}/{self.name}"

    @property
    def table(self) -> Table:
        return raw_table(self.domain, self.name)


#: What a URN cannot hold as it is, and how DataHub writes it.
_RESERVED = {",": "%2C", "(": "%28", ")": "%29", "\N{SYMBOL FOR UNIT SEPARATOR}": "%E2%90%9F"}


@dataclass(frozen=True, slots=True)
class Urns:
    """DataHub's names of what one environment has.

    They are those of DataHub's own connectors for dbt, PostgreSQL and S3, so that a person who runs
    one of these finds the same entities. Domains, data products, owners and tags are the same ones
    in every environment.
    """

    #: DataHub's word for the environment, such as PROD.
    fabric: str
    #: The warehouse's database.
    database: str
    #: The lake's URL.
    lake: str

    def table(self, table: Table) -> str:
        """A table or view, as PostgreSQL has it."""
        return self._dataset("postgres", f"{self.database}.{table}")

    def model(self, table: Table) -> str:
        """The dbt model that makes a table: the sibling of the table."""
        return self._dataset("dbt", f"{self.database}.{table}")

    def stream(self, stream: Stream) -> str:
        """A stream in its source system."""
        return self._dataset("airbyte", f"{stream.source}.{stream.name}")

    def source(self, stream: Stream) -> str:
        """The source system that a stream is of: an instance of the platform of sources."""
        return f"urn:li:dataPlatformInstance:({self.platform('airbyte')},{stream.source})"

    def objects(self, place: Stream | Feed) -> str:
        """The objects of a stream or a feed in the lake."""
        scheme, _, root = self.lake.partition("://")
        # Where a folder lies is one machine's affair.
        name = f"lake/{place.prefix}" if scheme == "file" else f"{root.rstrip('/')}/{place.prefix}"
        return self._dataset(scheme, name)

    def asset(self, asset_key: tuple[str, ...]) -> str:
        """What an asset makes that is neither of the warehouse nor of the lake."""
        return self._dataset("dagster", "/".join(asset_key))

    def column(self, dataset: str, column: str) -> str:
        """A column of the dataset of this URN."""
        return f"urn:li:schemaField:({dataset},{_encoded(column)})"

    @staticmethod
    def column_of(urn: str) -> tuple[str, str]:
        """The dataset and the column of a column's URN."""
        dataset, _, column = urn.removeprefix("urn:li:schemaField:(")[:-1].rpartition(",")
        return dataset, _decoded(column)

    def flow(self, domain: str) -> str:
        """A domain's code location."""
        return f"urn:li:dataFlow:(dagster,{_encoded(domain)},{self.fabric})"

    def job(self, domain: str, asset_key: tuple[str, ...]) -> str:
        """What makes an asset."""
        return f"urn:li:dataJob:({self.flow(domain)},{_encoded('/'.join(asset_key))})"

    def run(self, run_id: str, asset_key: tuple[str, ...] | None = None) -> str:
        """A run of Dagster, or what it did of one asset."""
        part = "" if asset_key is None else f".{'/'.join(asset_key)}"
        return f"urn:li:dataProcessInstance:{_encoded(f'{self.fabric}.{run_id}{part}')}"

    def check(self, asset_key: tuple[str, ...], name: str) -> str:
        """A check of an asset, whatever its thresholds are."""
        # A table as people write it; of other keys, no two are written alike.
        of = ("." if len(asset_key) == 2 else "/").join(asset_key)
        return f"urn:li:assertion:{_encoded(f'{self.fabric}.{of}.{name}')}"

    def contract(self, table: Table) -> str:
        """The contract of a table with those who use it."""
        return f"urn:li:dataContract:{_encoded(f'{self.fabric}.{table}')}"

    def product(self, domain: str, name: str) -> str:
        """A data product by the name that its domain gives it."""
        return f"urn:li:dataProduct:{_encoded(f'{domain}.{slug(name)}')}"

    def domain(self, name: str) -> str:
        return f"urn:li:domain:{_encoded(name)}"

    def owner(self, owner: str) -> str:
        """Who answers for a domain, as domain.yaml has it: `team:<name>`, or an e-mail address."""
        if owner.startswith("team:"):
            return f"urn:li:corpGroup:{_encoded(owner.removeprefix('team:'))}"
        return f"urn:li:corpuser:{_encoded(owner)}"

    def tag(self, name: str) -> str:
        return f"urn:li:tag:{_encoded(name)}"

    def platform(self, name: str) -> str:
        return f"urn:li:dataPlatform:{name}"

    def platform_of(self, dataset: str) -> str:
        """The platform of a dataset's URN."""
        return dataset.removeprefix("urn:li:dataset:(").partition(",")[0]

    def _dataset(self, platform: str, name: str) -> str:
        return f"urn:li:dataset:({self.platform(platform)},{_encoded(name)},{self.fabric})"


def _encoded(part: str) -> str:
    return "".join(_RESERVED.get(character, character) for character in part)


def _decoded(part: str) -> str:
    for character, written in _RESERVED.items():
        part = part.replace(written, character)
    return part


def slug(name: str) -> str:
    """What a person calls something, in lower case, of letters, digits and `_`."""
    return re.sub(r"\W+", "_", name.casefold()).strip("_")
