"""The settings of everything that is measured: what users have by default.

Responsible for: the one value that both subjects and their processes are given.
Must never: tune anything.
Called by: `worker.py`, `anabranch_run.py`, `floor.py`.
"""

from __future__ import annotations

from anabranch.config import KafkaSettings, Settings, WorkerSettings


def settings_for(bootstrap: str, namespace: str) -> Settings:
    """The defaults, but for a drain that is not worth waiting for."""
    worker = WorkerSettings(namespace=namespace, drain_s=2.0)
    return Settings(kafka=KafkaSettings(bootstrap=bootstrap), worker=worker)
