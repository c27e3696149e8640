"""What this machine has, what would go wrong on it, and the command that mends it.

Every package is imported in a process of its own: one that crashes is a finding, not the end.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mae_pipe import machine
from mae_pipe.catalog import Catalog
from mae_pipe.machine import Finding

IMPORT_SECONDS = 120  # a cold disk may need one minute for torch
DEBIAN_HEADERS = "libopencv-dev libturbojpeg0-dev pkg-config build-essential"

# Each prints one JSON object on its last line; warnings count, since torch reports an old driver by one.
TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    gpus = []
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(n)
        gpus.append({"name": p.name, "gib": round(p.total_memory / 2**30), "bf16": torch.cuda.is_bf16_supported()})
    out = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus, "threads": torch.get_num_threads()}
out["said"] = [str(w.message) for w in said if "CUDA" in str(w.message) or "NVIDIA" in str(w.message)]
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchvision, timm
    out["vision"] = ""
except Exception as error:
    out["vision"] = f"{type(error).__name__}: {error}"
print(json.dumps(out))
"""
DEEPSPEED = "import deepspeed; print('\\n{}')"
FFCV = "import ffcv; print('\\n{}')"


def examine(folder: Path) -> list[Finding]:
    """Look at everything; ``folder`` is where shards and runs would go. Takes 5 to 15 seconds."""
    probes = {name: _begin(code) for name, code in (("torch", TORCH), ("deepspeed", DEEPSPEED), ("ffcv", FFCV))}
    quick = [*_versions(), *_plugins(), _compilers(), _decoder(), *machine.findings(folder)]
    torch, deepspeed, ffcv = (_end(probe) for probe in probes.values())
    return [*quick[:2], *_torch(torch), _deepspeed(deepspeed), _ffcv(ffcv), *quick[2:]]


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    found = f"mae-pipe {metadata.version('mae-pipe')}, Python {python}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield Finding("version", "ok", found)
    else:
        yield Finding("version", "broken", found, "mae-pipe needs Python 3.11 or 3.12", "make setup PYTHON=python3.11")
    yield _packages()


def _packages() -> Finding:
    """Whether every requirement is installed and in its range."""
    from packaging.requirements import Requirement

    wrong, right = [], 0
    for line in metadata.requires("mae-pipe") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            have = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
        else:
            if needed.specifier.contains(have, prereleases=True):
                right += 1
            else:
                wrong.append(f"{needed.name} {have} is not {needed.specifier}")
    if not wrong:
        return Finding("packages", "ok", f"all {right} in range")
    return Finding("packages", "broken", "; ".join(wrong), "mae-pipe may stop anywhere", f"{_pip()} --upgrade mae-pipe")


def _plugins() -> Iterator[Finding]:
    catalog = Catalog()
    names = [f"{kind} {name}" for kind, name in catalog.entries]
    if not names:
        yield Finding(
            "plugins", "broken", "none", "no recipe can run", f"{_pip()} --force-reinstall --no-deps mae-pipe"
        )
    elif not catalog.broken:
        yield Finding("plugins", "ok", f"{len(names)} installed")
    for module, reason in catalog.broken.items():
        yield Finding(
            "plugins", "warning", module, f"{reason}; a recipe that names it would stop", "mend or uninstall it"
        )


