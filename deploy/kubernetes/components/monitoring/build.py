"""Makes prometheus-rules.yaml of deploy/prometheus/rules: the Prometheus operator takes rules as objects, not as files.

python deploy/kubernetes/components/monitoring/build.py
"""

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parents[2] / "prometheus/rules"
TARGET = HERE / "prometheus-rules.yaml"


def build() -> str:
    documents = [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": f"larder-{path.stem}"},
            "spec": yaml.safe_load(path.read_text()),
        }
        for path in sorted(RULES.glob("*.yml"))
    ]
    text = yaml.safe_dump_all(documents, sort_keys=False, width=110, allow_unicode=True)
    return f"# Made by build.py of deploy/prometheus/rules: change it there.\n{text}"


if __name__ == "__main__":
    TARGET.write_text(build())
