"""The code servers, kept serving while `mesh ui` does.

Dagster serves a code location by a process that starts another one, in which the definitions are.
When that one is gone, killed for want of memory or by somebody, nobody starts it again, and no
sensor of the location looks any more, until a person asks for a reload. So this does.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import urllib.request
from threading import Event, Thread

import psutil

#: Seconds between two looks, and that a reload may take.
_LOOK, _RELOADING = 3.0, 120.0
_LOCATION = re.compile(r"dagster_project\.locations\.(\w+)")
_RELOAD = """mutation Reload($name: String!) {
    reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }"""


class CodeServers(Thread):
    """Has the locations reloaded whose definitions nobody serves any more."""

    def __init__(self, ui: str) -> None:
        """`ui` is the address of the webserver."""
        super().__init__(name="code servers", daemon=True)
        self._ui = ui
        self._dagster = 0
        self._served: set[int] = set()
        #: Set once they are to end.
        self.ending = Event()

    def watch(self, dagster: int) -> None:
        """Begin, with the process of `dagster dev`, or go on with another one."""
        self._dagster = dagster
        if not self.is_alive():
            self.start()

    def run(self) -> None:
        lost: set[str] = set()
        while not self.ending.wait(_LOOK):
            # Those that were lost at the last look, too: one that ends with all is not restarted.
            found = self._lost()
            for name in found & lost:
                self._reload(name)
            lost = found

    def _lost(self) -> set[str]:
        """The locations that were served and are not."""
        lost = set()
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._dagster).children():
                command = " ".join(process.cmdline())
                location = _LOCATION.search(command)
                if " code-server start " not in command or not location:
                    continue
                if any(child.status() != psutil.STATUS_ZOMBIE for child in process.children()):
                    self._served.add(process.pid)
                elif process.pid in self._served:
                    lost.add(location[1])
        return lost

    def _reload(self, name: str) -> None:
        print(f"mesh: the code server of {name} is gone: started again", file=sys.stderr)
        body = json.dumps({"query": _RELOAD, "variables": {"name": name}}).encode()
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self._ui}/graphql", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_RELOADING):  # noqa: S310
                pass
        except OSError as error:
            print(f"mesh: {name} could not be reloaded ({error})", file=sys.stderr)
