"""The packages that are needed, and those of the extras: there, of a version that is supported, and importable."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import rlcm_cli
from rlcm_cli.measuring.doctor.finding import Finding

OF_DEVELOPERS = "dev"
IMPORT_SECONDS = 30.0
MARK = "imported: "
IMPORT_ALL = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        fault = ""
    except BaseException as error:
        fault = f"{{type(error).__name__}}: {{error}}".partition("\\n")[0]
    print({MARK!r} + json.dumps([name, fault]), flush=True)
"""
"""In its own process: a broken native library can end the process that loads it."""


def check_packages() -> Finding:
    """Return whether every package that is needed is there, of a version that is supported."""
    needed = read_requirements()[""]
    faults = [fault for fault in map(_find_fault, needed) if fault]
    if faults:
        return Finding("packages", "problem", "; ".join(faults), "pip install --upgrade . (in a checkout of rlcm)")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in ("diffusers", "transformers", "peft"))
    return Finding("packages", "ok", f"{found} and {len(needed) - 3} others, all of supported versions")


def check_extras() -> Iterator[Finding]:
    """Report for each extra whether its packages are there and can be imported."""
    extras = {name: found for name, found in read_requirements().items() if name not in ("", OF_DEVELOPERS)}
    present = {name: needed for name, needed in extras.items() if not any(map(_find_fault, needed))}
    modules = {requirement.name: _find_module(requirement.name) for each in present.values() for requirement in each}
    faults = _import_modules(sorted(set(modules.values())))
    for name, needed in extras.items():
        topic, install = f"extra {name}", f"pip install 'rlcm[{name}]'"
        if name not in present:
            lacking = "; ".join(fault for fault in map(_find_fault, needed) if fault)
            yield Finding(topic, "note", f"absent: {lacking}", f"if you want it, {install}")
            continue
        broken = [
            f"{r.name} cannot be imported ({faults[modules[r.name]]})" for r in needed if faults[modules[r.name]]
        ]
        if broken:
            yield Finding(topic, "note", "; ".join(broken), f"if you want it, {install} --force-reinstall")
        else:
            yield Finding(topic, "ok", ", ".join(f"{r.name} {metadata.version(r.name)}" for r in needed))


@functools.cache
def read_requirements() -> Mapping[str, Sequence[Requirement]]:
    """Read what rlcm needs, by extra, the empty one first; of a checkout that is not installed, of its pyproject."""
    try:
        own = metadata.metadata("rlcm")
        lines = list(map(Requirement, own.get_all("Requires-Dist") or []))
        names = own.get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        project = tomllib.loads((Path(rlcm_cli.__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
        extras = project["optional-dependencies"]
        return {"": list(map(Requirement, project["dependencies"]))} | {
            name: list(map(Requirement, needed)) for name, needed in extras.items()
        }
    everywhere = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    return {"": everywhere} | {
        name: [
            line for line in lines if line not in everywhere and line.marker and line.marker.evaluate({"extra": name})
        ]
        for name in names
    }


def _find_fault(requirement: Requirement) -> str:
    """Return what is wrong with an installed package; empty where nothing is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} is {version}, and {requirement.specifier} is needed"


def _find_module(package: str) -> str:
    """Return the module that a package is imported as."""
    own = package.replace("-", "_").lower()
    names = [n for n in _modules_of_packages().get(own, []) if n.isidentifier() and not n.startswith("_")]
    return own if own in names or not names else names[0]


@functools.cache
def _modules_of_packages() -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            found.setdefault(package.replace("-", "_").lower(), []).append(module)
    return found


def _import_modules(modules: Sequence[str]) -> dict[str, str]:
    """Import modules one after the other; return what was wrong with each, empty where nothing was."""
    command = [sys.executable, "-c", IMPORT_ALL, *modules]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)  # noqa: S603
        output, fate = ended.stdout, "ended the process"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        fate = f"was not imported within {IMPORT_SECONDS:.0f} s"
    found = dict(json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK))
    return {module: found.get(module, fate) for module in modules}
