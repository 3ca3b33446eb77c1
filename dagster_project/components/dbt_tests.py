"""dbt's tests as asset checks: which a step has to run, and which verdicts stand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from dagster_project.identity import Table
from dagster_project.quality.standing import TestVerdict, record_tests, tests_not_run
from dagster_project.quality.suites import Severity
from dagster_project.transformation.versions import Built, node_table
from dagster_project.warehouse.ledger import digest

_EVALUATED = {
    AssetCheckExecutionRecordStatus.SUCCEEDED,
    AssetCheckExecutionRecordStatus.FAILED,
}
#: What a verdict is about: a digest of the test, and of the versions of the tables that it reads.
_TESTED = "tested versions"


def _code(manifest: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
    """What the test asks, and how it judges the answer."""
    macros = [manifest["macros"].get(name) or {} for name in test["depends_on"]["macros"]]
    asked = [test["config"], test.get("test_metadata")]
    return [
        test["raw_code"],
        orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode(),
        *(macro.get("macro_sql", "") for macro in macros),
    ]


class Tests:
    """The tests of a step's models.

    A verdict stands as long as none of the tables that the test reads changed. A test that has no
    verdict, or failed, is run again: a failure is never left behind by a model's being up to date.
    What tests said lies beside the tables, too, so that a run of another domain knows it.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        url: str,
        manifest: Mapping[str, Any],
        existing: Collection[dg.AssetCheckSpec],
        built: Built,
        changed: Collection[str] = (),
        refused: Collection[str] = (),
    ) -> None:
        """`existing` are all tests of the step's models, also those that this run has not selected;
        `built` is what the warehouse holds when the step has ended; `changed` are the unique ids of
        models that are built, `refused` of those that are left out.
        """
        nodes = {**manifest["nodes"], **manifest["sources"]}
        self._nodes = {
            node["name"]: node for node in nodes.values() if node["resource_type"] == "test"
        }
        self._url, self._run_id = url, context.run.run_id
        self._tables = {
            key.name: Table(*key.asset_key.path[-2:]) for key in context.selected_asset_check_keys
        }
        self._versions = {table: built.version(table) for table in self._tables.values()}
        self._existing: dict[Table, list[str]] = {
            Table(*key.path[-2:]): [] for key in context.selected_asset_keys
        }
        self._existing |= {table: [] for table in self._tables.values()}
        for spec in existing:
            table = Table(*spec.asset_key.path[-2:])
            if table in self._existing:
                self._existing[table].append(spec.name)
        changed_tables = {node_table(nodes[unique_id]) for unique_id in changed}
        #: Of tables that are built, critical tests that are not run now.
        self._put_off: dict[Table, set[str]] = {
            table: {name for name in names if self._is_critical(name)} - self._tables.keys()
            for table, names in self._existing.items()
            if table in changed_tables
        }
        unknown = tests_not_run(url, self._existing)
        self._tested: dict[str, str] = {}
        self._standing: list[dg.AssetCheckResult] = []
        #: The names of those to run.
        self.to_run: list[str] = []
        out = {dg.AssetKey(list(node_table(nodes[u]).asset_key)) for u in refused}
        for key in sorted(context.selected_asset_check_keys):
            if key.asset_key in out or key.name not in self._nodes:
                continue
            parents = self._nodes[key.name]["depends_on"]["nodes"]
            tables = [node_table(nodes[parent]) for parent in parents if parent in nodes]
            self._tested[key.name] = digest(
                *(f"{t}={built.version(t)}" for t in sorted(tables)),
                *_code(manifest, self._nodes[key.name]),
            )
            is_known = not set(parents) & set(changed) and key.name not in unknown
            stands = self._verdict(context, key) if is_known else None
            if stands:
                self._standing.append(stands)
            else:
                self.to_run.append(key.name)

    def standing(self) -> Iterator[dg.AssetCheckResult]:
        """The verdicts that stand."""
        yield from self._standing

    def begin(self) -> None:
        """Note, before dbt starts, of which tests nobody knows what they say.

        Whatever happens from then on, what they said before is not said of what dbt builds.
        """
        waiting = {table: set(names) for table, names in self._put_off.items()}
        for name in filter(self._is_critical, self.to_run):
            waiting.setdefault(self._tables[name], set()).add(name)
        verdicts = {
            table: [TestVerdict(name, Severity.CRITICAL, passed=False) for name in sorted(names)]
            for table, names in waiting.items()
        }
        record_tests(self._url, verdicts, self._run_id, self._existing)

    def _is_critical(self, name: str) -> bool:
        node = self._nodes.get(name)
        return node is not None and str(node["config"]["severity"]).lower() == "error"

    def _verdict(
        self, context: dg.AssetExecutionContext, key: dg.AssetCheckKey
    ) -> dg.AssetCheckResult | None:
        """The last verdict, if it stands."""
        history = context.instance.event_log_storage.get_asset_check_execution_history(
            key, limit=1, status=_EVALUATED
        )
        last = history[0].evaluation if history else None
        if last is None or (not last.passed and last.severity is dg.AssetCheckSeverity.ERROR):
            return None
        tested = last.metadata.get(_TESTED)
        if tested is None or tested.value != self._tested[key.name]:
            return None
        return dg.AssetCheckResult(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=last.passed,
            severity=last.severity,
            metadata={
                **last.metadata,
                "as found by": dg.MetadataValue.dagster_run(history[0].run_id),
            },
        )

    def shown(self, result: dg.AssetCheckResult, target: Path) -> dg.AssetCheckResult:
        """The result with the query that found it, which dbt compiled into the folder `target`.

        It is noted beside the table.
        """
        assert result.check_name
        table = self._tables[result.check_name]
        severity = (
            Severity.CRITICAL
            if result.severity is dg.AssetCheckSeverity.ERROR
            else Severity.WARNING
        )
        verdict = TestVerdict(
            result.check_name, severity, bool(result.passed), self._versions[table]
        )
        record_tests(self._url, {table: [verdict]}, self._run_id)
        node = self._nodes[result.check_name]
        metadata: dict[str, Any] = {**(result.metadata or {})}
        metadata[_TESTED] = self._tested[result.check_name]
        path = (
            target / "compiled" / node["package_name"] / node["original_file_path"] / node["path"]
        )
        if not path.exists():  # a test that is a file of its own
            path = target / "compiled" / node["package_name"] / node["original_file_path"]
        if path.is_file():
            metadata["query"] = dg.MetadataValue.md(f"```sql\n{path.read_text().strip()}\n```")
        return dg.AssetCheckResult(
            asset_key=result.asset_key,
            check_name=result.check_name,
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=metadata,
        )
