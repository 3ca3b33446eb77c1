"""A Kubernetes as far as Dagster asks one: Jobs and pods whose containers are processes here.

What an image, a node and a kubelet give is given as far as it shows: the image's environment, what
ConfigMaps, Secrets and emptyDir volumes hold, the folders that are mounted, the signal that ends a
pod. It is asked by the real client, over HTTP.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml

from dagster_project.settings import PREFIX, PROJECT

Json = dict[str, Any]


@dataclass
class Pod:
    """A pod, whose first container is a process."""

    name: str
    spec: Json
    folder: Path
    metadata: Json
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "environment.json").read_text())
        return found

    def kill(self) -> None:
        """As a node that is lost."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def end(self, grace: float = 30) -> int:
        """As Kubernetes ends one: asked first. Its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(grace)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        self.kill()
        return code

    def signal(self, number: signal.Signals) -> None:
        """To every process of the pod."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def as_json(self) -> Json:
        code = self.process.poll()
        now = "2026-01-01T00:00:00Z"
        state = (
            {"running": {"startedAt": now}}
            if code is None
            else {"terminated": {"exitCode": abs(code), "startedAt": now, "finishedAt": now}}
        )
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        container = self.spec["containers"][0]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.metadata,
            "spec": self.spec,
            "status": {
                "phase": phase,
                "containerStatuses": [
                    {
                        "name": container["name"],
                        "ready": code is None,
                        "restartCount": 0,
                        "image": container["image"],
                        "imageID": "",
                        "state": state,
                    }
                ],
            },
        }


