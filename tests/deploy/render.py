"""Renders a chart, and says what Kubernetes would refuse of what it makes: JSON to standard output.

    DEPLOY_PYTHON tests/deploy/render.py CHART RELEASE VALUES.json VERSION…

Run by the Python that has what requirements/deploy.txt locks.
"""

import json
import sys
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml


def main() -> None:
    chart, release, values, *versions = sys.argv[1:]
    found, faults = [], []
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(json.loads(Path(values).read_text()))
        rendered = loaded.render(
            json.loads(Path(values).read_text()), name=release, namespace="mesh"
        )
    for name, text in rendered.items():
        # Of charts within it: what a condition leaves out is rendered here all the same.
        if "/charts/" in name or not name.endswith(".yaml"):
            continue
        found += [each for each in yaml.safe_load_all(text) if each]
    for manifest in found:
        for version in versions:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as fault:
                where = ".".join(str(part) for part in fault.path)
                kind, name = manifest["kind"], manifest["metadata"]["name"]
                faults.append(f"{version} {kind} {name}: {where}: {fault.message}")
    json.dump({"manifests": found, "faults": faults}, sys.stdout)


if __name__ == "__main__":
    main()
