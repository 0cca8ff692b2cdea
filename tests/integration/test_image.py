"""The image: what its Dockerfile says, and that it builds from what it copies.

Responsible for: hadolint's judgement, paths that exist and are let in by `.dockerignore`, the user, and a build: by
Docker where an engine answers, and step by step without one everywhere.
Must never: push or pull anything by another name than the Dockerfile's.
Called by: pytest.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from tests.support.chart import CHART, ROOT
from tests.support.chart_readme import defaults
from tests.support.instruments import hadolint, run
from tests.support.kafka_sources import docker_problem

pytestmark = pytest.mark.timeout(900)  # a first build fetches the base image

DOCKERFILE = ROOT / "Dockerfile"
BASE = re.compile(r"^python:3\.\d+\.\d+-slim-[a-z]+$")


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of each, lines joined."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in DOCKERFILE.read_text().splitlines() if line[:1] != "#"))
    return [(first, rest.strip()) for first, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def arguments(name: str) -> list[str]:
    return [rest for first, rest in instructions() if first == name]


def copied() -> list[str]:
    """What is copied from the checkout."""
    return [path for rest in arguments("COPY") if "--from" not in rest for path in rest.split()[:-1]]


def let_in(path: str) -> bool:
    """Whether `.dockerignore` lets `path` into the build; the last line that matches has the say."""
    said = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and line[0] != "#":
            pattern = line.removeprefix("!")
            names = [path, *(str(parent) for parent in Path(path).parents)]
            bare = pattern.removeprefix("**/")
            if any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(Path(name).name, bare) for name in names):
                said = line[0] == "!"
    return said


def test_hadolint_has_nothing_to_say() -> None:
    done = run([hadolint(), "--no-color", "--failure-threshold", "style", str(DOCKERFILE)])

    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_let_in() -> None:
    assert copied()
    for path in copied():
        assert (ROOT / path).exists(), path
        assert let_in(path), path
    assert let_in("worker/anabranch/runtime.py")


@pytest.mark.parametrize("path", [".git", ".env", "tests", ".venv", "build", "examples", "worker/x/__pycache__"])
def test_what_is_not_needed_stays_out(path: str) -> None:
    assert not let_in(path)


def test_stages_begin_with_one_base_that_is_pinned() -> None:
    bases = {rest.split()[0] for rest in arguments("FROM")}

    assert len(bases) == 1
    assert BASE.match(bases.pop())
    assert len(arguments("FROM")) == 2


def test_dependencies_are_those_of_the_constraints() -> None:
    [install] = [rest for rest in arguments("RUN") if "pip install" in rest]

    assert "--constraint constraints.txt" in install


def test_it_runs_as_the_user_of_the_chart_and_passes_signals_on() -> None:
    context = defaults()["defaults"]["podSecurityContext"]

    assert arguments("USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["tini", "--", "anabranch"]
    assert arguments("EXPOSE") == [str(defaults()["httpPort"])]


def test_pythons_own_library_is_compiled_while_it_can_be() -> None:
    """The base leaves the bytecode out, and in a read-only container it would be made at each start, in vain."""
    [compiled] = [rest for rest in arguments("RUN") if "compileall" in rest]
    minor = ".".join(arguments("FROM")[0].split(":")[1].split(".")[:2])

    assert fnmatch.fnmatch(f"/usr/local/lib/python{minor}", compiled.split()[-1])


def test_the_versions_are_one() -> None:
    assert f"VERSION={version('anabranch')}" in arguments("ARG")
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version("anabranch")


def by_hand(folder: Path) -> str:
    """What the build stage does, without an engine: the package is built from the copies alone."""
    for path in copied():
        source = ROOT / path
        if source.is_dir():
            shutil.copytree(source, folder / path, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, folder / path)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--constraint", "constraints.txt", "--wheel-dir", "out", "."], cwd=folder, check=True)
    [wheel] = (folder / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    command = [sys.executable, "-P", "-c", "from anabranch.cli import main; main()", "--version"]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder / "site")}, capture_output=True, text=True, check=True
    ).stdout


def by_docker(folder: Path) -> str:
    """The image itself, run as it will be: read-only, without rights."""
    tag = f"anabranch-test:{folder.name.lower()}"
    subprocess.run(["docker", "build", "--quiet", "--tag", tag, str(ROOT)], check=True, capture_output=True)
    try:
        restricted = ["docker", "run", "--rm", "--read-only", "--cap-drop=ALL", "--network=none"]
        loaded = [*restricted, "--entrypoint=python", tag, "-v", "-c", "import anabranch.cli.commands.worker"]
        assert not re.search(
            r"code object from /.*\.py$",
            subprocess.run(loaded, check=True, capture_output=True, text=True).stderr,
            re.MULTILINE,
        )
        return subprocess.run([*restricted, tag, "--version"], check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run(["docker", "image", "rm", "--force", tag], check=False, capture_output=True)


@pytest.mark.parametrize("build", [by_hand, *([] if docker_problem() else [by_docker])])
def test_it_builds_from_what_it_copies(build: object, tmp_path: Path) -> None:
    assert callable(build)
    assert version("anabranch") in build(tmp_path)
