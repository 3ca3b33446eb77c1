"""How runs are launched: forked from a process that has everything loaded, where there is one.

Dagster's own launcher has the code server start a Python for each run. That is what happens here
too when the prefork server does not answer: while it loads, after it was killed, not on Linux.
"""

from __future__ import annotations

import socket
import sys

from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import MAX_RETRIES_TAG

from dagster_project.orchestration.prefork import BEGUN, GO, LARGEST, address
from dagster_project.orchestration.problem import STARTED_BY
from dagster_project.orchestration.run_process import PROCESS, RunProcess
from dagster_project.settings import get_settings

#: Seconds in which the server has to fork, and the fork to begin.
_FORKING, _BEGINNING = 5.0, 60.0


class PreforkRunLauncher(DefaultRunLauncher):
    """DefaultRunLauncher, with runs that begin at once.

    A run has its process in a tag: so whoever has the run can interrupt the process, and see that
    it is gone. That works without the server that forked it.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        process = RunProcess.of(run)
        if process and process.is_alive():
            return  # it was launched before, and who launched it did not hear of it
        self._forget_inherited(run)
        if self._fork(run):
            self._run_ids.add(run.run_id)
            return
        again = self._instance.get_run_by_id(run.run_id)
        if again and RunProcess.of(again):  # a fork that did not begin
            self._instance.add_run_tags(run.run_id, {PROCESS: ""})
        super().launch_run(context)

    def _forget_inherited(self, run: DagsterRun) -> None:
        """Of a run that a command executed, what is not so of the one that executes it again."""
        if run.tags.get(STARTED_BY):
            retries = str(self._instance.run_retries_max_retries)
            not_so = {STARTED_BY: "", MAX_RETRIES_TAG: retries}
            self._instance.add_run_tags(run.run_id, not_so)

    def _fork(self, run: DagsterRun) -> bool:
        """Whether the run was begun, or may have been: the server's module says how that goes."""
        if sys.platform != "linux":
            return False
        told = False
        try:
            with (
                address(get_settings().dagster_home) as path,
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
            ):
                connection.settimeout(_FORKING)
                connection.connect(path)
                connection.send(run.run_id.encode())
                process = connection.recv(LARGEST).decode()
                if not process:
                    return False
                # Before the run is begun, which writes to the run's record too.
                self._instance.add_run_tags(run.run_id, {PROCESS: process})
                connection.settimeout(_BEGINNING)
                connection.send(GO)
                told = True
                return connection.recv(LARGEST) == BEGUN
        except TimeoutError:
            return told  # a process that is slow is not one that is gone
        except OSError:
            return False

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        process = RunProcess.of(run) if run and not run.is_finished else None
        if not run or not process or not process.is_here:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        if not process.is_alive() and self._is_finished(run_id):
            return False
        self._instance.report_run_canceling(run)
        if process.interrupt():
            return True
        # Nobody else would say it before run monitoring runs out of patience.
        self._instance.report_run_canceled(run, process.gone())
        return True

    def _is_finished(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is None or run.is_finished

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Of runs that have not come as far as to have a process nothing is known."""
        process = RunProcess.of(run)
        if process and process.is_gone():
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, process.gone())
        return CheckRunHealthResult(WorkerStatus.RUNNING)
