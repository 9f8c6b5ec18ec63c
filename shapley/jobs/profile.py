"""What a site's Slurm wants to be told: read once from a small YAML file, then frozen into the run's folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from shapley.errors import ShapleyError, unknown_name


@dataclass(frozen=True)
class Profile:
    """Settings of a site. What is empty or 0 is left to the cluster; slurm/README.md has every key.

    Attributes:
        gpus: of each task; ``cpus`` and ``memory`` likewise.
        environment: set as it stands, nothing is expanded.
        setup: shell lines before Python starts.
        throttle: array tasks at once.
        signal_seconds: how long before the time limit a task is told.
        options: further sbatch options, as they stand.
        merge: fields that differ for steps without a GPU.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    gpus: int = 0
    gpu_type: str = ""
    cpus: int = 4
    memory: str = ""
    time: str = ""
    modules: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    throttle: int = 0
    requeue: bool = True
    signal_seconds: int = 120
    options: tuple[str, ...] = ()
    python: str = field(default_factory=lambda: sys.executable)
    merge: Mapping[str, Any] = field(default_factory=dict)

    def without_gpu(self) -> Profile:
        """The profile of merge jobs."""
        return replace(self, gpus=0, gpu_type="", merge={}, **self.merge)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Profile:
        """What ``record`` gave, also after JSON has made lists of its tuples."""
        return cls(**{**_tuples(record), "merge": _tuples(record["merge"])})


def read_profile(path: Path | str) -> Profile:
    """Read a profile.

    Raises:
        ShapleyError: there is no such file, it is not YAML, or a key or a value is not one of a profile.
    """
    path = Path(path)
    try:
        # Every value is kept as it was typed: YAML would make the number 43200 of 12:00:00.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ShapleyError(f"cannot read the profile {path} ({reason}): start from a template in slurm/") from None
    except yaml.YAMLError as error:
        raise ShapleyError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    values = _read(path, "", {} if content in (None, "") else content, {**_READERS, "merge": lambda raw: raw})
    if "merge" in values:
        values["merge"] = _read(path, "merge", values["merge"], {name: _READERS[name] for name in _MERGE})
    profile = Profile(**values)
    if profile.gpu_type and not profile.gpus:
        raise ShapleyError(f"{path}: gpu_type {profile.gpu_type!r} without GPUs: set gpus, as gpus: 1")
    if profile.time and 0 < _seconds(profile.time) <= profile.signal_seconds:
        raise ShapleyError(
            f"{path}: signal_seconds {profile.signal_seconds} must be less than the time limit {profile.time}"
        )
    return profile


def _read(path: Path, within: str, content: Any, readers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The values of one mapping; those left empty are left out."""
    if not isinstance(content, dict):
        raise ShapleyError(f"{path}: {within or 'a profile'} must be lines such as partition: gpu")
    values = {}
    for key, raw in content.items():
        if key not in readers:
            raise unknown_name(f"key in {path}{within and ', ' + within}", str(key), readers)
        if raw in ("", "~", "null"):
            continue
        try:
            values[key] = readers[key](raw)
        except ValueError as error:
            place = f"{within}.{key}" if within else key
            raise ShapleyError(f"{path}: {place} {raw!r}: expected {error}") from None
    return values


def _word(raw: Any) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[^\s\"'\\#]+", raw):
        raise ValueError("one word without quotes")
    return raw


def _whole(least: int, most: int = 10**9) -> Callable[[Any], int]:
    def read(raw: Any) -> int:
        if not isinstance(raw, str) or not re.fullmatch(r"[0-9]{1,10}", raw) or not least <= int(raw) <= most:
            raise ValueError(f"a whole number of at least {least}" + (f" and at most {most}" if most < 10**9 else ""))
        return int(raw)

    return read


def _flag(raw: Any) -> bool:
    if not isinstance(raw, str) or raw.lower() not in ("true", "false", "yes", "no"):
        raise ValueError("true or false")
    return raw.lower() in ("true", "yes")


def _memory(raw: Any) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[0-9]+[KMGT]?", raw):
        raise ValueError("an amount such as 32G or 500M")
    return raw


def _time(raw: Any) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"\d+(:[0-5]\d){0,2}|\d+-\d{1,2}(:[0-5]\d){0,2}", raw):
        raise ValueError("a time such as 04:00:00 (hours, minutes, seconds) or 2-00:00:00 (days first)")
    return raw


def _seconds(time: str) -> int:
    days, dash, clock = time.rpartition("-")
    if not dash:  # Slurm reads 30 as minutes and 30:00 as minutes and seconds, but 1-12 as days and hours
        clock = (f"0:{clock}:0", f"0:{clock}", clock)[clock.count(":")]
    hours, minutes, seconds = (*map(int, clock.split(":")), 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _line(raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip() or len(raw.strip().splitlines()) > 1:
        raise ValueError("one line of text")
    return raw.strip()


def _lines(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ValueError("a list, as [first, second]")
    try:
        return tuple(_line(item) for item in raw)
    except ValueError:
        raise ValueError("a list of lines of text") from None


def _options(raw: Any) -> tuple[str, ...]:
    lines = _lines(raw)
    for line in lines:
        name = re.split(r"[=\s]", line)[0]
        if not name.startswith("-"):
            raise ValueError("options such as --constraint=a100")
        if name in _OURS:
            raise ValueError(f"no {name}, which is set for every job")
    return lines


def _environment(raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise ValueError("lines such as HF_HUB_OFFLINE: 1")
    for name, value in raw.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"names of variables, which {name!r} is not")
        if not isinstance(value, str) or "\n" in value or "\0" in value:
            raise ValueError(f"one line of text for {name}")
    return dict(raw)


def _python(raw: Any) -> str:
    python = str(Path(_line(raw)).expanduser())
    if "/" in python and not python.startswith("/"):
        raise ValueError("a command's name or a whole path")
    return python


_READERS: dict[str, Callable[[Any], Any]] = {
    "partition": _word,
    "account": _word,
    "qos": _word,
    "gpus": _whole(0),
    "gpu_type": _word,
    "cpus": _whole(1),
    "memory": _memory,
    "time": _time,
    "modules": _lines,
    "environment": _environment,
    "setup": _lines,
    "throttle": _whole(1),
    "requeue": _flag,
    "signal_seconds": _whole(0, 65535),
    "options": _options,
    "python": _python,
}
_MERGE = ("partition", "account", "qos", "cpus", "memory", "time", "options")
_OURS = frozenset(
    "--array -a --dependency -d --error -e --job-name -J --no-requeue --open-mode --output -o --parsable --requeue "
    "--signal --wrap".split()
)
_LISTS = ("modules", "setup", "options")


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if name in _LISTS else value for name, value in record.items()}
