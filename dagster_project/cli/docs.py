"""`mesh docs`: the site of all results, built, and served on loopback."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import typer

from dagster_project.cli.services import prepare_home
from dagster_project.domain import domain_names, read_domain
from dagster_project.failures import BusyError, LakeError, MeshError, SettingsError
from dagster_project.lake.store import Lake
from dagster_project.quality.docs import SITE, Site, build
from dagster_project.quality.results import kept
from dagster_project.quality.suites import read_suites
from dagster_project.settings import Settings, get_settings

_LOOPBACK = ("127.0.0.1", "localhost")


def show(settings: Settings, serve: bool) -> int:
    """Build the site, and serve it if asked to; the exit code."""
    address = _loopback(settings)
    if serve and address is None:
        raise SettingsError(
            f"MESH_DOCS_URL is {settings.docs}, which is not served from here: --serve needs one "
            "such as http://127.0.0.1:3001"
        )
    site = _build(settings)
    if serve:
        with serving(settings):
            print(f"Data Docs on {settings.docs} - Ctrl-C ends it", flush=True)
            threading.Event().wait()
    return 1 if site.faults else 0


def _build(settings: Settings) -> Site:
    prepare_home(settings)
    domains = domain_names()
    site = build(
        _folder(settings),
        Lake(settings.lake),
        [suite for domain in domains for suite in read_suites(domain)],
        {table: c for domain in domains for table, c in read_domain(domain).personal_data.items()},
        _say,
    )
    print(
        f"{site.results} results of {site.suites} suites, {site.rendered} of them new: "
        f"{(site.folder / 'index.html').absolute()}"
    )
    for fault in site.faults:
        typer.echo(f"mesh: {fault}", err=True)
    return site


def _say(done: int, of: int) -> None:
    if sys.stdout.isatty():
        print(f"\r{done} of {of} pages", end="\n" if done == of else "", flush=True)


def _folder(settings: Settings) -> Path:
    return settings.home / "docs"


def _loopback(settings: Settings) -> tuple[str, int] | None:
    """The address of the site if it is one of this machine's own."""
    parts = urlsplit(settings.docs or "")
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK or parts.path:
        return None
    return "127.0.0.1", parts.port or 80


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """While it lasts, the site answers at its address. Does nothing if that is elsewhere.

    A page that is not built yet is built as it is asked for. Raises BusyError if the port is taken.
    """
    address = _loopback(settings)
    if address is None:
        yield
        return
    try:
        server = _Server(address, settings)
    except OSError as error:
        raise BusyError(
            f"Data Docs cannot be served on {settings.docs}: {error.strerror}. End what listens "
            "there, or set MESH_DOCS_URL to another port of 127.0.0.1"
        ) from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.close()


class _Server(ThreadingHTTPServer):
    """Serves the site's folder."""

    def __init__(self, address: tuple[str, int], settings: Settings) -> None:
        self._lake = Lake(settings.lake)
        self._folder = _folder(settings)
        self._building = threading.Lock()
        self._builder: subprocess.Popen[str] | None = None
        super().__init__(address, partial(_Request, directory=str(self._folder / SITE)))

    def there(self, path: str) -> bool:
        return (self._folder / SITE / path).is_file()

    def bring(self, path: str) -> str:
        """Build the site if that gives it this page; why it does not, if it does not."""
        with self._building:
            if self.there(path):
                return ""
            try:
                pages = {item.page for items in kept(self._lake).values() for item in items}
            except LakeError as error:
                return str(error)
            if path not in {*pages, "index.html"}:
                return "This is not kept: only the newest results of each table are"
            self._builder = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "dagster_project.cli.docs"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            return self._builder.communicate()[1]

    def close(self) -> None:
        """Give the port back, and end a build that is under way; the site of before stays."""
        self.server_close()
        if self._builder and self._builder.poll() is None:
            self._builder.kill()


class _Request(SimpleHTTPRequestHandler):
    server: _Server

    def send_head(self) -> Any:
        path = unquote(urlsplit(self.path).path).lstrip("/") or "index.html"
        # By a name of its own a site elsewhere could have a browser read these pages.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in _LOOPBACK:
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        if not self.server.there(path):
            why = self.server.bring(path)
            if not self.server.there(path):
                self.send_error(HTTPStatus.NOT_FOUND, explain=why)
                return None
        return super().send_head()

    def log_message(self, *_: Any, **__: Any) -> None:
        """Not to the terminal."""


def _main() -> int:
    try:
        _build(get_settings())
    except MeshError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
