"""All that can be said before anything has run: every domain as its files declare it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

from dagster_project.catalog.aspects import dataset_proposals
from dagster_project.catalog.assertions import (
    Check,
    assertion_proposals,
    checks_of,
    promise_proposals,
    promised_tables,
)
from dagster_project.catalog.contracts import contract_proposals
from dagster_project.catalog.datasets import (
    Dataset,
    Models,
    feed_datasets,
    model_datasets,
    stream_datasets,
)
from dagster_project.catalog.domains import domain_proposals, source_proposals, tag_proposals
from dagster_project.catalog.jobs import job_proposals, jobs_of
from dagster_project.catalog.kept_lineage import read_lineage
from dagster_project.domain import domain_names, read_domain
from dagster_project.identity import Urns
from dagster_project.ingestion.declaration import read_connections
from dagster_project.ingestion.feed import read_feeds
from dagster_project.quality.own_checks import COLUMNS
from dagster_project.quality.suites import read_suites
from dagster_project.settings import EXPECTATIONS, PACKAGE, Environment, Settings
from dagster_project.transformation.compiled import read_compiled
from dagster_project.transformation.project import project_digest, read_manifest
from dagster_project.warehouse.embedded import WAREHOUSE

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal

#: DataHub's words for the environments.
FABRICS = {
    Environment.LOCAL: "DEV",
    Environment.STAGING: "STG",
    Environment.PRODUCTION: "PROD",
}


#: Files that declare something, by their suffix.
_DECLARING = {".py", ".yaml", ".json"}


def urns_of(settings: Settings) -> Urns:
    """DataHub's names in this environment."""
    database = WAREHOUSE
    if settings.warehouse_url:
        database = unquote(urlsplit(settings.warehouse_url.get_secret_value()).path.lstrip("/"))
    return Urns(FABRICS[settings.env], database, settings.lake)


