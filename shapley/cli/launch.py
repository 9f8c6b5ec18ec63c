"""How a run is started: the options that all kinds of runs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from shapley.errors import ShapleyError
from shapley.jobs.folder import RunFolder
from shapley.jobs.profile import Profile, read_profile
from shapley.jobs.slurm import max_array_size
from shapley.jobs.submit import chain, scripts, submit

F = TypeVar("F", bound=Callable[..., Any])

profile_option = click.option("--profile", type=click.Path(path_type=Path), help="A site's profile, as slurm/gpu.yaml.")
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The folder of the run."),
    click.option("--shards", type=int, default=8, show_default=True, help="Tasks that share the work of each round."),
    profile_option,
    click.option("--here", is_flag=True, help="Run it now on this machine, a process for each shard."),
    click.option("--dry-run", is_flag=True, help="Print the batch scripts, and do nothing."),
)


def launch_options(command: F) -> F:
    """Where the run is, and who works at it; the device is an option of the model."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Launch:
    """What the options of ``launch_options`` and the device ask for. ``site`` is nothing where it is to run here."""

    folder: Path
    shards: int
    site: Profile | None
    device: str
    dry_run: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> Launch:
        """From options that are then taken out of ``options``.

        Raises:
            ShapleyError: neither or both of a profile and ``--here``, a profile that cannot be read, or no shards.
        """
        names = ("folder", "shards", "profile", "here", "dry_run", "device")
        folder, shards, profile, here, dry_run, device = (options.pop(name) for name in names)
        if here == (profile is not None):
            not_both = ", not both" if here else ""
            raise ShapleyError(
                f"give --profile SITE.yaml to submit to Slurm, or --here to run on this machine{not_both}"
            )
        if dry_run and here:
            raise ShapleyError("--dry-run shows batch scripts: give it a --profile")
        if shards < 1:
            raise ShapleyError(f"--shards {shards} must be at least 1")
        return cls(folder, shards, read_profile(profile) if profile else None, device, dry_run)

    def start(self, make: Callable[[], RunFolder]) -> None:
        """Make the run's folder and start it, or show what would be submitted."""
        if self.site is None:
            _run_here(make(), self.device, self.shards)
            return
        if self.dry_run:
            _show(self.folder, self.shards, self.site, self.device)
            return
        # Before a folder is made: is there a Slurm, and does the folder have a name that scripts can say?
        max_array_size()
        scripts(self.folder, self.shards, self.site, self.device)
        run = make()
        ids = submit(run, self.shards, self.site, self.device)
        click.echo(f"{run.path}: {len(ids)} jobs, {ids[0]} to {ids[-1]}; see 'shapley status {run.path} --watch'")


def _show(folder: Path, shards: int, site: Profile, device: str) -> None:
    for name, text in scripts(folder, shards, site, device).items():
        click.echo(f"# {folder / 'slurm' / name}\n{text}")
    before = ""
    for link in chain(folder, shards):
        after = f" --dependency={link.kind}:{before} --kill-on-invalid-dep=yes" if before else ""
        click.echo(f"sbatch --parsable{after} {folder / 'slurm' / link.script}")
        before = "<the one before>"


def _run_here(run: RunFolder, device: str, shards: int) -> None:
    import torch

    from shapley.jobs.local import run_here

    named = device.split(",")
    if named == ["auto"]:
        named = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    devices = [named[i % len(named)] for i in range(shards)]
    run_here(run, devices, max(1, torch.get_num_threads() // shards))
