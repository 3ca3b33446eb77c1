"""Where proposals are delivered: files of DataHub's own format, or its server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from dagster_project.catalog.files import as_record, events_folder, metadata_file, write
from dagster_project.catalog.server import Server
from dagster_project.failures import CatalogError
from dagster_project.settings import Settings

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal

#: Proposals that are not all refused because of what they are.
_SUSPICIOUS = 20
#: The name of a delivery of declarations.
DECLARATIONS = "declarations"


class Destination(Protocol):
    """What takes proposals. The same ones may be delivered again."""

    @property
    def name(self) -> str:
        """What it is called in the books, for as long as it is the same one."""

    @property
    def former(self) -> str | None:
        """What it was called in the books before, if it was."""

    @property
    def is_edited(self) -> bool:
        """Whether people change there what it was told."""

    def deliver(self, name: str, proposals: Sequence[Proposal]) -> dict[int, str]:
        """Have it take them all; those that it refuses are given by their place, with why.

        Deliveries of the same name take each other's place. Raises TransientCatalogError if it
        takes nothing now, and CatalogError if somebody has to do something about that.
        """

    def close(self) -> None: ...


class Files:
    """A file a delivery under MESH_HOME, which DataHub's `file` source reads."""

    is_edited = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Several homes can have one event log between them: each writes all that happens.
        folder = events_folder(settings).parent
        self.name = f"files in {folder.absolute()}"
        self.former = "files" if folder.exists() else None

    def deliver(self, name: str, proposals: Sequence[Proposal]) -> dict[int, str]:
        """Write the file whole, or leave it as it was. Files refuse nothing."""
        records = map(as_record, proposals)
        if proposals and name == DECLARATIONS:
            write(metadata_file(self._settings), records)
        elif proposals:
            # Events of another log, as of another database, can have the same numbers.
            write(events_folder(self._settings) / f"{name}.json", records, keep=True)
        return {}

    def close(self) -> None: ...


class Gms:
    """DataHub's server."""

    former = None
    is_edited = True

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._server = Server(url, token)

    def deliver(self, name: str, proposals: Sequence[Proposal]) -> dict[int, str]:
        places = {id(proposal): place for place, proposal in enumerate(proposals)}
        refusals = self._server.deliver(proposals)
        are_sent = sum(each.was_sent for each in refusals)
        if len(refusals) == len(proposals) and are_sent >= _SUSPICIOUS:
            why = next(each.reason for each in refusals if each.was_sent)
            raise CatalogError(
                f"{self.name} refuses everything, such as: {why}. Is it a DataHub "
                "server (MESH_DATAHUB_GMS_URL), of a version that knows what it is told?"
            )
        return {places[id(each.proposal)]: each.reason for each in refusals}

    def close(self) -> None:
        self._server.close()


def destination_of(settings: Settings) -> Destination:
    """Where this environment's catalog is: the server if there is one, else files."""
    if settings.datahub_gms_url is None:
        return Files(settings)
    token = settings.datahub_token
    return Gms(settings.datahub_gms_url, token.get_secret_value() if token else None)
