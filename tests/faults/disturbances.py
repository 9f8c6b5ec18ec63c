"""All of them that need no cluster."""

from __future__ import annotations

from tests.faults import crowd, damage, disks, kills, strays
from tests.faults.play import Disturbance


def disturbances() -> list[Disturbance]:
    """New ones; the first come more often than the rest in a long run."""
    return [
        kills.KillWorker(),
        kills.KillAll(),
        kills.KillSaving(),
        kills.KillMerge(),
        kills.KillMergeWriting(),
        kills.KillPrepare(),
        kills.Terminate(),
        kills.Notice(),
        kills.Preempt(),
        disks.FullDisk(),
        disks.NoInodes(),
        damage.DamagedSegments("segment cut short", damage.cut),
        damage.DamagedSegments("byte of a segment flipped", damage.flip),
        damage.DamagedStates("state or round cut short", damage.cut),
        damage.DamagedStates("byte of a state or round flipped", damage.flip),
        damage.DamagedBeginning(),
        damage.DamagedRecords("facts.json"),
        damage.DamagedRecords("run.json"),
        damage.DamagedRecords("prompts.jsonl"),
        damage.DamagedReports(),
        strays.LeftOvers(),
        strays.Foreign(),
        strays.Misplaced(),
        strays.Clocks(),
        crowd.Twins(),
        crowd.Zombies(),
        crowd.Changing(),
        crowd.Merges(),
        crowd.Preparing(),
    ]
