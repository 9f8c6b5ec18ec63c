"""``shapley compare``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click

from shapley.cli.options import command_line, device_option, output_options, parse_memory
from shapley.errors import ShapleyError, unknown_name
from shapley.files import check_output, write_error, write_text
from shapley.impairment import NOISE_KINDS, SITES, Impairment
from shapley.prompts import TopicPrompts, read_prompts
from shapley.records import EVERYTHING, Sweep, parse_strengths
from shapley.types import FloatArray, Unit, ValueName

_STRENGTHS: dict[str, str] = {
    "noise": "0.02,0.05,0.1,0.2,0.3,0.5,0.7,1,1.5,2,3",
    "negative-noise": "0.02,0.05,0.1,0.2,0.3,0.5,0.7,1,1.5,2,3",
    "scale": "0.1:1:0.1",
}
_MOST_NAME = 80  # characters of a file's name that are of the model


@click.command()
@click.argument("models", nargs=-1, metavar="MODEL MODEL [MODEL ...]")
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="Of all tasks; each topic is one.")
@click.option("--topic", "tasks", multiple=True, help="Only this topic (may be given again). [default: all]")
@click.option(
    "--plain",
    type=click.Path(path_type=Path),
    help='JSON lines {"text": …} on which general damage is measured. [default: passages of the embedded corpus]',
)
@click.option(
    "--impairment",
    "kind",
    type=click.Choice(list(_STRENGTHS)),
    default="noise",
    show_default=True,
    help="Of everything.",
)
@click.option("--site", type=click.Choice(SITES), default="mlp_hidden", show_default=True)
@click.option(
    "--strength",
    help="START:STOP:STEP or A,B,C; of noise in standard deviations of the site. [default: 0.02 to 3; of scale 0.1 to 1]",
)
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Noise draws.")
@click.option("--noise-seed", default=0, show_default=True, help="Seed of the noise.")
@click.option("--value", type=click.Choice(["accuracy", "logprob"]), default="accuracy", show_default=True)
@click.option(
    "--chance",
    multiple=True,
    metavar="TOPIC=VALUE",
    help="Performance at which nothing is left (may be given again). [default: measured, every neuron scaled to zero]",
)
@click.option(
    "--damage",
    default="0.02,0.05,0.1,0.2",
    show_default=True,
    help="Rises of the loss on plain text at which to compare, in nats a byte.",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@device_option
@click.option("--memory", default=None, help="Memory for activations, as 2GiB or 500MiB. [default: chosen]")
@click.option("--trust-remote-code", is_flag=True, help="Allow the model repositories' own code to run.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write; made if it must be.")
@output_options
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def compare(as_json: bool, **options: Any) -> None:
    """Impair two models or more by degrees, on the same prompts: which one falls first?"""
    wanted = _Wanted.of(options)
    wanted.clear_outputs()
    measured = {name: _measure(wanted, model, name) for name, model in wanted.models.items()}
    from shapley.compare import compare as compared
    from shapley.compare import floors_of
    from shapley.compare_report import caveats, figure, record, table
    from shapley.plots import save

    result = compared(
        {name: swept for name, (swept, _) in measured.items()},
        wanted.topics,
        {name: floors_of(wanted.tasks, zero, wanted.value, wanted.chance) for name, (_, zero) in measured.items()},
        wanted.damages,
        wanted.value,
    )
    found = {**record(result), "models": wanted.models}
    save(figure(result), wanted.figure_path)
    write_text(wanted.record_path, json.dumps(found, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(table(result))
    for line in caveats(result):
        click.echo(f"note: {line}")
    click.echo(f"records in {wanted.record_path}, curves in {wanted.figure_path}")


@dataclass(frozen=True)
class _Wanted:
    """What the options ask for.

    Attributes:
        models: by the name that files and tables call them.
        topics: the tasks, and plain text.
        damages: nats a byte.
        chance: by task, where it is given.
    """

    models: dict[str, str]
    topics: dict[str, TopicPrompts]
    tasks: list[str]
    impairment: Impairment
    strengths: FloatArray
    seeds: int
    value: ValueName
    chance: dict[str, float]
    damages: list[float]
    device: str
    dtype: str
    memory: int | None
    trust_remote_code: bool
    inputs: list[Path]
    out: Path
    resume: bool
    overwrite: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> _Wanted:
        """Raises ShapleyError for what can be refused without a model."""
        from shapley.compare import PLAIN, check_design, plain_text, unused_passages

        rest = dict(options)
        models, kind, strength = rest.pop("models"), rest.pop("kind"), rest.pop("strength")
        if len(models) < 2:
            raise ShapleyError("one model alone cannot be compared: give two or more")
        prompts, plain = rest.pop("prompts"), rest.pop("plain")
        tasks = read_prompts(prompts, rest.pop("tasks"))
        if PLAIN in tasks:
            raise ShapleyError(
                f"{prompts}: the topic {PLAIN!r} stands for plain text: call it otherwise, or use --plain"
            )
        text = plain_text(unused_passages() if plain is None else _read_texts(plain))
        strengths = parse_strengths(strength or _STRENGTHS[kind])
        damages = [_number("--damage", part) for part in rest.pop("damage").split(",")]
        check_design(strengths, damages)
        unit: Unit = "sd" if kind in NOISE_KINDS else "absolute"
        return cls(
            models=dict(zip(file_names(models), models, strict=True)),
            topics={**tasks, PLAIN: text},
            tasks=list(tasks),
            impairment=Impairment(kind, site=rest.pop("site"), unit=unit, seed=rest.pop("noise_seed")),
            strengths=strengths,
            chance=dict(_chances(rest.pop("chance"), tasks)),
            damages=damages,
            memory=parse_memory(rest.pop("memory")),
            inputs=[path for path in (prompts, plain) if path is not None],
            **rest,
        )

    @property
    def record_path(self) -> Path:
        return self.out / "compare.json"

    @property
    def figure_path(self) -> Path:
        return self.out / "compare.png"

    def sweep_path(self, name: str) -> Path:
        return self.out / f"{name}.h5"

    def floor_path(self, name: str) -> Path:
        return self.out / "floors" / f"{name}.h5"

    @property
    def needs_floors(self) -> bool:
        return any(task not in self.chance for task in self.tasks)

    def clear_outputs(self) -> None:
        """Raises ShapleyError for outputs that cannot be written, or that nobody said to replace."""
        if self.resume and self.overwrite:
            raise ShapleyError("--resume and --overwrite exclude each other")
        if not self.out.exists():
            check_output(self.out)
            return
        if not self.out.is_dir():
            raise ShapleyError(f"--out {self.out} is a file: give a folder")
        for name, path_of in product(self.models, (self.sweep_path, self.floor_path)):
            if path_of(name).parent.is_dir():
                check_output(path_of(name), resume=self.resume, overwrite=self.overwrite, inputs=self.inputs)
        for path in (self.record_path, self.figure_path):
            check_output(path, overwrite=True, inputs=self.inputs)  # they follow from the sweeps: nothing is lost
            if self.overwrite:  # nor are they to stand beside other sweeps than theirs
                path.unlink(missing_ok=True)


def _measure(wanted: _Wanted, model: str, name: str) -> tuple[Sweep, Sweep | None]:
    """One model's sweep of everything, and where it is needed that of every neuron scaled to zero. The model goes when this
    returns: the next one may need its memory."""
    from shapley.hf.load import load_model, weights_dtype
    from shapley.sweeps import sweep

    lm = load_model(
        model,
        device=wanted.device,
        dtype=weights_dtype(wanted.device, wanted.dtype),
        trust_remote_code=wanted.trust_remote_code,
    )

    if wanted.impairment.kind == "scale" and wanted.impairment.site == "mlp_hidden" and lm.sites.undoes_gain:
        raise ShapleyError(
            f"{model} has a norm after the MLP, which undoes a scaling of all neurons alike: compare with --site mlp_out, "
            "which is the same in models that have none"
        )

    def swept(impairment: Impairment, strengths: FloatArray, path: Path) -> Sweep:
        _make(path.parent)
        return sweep(
            lm,
            wanted.topics,
            {EVERYTHING: None},
            impairment,
            strengths,
            path,
            n_seeds=wanted.seeds,
            n_random=0,
            dtype=wanted.dtype,
            memory=wanted.memory,
            resume=wanted.resume,
            overwrite=wanted.overwrite,
            argv=command_line(),
        )

    found = swept(wanted.impairment, wanted.strengths, wanted.sweep_path(name))
    if not wanted.needs_floors:
        return found, None
    return found, swept(Impairment("scale"), parse_strengths("1"), wanted.floor_path(name))


def file_names(models: Sequence[str]) -> list[str]:
    """What files and tables call models: of a hub id or path as many of the last parts as tell it from the others, and a number
    behind them where none do."""
    names: list[str] = []
    for model in models:
        name = _own_name(model, set(models) - {model})
        numbered = (name, *(f"{name}-{number}" for number in range(2, len(models) + 1)))
        taken = {name.lower() for name in names}
        names.append(next(name for name in numbered if name.lower() not in taken))
    return names


def _own_name(model: str, others: Collection[str]) -> str:
    depths = range(1, len(Path(model).parts) + 1)
    names = (_as_name(model, depth) for depth in depths)
    # File systems may not tell upper case from lower.
    taken = ({_as_name(other, depth).lower() for other in others} for depth in depths)
    return next((name for name, alike in zip(names, taken, strict=True) if name.lower() not in alike), _as_name(model))


def _as_name(model: str, depth: int = 1) -> str:
    text = "-".join(Path(model).parts[-depth:])
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[-_MOST_NAME:] or "model"


def _read_texts(path: Path) -> list[str]:
    """The field ``text`` of JSON lines.

    Raises:
        ShapleyError: no such file, no texts in it, or a bad line (with its number).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ShapleyError(f"cannot read plain text {path}: {error}") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise ShapleyError(f'{path}, line {number}: expected {{"text": "…"}}')
        texts.append(text)
    if not texts:
        raise ShapleyError(f'{path} holds no plain text: expected one {{"text": "…"}} a line')
    return texts


def _chances(given: Sequence[str], tasks: Collection[str]) -> Iterator[tuple[str, float]]:
    for text in given:
        task, equals, number = text.rpartition("=")
        if not equals:
            raise ShapleyError(f"--chance {text!r}: expected TOPIC=VALUE, as arithmetic=0.25")
        if task not in tasks:
            raise unknown_name("topic of --chance", task, tasks)
        yield task, _number("--chance", number)


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ShapleyError(f"{option}: {text!r} is not a finite number")
    return number


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