def _torch(probe: dict[str, Any]) -> Iterator[Finding]:
    if "failed" in probe:
        yield Finding(
            "torch", "broken", "", f"it cannot be imported: {probe['failed']}", f"{_pip()} --force-reinstall torch"
        )
        return
    version = f"torch {probe['version']}"
    if probe["vision"]:
        trouble = f"torchvision or timm cannot be imported beside it: {probe['vision']}"
        mend = f"{_pip()} --force-reinstall torch torchvision  # both from one index: they must be of one build"
        yield Finding("torch", "broken", version, trouble, mend)
    else:
        yield Finding("torch", "ok", f"{version}, torchvision {_version('torchvision')}, timm {_version('timm')}")
    if probe["gpus"]:
        found = ", ".join(f"{gpu['name']} ({gpu['gib']} GiB)" for gpu in probe["gpus"])
        if all(gpu["bf16"] for gpu in probe["gpus"]):
            yield Finding("accelerator", "ok", found)
        else:
            trouble = "no bf16, in which the built-in recipes train"
            yield Finding("accelerator", "warning", found, trouble, "--set engine.precision=fp32")
    elif probe["said"]:
        yield Finding(
            "accelerator", "warning", "not usable", probe["said"][0], "update the driver, or install another torch"
        )
    else:
        trouble = "small models train well on CPU, ImageNet recipes would take years"
        yield Finding("accelerator", "warning", f"none; CPU with {probe['threads']} threads", trouble)


def _deepspeed(probe: dict[str, Any]) -> Finding:
    if "failed" not in probe:
        return Finding("deepspeed", "ok", _version("deepspeed"))
    trouble = f"nothing can train: it cannot be imported: {probe['failed']}"
    return Finding("deepspeed", "broken", _version("deepspeed"), trouble, f"{_pip()} --force-reinstall deepspeed")


def _ffcv(probe: dict[str, Any]) -> Finding:
    if "failed" not in probe:
        return Finding("ffcv", "ok", _version("ffcv"))
    trouble = f"only writing --format ffcv is missing, WebDataset shards work; the reason: {probe['failed']}"
    if "distutils" in probe["failed"]:
        return Finding("ffcv", "warning", _version("ffcv"), trouble, f"{_pip()} setuptools")
    build = (
        f"{_pip()} --no-cache-dir --force-reinstall --no-deps ffcv"
        if _version("ffcv")
        else f"{_pip()} 'mae-pipe[ffcv]'"
    )
    return Finding(
        "ffcv", "warning", _version("ffcv") or "not installed", trouble, f"{_apt(DEBIAN_HEADERS)} && {build}"
    )


def _decoder() -> Finding:
    from mae_pipe.data import region

    if region.can_mark():
        return Finding("decoder", "ok", region.decoder())
    if os.environ.get(region.VARIABLE):
        return Finding("decoder", "warning", region.decoder(), "JPEGs decode slowly", f"unset {region.VARIABLE}")
    trouble = "JPEGs decode three times as slowly: the C extension was not built"
    return Finding(
        "decoder",
        "warning",
        region.decoder(),
        trouble,
        f"{_apt('build-essential')} && {_pip()} --force-reinstall --no-deps mae-pipe",
    )


def _compilers() -> Finding:
    have = [name for name in ("gcc", "g++", "ninja") if shutil.which(name)]
    headers = [name for name in ("opencv4", "libturbojpeg") if _succeeds("pkg-config", "--exists", name)]
    found = ", ".join([*have, *(f"headers of {name}" for name in headers)]) or "none"
    if {"gcc", "g++"} <= {*have} and len(headers) == 2:
        return Finding("compilers", "ok", found)
    return Finding("compilers", "warning", found, "FFCV and torch.compile cannot be built here", _apt(DEBIAN_HEADERS))


def _begin(code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", code]  # -P: no module of the current folder
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 (ours)


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The object that a probe printed, or ``{"failed": reason}``."""
    try:
        out, err = process.communicate(timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": f"no answer in {IMPORT_SECONDS} s"}
    if process.returncode == 0:
        answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return answer
    lines = err.strip().splitlines() or [""]
    return {"failed": f"killed by signal {-process.returncode}" if process.returncode < 0 else lines[-1]}


def _succeeds(*command: str) -> bool:
    if (program := shutil.which(command[0])) is None:
        return False
    return subprocess.run([program, *command[1:]], capture_output=True, check=False).returncode == 0  # noqa: S603 (ours)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _pip() -> str:
    return f"{sys.executable} -m pip install"


def _apt(packages: str) -> str:
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {packages}"