def declared_version(settings: Settings) -> str:
    """A digest of all that `static_metadata` is made of: files, settings, and this code."""
    digest = hashlib.sha256(project_digest().encode())
    digest.update(repr((urns_of(settings), settings.ui)).encode())
    for folder in (PACKAGE, EXPECTATIONS):
        for path in sorted(folder.rglob("*")):
            if path.suffix in _DECLARING and path.is_file():
                digest.update(f"{path.relative_to(folder)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class InPython:
    """What a domain defines in Python, beside what its files declare."""

    datasets: Sequence[Dataset] = ()
    #: All checks of the domain, those of its files too.
    checks: Sequence[Check] = ()


#: Gives what a domain, by its name, defines in Python; it is told the URNs of all that is declared,
#: by asset key.
FindInPython: TypeAlias = Callable[[Urns, str, Mapping[tuple[str, ...], str]], InPython]


def static_metadata(
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
    in_python: FindInPython = lambda *_: InPython(),
) -> Iterator[Proposal]:
    """Every domain, dataset, data product and contract: what they are before anything has run.

    Raises DeclarationError for a mistake in the domains' files or in the dbt project; `say` hears
    of models whose columns cannot be traced, and of tables of data products that are not there.
    """
    urns = urns_of(settings)
    manifest, compiled = read_manifest(settings), read_compiled(settings)
    dbt = Models(manifest, compiled, read_lineage(settings, manifest, compiled, say))
    declared = {name: list(datasets_of(urns, name, dbt)) for name in domain_names()}
    python = _all_in_python(urns, _by_key(declared.values()), in_python)
    yield from tag_proposals(urns)
    for name, found in declared.items():
        more = python[name]
        datasets = [*found, *more.datasets]
        there = {dataset.urn for dataset in datasets}
        for table in promised_tables(name, read_domain(name)):
            if urns.table(table) not in there:
                say(f"{table}, which a data product of {name} names, is no table of {name}")
        yield from of_domain(urns, name, dbt, datasets, more.checks, settings.ui)


@dataclass(frozen=True, slots=True)
class Assets:
    """What the catalog has of Dagster's assets."""

    #: By asset key the URN of the dataset; of a dbt model, that of the table that it makes.
    datasets: Mapping[tuple[str, ...], str]
    #: By the URN of each job, those of the datasets that it reads.
    jobs: Mapping[str, Sequence[str]]

    def as_json(self) -> list[Any]:
        """As JSON has it."""
        return [sorted(self.datasets.items()), {job: list(self.jobs[job]) for job in self.jobs}]

    @classmethod
    def from_json(cls, said: Any) -> Assets:
        """What `as_json` gave."""
        datasets, jobs = said
        return cls({tuple(key): urn for key, urn in datasets}, jobs)


def assets(settings: Settings, in_python: FindInPython = lambda *_: InPython()) -> Assets:
    """The assets of all domains. Raises DeclarationError for a mistake in the domains' files."""
    urns = urns_of(settings)
    # Which columns are made of which takes seconds, and nobody asks.
    dbt = Models(read_manifest(settings), {}, {})
    declared = [list(datasets_of(urns, name, dbt)) for name in domain_names()]
    known = _by_key(declared)
    more = [each.datasets for each in _all_in_python(urns, known, in_python).values()]
    jobs = dict(job for found in (*declared, *more) for job in jobs_of(urns, found))
    return Assets({**known, **_by_key(more)}, jobs)


def _all_in_python(
    urns: Urns, declared: Mapping[tuple[str, ...], str], find: FindInPython
) -> dict[str, InPython]:
    """By domain, those first that others use: assets in Python may be made of each other."""
    uses = {name: set(read_domain(name).depends_on) for name in domain_names()}
    known, found = dict(declared), {}
    while uses:
        # Of domains that use each other, one has to be the first.
        name = min(uses, key=lambda name: len(uses[name] & uses.keys()))
        del uses[name]
        found[name] = find(urns, name, known)
        known |= _by_key([found[name].datasets])
    return found


def _by_key(found: Iterable[Iterable[Dataset]]) -> dict[tuple[str, ...], str]:
    """URNs by asset key: of a model and the table that it makes, that of the table, the later."""
    return {dataset.asset_key: dataset.urn for datasets in found for dataset in datasets}


def of_domain(
    urns: Urns,
    name: str,
    dbt: Models,
    datasets: Sequence[Dataset],
    in_python: Iterable[Check],
    ui: str,
) -> Iterator[Proposal]:
    """What is said of one domain; `ui` is where Dagster's UI answers."""
    domain = read_domain(name)
    by_urn = {dataset.urn: dataset for dataset in datasets}
    yield from domain_proposals(urns, name, domain, by_urn)
    for connection in read_connections(name):
        yield from source_proposals(urns, name, connection)
    for dataset in datasets:
        yield from dataset_proposals(urns, dataset, urns.owner(domain.owner))
    yield from job_proposals(urns, name, domain, datasets, ui)
    checks = list(checks_of(name, read_suites(name), dbt.manifest))
    declared = {(check.asset_key, check.name) for check in checks}
    checks += [
        check
        for check in in_python
        if (check.asset_key, check.name) not in declared and check.name != COLUMNS
    ]
    yield from assertion_proposals(urns, checks, by_urn, ui)
    yield from promise_proposals(urns, domain, name, by_urn, ui)
    yield from contract_proposals(urns, name, domain, by_urn, checks)


def datasets_of(urns: Urns, name: str, dbt: Models) -> Iterator[Dataset]:
    """A domain's datasets, from its sources to its marts."""
    domain = read_domain(name)
    for connection in read_connections(name):
        for stream in connection.streams:
            yield from stream_datasets(urns, name, domain, connection, stream)
    for feed in read_feeds(name):
        yield from feed_datasets(urns, name, domain, feed)
    yield from model_datasets(urns, name, domain, dbt)