@dataclass
class Cluster:
    """The API server and the one node. `runs` says whether Jobs and pods are run, or only kept."""

    folder: Path
    image: Mapping[str, str]
    runs: bool = True
    config_maps: dict[str, dict[str, str]] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for pod in list(self.pods.values()):
            pod.end(5)

    @property
    def kubeconfig(self) -> str:
        """The path of a file that names this cluster."""
        path = self.folder / "kubeconfig.yaml"
        server = f"http://127.0.0.1:{self._server.server_port}"
        context = {"cluster": "here", "user": "me", "namespace": "mesh"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {"token": "t"}}],
            "contexts": [{"name": "here", "context": context}],
            "current-context": "here",
        }
        path.write_text(yaml.safe_dump(config))
        return str(path)

    def start(self, name: str, spec: Json, metadata: Json | None = None) -> Pod:
        """Run a pod. Raises KeyError for a ConfigMap or a Secret that is not there."""
        folder = self.folder / "pods" / name
        number = len(self.pods)
        while folder.exists():
            number += 1
            folder = self.folder / "pods" / f"{name}-{number}"
        folder.mkdir(parents=True)
        container = spec["containers"][0]
        places = self._mount(folder, spec, container)

        def real(text: str) -> str:
            # What lies in /tmp here is this test's; a pod has its own by way of TMPDIR.
            for path in sorted(places.keys() - {"/tmp"}, key=len, reverse=True):
                text = re.sub(rf"(?<![\w/.]){re.escape(path)}(?![\w.-])", str(places[path]), text)
            return text

        environment = self._environment(container)
        # Of all paths only those of volumes are others here.
        environment = {name: real(value) for name, value in environment.items()}
        environment |= {"TMPDIR": str(places.get("/tmp", folder))}
        (folder / "environment.json").write_text(json.dumps(environment))
        command = [*container.get("command", ()), *container.get("args", ())]
        # A pod has an address of its own; this machine's are for others, too.
        command = [real(part).replace("0.0.0.0", "127.0.0.1") for part in command]
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        about = {"name": name, "namespace": "mesh", "labels": {}, **(metadata or {})}
        pod = Pod(name, spec, folder, about, process)
        self.pods[folder.name] = pod
        return pod

    def _environment(self, container: Json) -> dict[str, str]:
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith((PREFIX, "AWS_", "DAGSTER_", "DBT_", "PYTEST"))
        }
        mine |= {**self.image, "PYTHONPATH": str(PROJECT)}
        mine["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        for source in container.get("envFrom") or ():
            if "configMapRef" in source:
                mine |= self.config_maps[source["configMapRef"]["name"]]
            else:
                mine |= self.secrets[source["secretRef"]["name"]]
        for variable in container.get("env") or ():
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            value = variable.get("value")
            if reference:
                value = self.secrets[reference["name"]][reference["key"]]
            mine[variable["name"]] = value or ""
        return mine

    def _mount(self, folder: Path, spec: Json, container: Json) -> dict[str, Path]:
        """Where on this machine each mounted path lies."""
        volumes = {each["name"]: each for each in spec.get("volumes") or ()}
        places: dict[str, Path] = {}
        mounts = container.get("volumeMounts") or ()
        for mount in sorted(mounts, key=lambda each: len(each["mountPath"])):
            path, volume = mount["mountPath"].rstrip("/"), volumes[mount["name"]]
            files = {}
            if volume.get("configMap"):
                files = self.config_maps[volume["configMap"]["name"]]
            if "subPath" in mount:
                parent, _, _ = path.rpartition("/")
                target = places.get(parent, folder / mount["name"])
                files = {path.rpartition("/")[2]: files[mount["subPath"]]}
            else:
                target = places[path] = folder / mount["name"]
            target.mkdir(exist_ok=True)
            for name, content in files.items():
                (target / name).write_text(content)
        return places

    def create_job(self, body: Json) -> Json:
        name = body["metadata"]["name"]
        self.jobs[name] = body
        if self.runs:
            template = body["spec"]["template"]
            labels = {**(template["metadata"].get("labels") or {}), "job-name": name}
            self.start(f"{name}-pod", template["spec"], {"labels": labels})
        return body

    def job(self, name: str) -> Json:
        """The Job, with its status. Raises KeyError if it is not there."""
        body = self.jobs[name]
        codes = [pod.process.poll() for pod in self.of_job(name)]
        status = {
            "active": codes.count(None),
            "succeeded": codes.count(0),
            "failed": len([code for code in codes if code]),
        }
        return {**body, "status": status}

    def of_job(self, name: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.metadata["labels"].get("job-name") == name]

    def run_pod(self, run_id: str) -> Pod:
        """The pod of a run, once it is there."""
        limit = time.monotonic() + 120
        while not (found := self.of_job(f"dagster-run-{run_id}")):
            assert time.monotonic() < limit, list(self.jobs)
            time.sleep(0.1)
        return found[-1]


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"cluster": cluster})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def answer(self, body: Json, status: int = 200) -> None:
        self.send(json.dumps(body).encode(), "application/json", status)

    def send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def place(self) -> tuple[str, str, str]:
        """Of the path the kind, the name and what of it."""
        parts = urlsplit(self.path).path.split("/")
        after = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts else []
        return (*after, "", "", "")[:3]  # type: ignore[return-value]

    def missing(self) -> None:
        self.answer({"kind": "Status", "code": 404, "reason": "NotFound"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind, _, _ = self.place()
        if kind == "jobs":
            self.answer(self.cluster.create_job(body), 201)
        else:
            name = body["metadata"]["name"]
            self.answer(self.cluster.start(name, body["spec"], body["metadata"]).as_json(), 201)

    def do_GET(self) -> None:
        kind, name, what = self.place()
        asked = parse_qs(urlsplit(self.path).query)
        if kind == "jobs" and name in self.cluster.jobs:
            self.answer(self.cluster.job(name))
        elif kind == "jobs" and not name:
            self.answer(
                {"kind": "JobList", "items": [self.cluster.job(n) for n in self.cluster.jobs]}
            )
        elif kind == "pods" and name in self.cluster.pods and what == "log":
            self.cluster.pods[name].process.wait()
            lines = self.cluster.pods[name].log.splitlines(keepends=True)
            # Each line has its time, by which the client knows which it has seen.
            text = "".join(
                f"2026-01-01T00:00:00.{number:09d}Z {line}" for number, line in enumerate(lines)
            )
            self.send(text.encode(), "text/plain")
        elif kind == "pods" and name in self.cluster.pods:
            self.answer(self.cluster.pods[name].as_json())
        elif kind == "pods" and not name:
            self.answer({"kind": "PodList", "items": self.pods(asked)})
        elif kind == "events":
            self.answer({"kind": "EventList", "items": []})
        elif kind:
            self.missing()
        else:
            self.answer({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})

    def pods(self, asked: dict[str, list[str]]) -> list[Json]:
        field = asked.get("fieldSelector", [""])[0].partition("=")[2].strip("=")
        label = asked.get("labelSelector", [""])[0].partition("=")[2].strip("=")
        return [
            pod.as_json()
            for pod in self.cluster.pods.values()
            if (not field or pod.name == field)
            and (not label or pod.metadata["labels"].get("job-name") == label)
        ]

    def do_DELETE(self) -> None:
        kind, name, _ = self.place()
        pods = self.cluster.of_job(name) if kind == "jobs" else []
        if kind == "pods" and name in self.cluster.pods:
            pods = [self.cluster.pods[name]]
        if not pods and name not in self.cluster.jobs:
            self.missing()
            return
        for pod in pods:
            threading.Thread(target=pod.end, daemon=True).start()
        self.answer({"kind": "Status", "status": "Success"})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        pass
