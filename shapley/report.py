"""One self-contained HTML page from the files of a run: prompts, scores, clusters, sweeps."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from scipy import stats

from shapley import __version__
from shapley.clusters import Cluster, Ranking
from shapley.curves import Contrast, contrast, curve
from shapley.errors import ShapleyError
from shapley.files import write_text
from shapley.plots import cluster_name, layers_figure, specificity_figure, sweep_figure, top_figure
from shapley.prompts import TopicPrompts, read_prompts
from shapley.records import EVERYTHING, Sweep, read_sweep
from shapley.shape import monotone_fit
from shapley.store import ScoreFile
from shapley.types import BoolArray, FloatArray

TOP = 100
FOLLOWS = 0.95  # of a curve, explained by a monotone fit
SHOWN = 15


@dataclass(frozen=True)
class Run:
    """The files that a folder holds."""

    directory: Path
    scores: ScoreFile
    prompts: dict[str, dict[str, TopicPrompts]]
    clusters: dict[str, Cluster]
    sweeps: dict[str, Sweep]


def read_run(directory: Path) -> Run:
    """Find a run's files by what they are, not by their names.

    Raises:
        ShapleyError: no such folder, or not exactly one score file in it.
    """
    if not directory.is_dir():
        raise ShapleyError(f"no folder {directory}: give the folder that holds a score file and its sweeps")
    scores: list[ScoreFile] = []
    sweeps: dict[str, Sweep] = {}
    for path in sorted(directory.glob("*.h5")):
        try:
            scores.append(ScoreFile(path))
        except ShapleyError as error:
            if "neuron-shapley-sweep" not in str(error):
                raise
            sweeps[path.stem] = read_sweep(path)
    if len(scores) != 1:
        names = ", ".join(file.path.name for file in scores)
        remedy = "keep each in a folder of its own" if scores else "make one with 'shapley estimate'"
        raise ShapleyError(f"{directory} must hold one score file, found {names or 'none'}: {remedy}")
    grouped = [topic for topic in scores[0].topics if scores[0].groups(topic) is not None]
    if grouped:
        raise ShapleyError(
            f"{scores[0].path} holds scores of groups for {grouped[0]!r}: reports are of neurons; see 'shapley top'"
        )
    clusters = {path.stem: Cluster.load(path) for path in sorted(directory.glob("*.json")) if _is_cluster(path)}
    prompts = {path.name: read_prompts(path) for path in sorted(directory.glob("*.jsonl"))}
    sweeps = dict(sorted(sweeps.items(), key=lambda named: _place(named[1])))
    return Run(directory, scores[0], prompts, clusters, sweeps)


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Write the page (``report.html`` in the folder by default) and return its path."""
    run = read_run(directory)
    out = out or directory / "report.html"
    environment = Environment(loader=PackageLoader("shapley"), autoescape=select_autoescape(), trim_blocks=True)
    page = environment.get_template("report.html").render(**_content(run))
    write_text(out, page)
    return out


def _content(run: Run) -> dict[str, Any]:
    topics = run.scores.topics
    grids = {topic: run.scores.array(topic, "score") for topic in topics}
    rankings = {topic: Ranking(grids[topic], run.scores.array(topic, "stderr")) for topic in topics}
    halves = {topic: _half_widths(run.scores, topic) for topic in topics}
    exact = {topic: _exact(run.scores, topic) for topic in topics}
    leading = _leading_sweep(run)
    attrs = {topic: run.scores.attrs(topic) for topic in topics}
    return {
        "version": __version__,
        "model": run.scores.model,
        "topics": topics,
        "attrs": attrs,
        "settings": {topic: json.loads(attrs[topic]["settings"]) for topic in topics},
        "details": {topic: json.loads(attrs[topic]["details"]) for topic in topics},
        "baselines": _baselines(run),
        "tops": {topic: ranking.top(min(SHOWN, int(ranking.order().size))) for topic, ranking in rankings.items()},
        "halves": halves,
        "exact": exact,
        "top_figure": _image(top_figure(rankings, SHOWN, halves, exact), "The top neurons of each topic"),
        "layers_figure": _image(layers_figure(grids), "Scores over layers"),
        "agreement": {topic: split_half(run.scores, topic) for topic in topics},
        "overlap": _overlap(grids),
        "clusters": {name: (len(cluster), _in_words(cluster.rule)) for name, cluster in run.clusters.items()},
        "leading": None if leading is None else _image(specificity_figure(leading), "Specificity"),
        "leading_sweep": leading,
        "sweeps": [
            (
                name,
                sweep,
                _image(sweep_figure(sweep), name),
                _image(sweep_figure(sweep, "accuracy"), f"{name}, accuracy"),
            )
            for name, sweep in run.sweeps.items()
        ],
        "hypothesis_a": hypothesis_a(run.sweeps),
        "hypothesis_b": hypothesis_b(run.sweeps),
        "top": TOP,
        "least": FOLLOWS,
    }


def _half_widths(scores: ScoreFile, topic: str) -> FloatArray:
    """``[n_layers, width]`` half-widths of 95% intervals: Student's, as scores may rest on few samples."""
    df = np.maximum(scores.array(topic, "count") - 1, 1)
    return np.asarray(stats.t.isf(0.025, df) * scores.array(topic, "stderr"))


def _exact(scores: ScoreFile, topic: str) -> BoolArray:
    """``[n_layers, width]``: which scores come from exact differences; all, where no gradient was used."""
    whole = scores[topic]
    if whole.exact is not None:
        return whole.exact
    return np.full(whole.score.shape, whole.attrs["estimator"] != "gradient")


def _in_words(rule: Mapping[str, Any]) -> str:
    """A cluster's rule as a line: ``topic athlete, versus artist and company, guard 4``."""
    parts = (
        (name, " and ".join(map(str, value)) if isinstance(value, list) else value) for name, value in rule.items()
    )
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in parts)


def _leading_sweep(run: Run) -> Sweep | None:
    """The sweep that opens the report: the first with topic clusters."""
    return next((sweep for sweep in run.sweeps.values() if sweep.of_topics), None)


def _place(sweep: Sweep) -> tuple[bool, bool]:
    """Sweeps at the neurons come first, and scaling, which has nothing random, before the others."""
    return sweep.impairment.site != "mlp_hidden", sweep.impairment.kind != "scale"


def _baselines(run: Run) -> list[dict[str, Any]]:
    rows = []
    for file, by_topic in run.prompts.items():
        for topic, group in by_topic.items():
            scored = [prompt for prompt in group.prompts if prompt.logprob is not None]
            rows.append(
                {
                    "file": file,
                    "topic": topic,
                    "prompts": len(group),
                    "keywords": len({prompt.answer for prompt in group.prompts}),
                    "logprob": float(np.mean([p.logprob for p in scored])) if scored else float("nan"),
                    "accuracy": float(np.mean([bool(p.known) for p in scored])) if scored else float("nan"),
                }
            )
    return rows


def split_half(scores: ScoreFile, topic: str, k: int = TOP) -> dict[str, float]:
    """Agreement of two halves of the samples: the share of the top ``k`` that both have, and the correlation of all
    scores. The full estimate, with twice the samples of a half, is better than either.
    """
    replicates = scores.array(topic, "replicates").astype(np.float64)
    replicates = replicates.reshape(len(replicates), -1)
    finite = np.isfinite(replicates).any(axis=1)
    halves = [_mean_of_seen(replicates[finite][start::2]) for start in (0, 1)] if finite.sum() > 1 else []
    if len(halves) < 2:
        return {"shared": float("nan"), "correlation": float("nan"), "k": k}
    usable = np.isfinite(halves[0]) & np.isfinite(halves[1])
    k = min(k, int(usable.sum()))
    tops = [set(np.argsort(-np.where(usable, half, -np.inf), kind="stable")[:k].tolist()) for half in halves]
    correlation = float(np.corrcoef(halves[0][usable], halves[1][usable])[0, 1])
    return {"shared": len(tops[0] & tops[1]) / k, "correlation": correlation, "k": k}


def _mean_of_seen(groups: np.ndarray) -> np.ndarray:
    """Means along the first axis, NaN where nothing was seen."""
    seen = np.isfinite(groups).sum(axis=0)
    return np.where(seen > 0, np.nansum(groups, axis=0) / np.maximum(seen, 1), np.nan)


def _overlap(grids: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    rows = []
    for one, two in itertools.combinations(grids, 2):
        a, b = grids[one].ravel(), grids[two].ravel()
        both = np.isfinite(a) & np.isfinite(b)
        k = min(TOP, int(both.sum()))
        tops = [set(np.argsort(-np.where(both, x, -np.inf), kind="stable")[:k].tolist()) for x in (a, b)]
        rows.append(
            {
                "one": one,
                "two": two,
                "shared": len(tops[0] & tops[1]),
                "k": k,
                "spearman": float(stats.spearmanr(a[both], b[both]).statistic),
            }
        )
    return rows


def hypothesis_a(sweeps: dict[str, Sweep]) -> list[dict[str, Any]]:
    """(A) General impairment follows strength: how much of every topic's course over strength a curve that only falls
    explains, where everything is impaired."""
    rows = []
    for name, sweep in sweeps.items():
        clusters = [EVERYTHING] if EVERYTHING in sweep.clusters else []
        for cluster, topic in itertools.product(clusters, sweep.records):
            line = curve(sweep, topic, cluster)
            _, explained = monotone_fit(line.strengths, line.mean)
            rows.append(
                {
                    "sweep": name,
                    "topic": topic,
                    "explained": explained,
                    "first": line.mean[0],
                    "last": line.mean[-1],
                    "follows": explained >= FOLLOWS,
                }
            )
    return rows


def hypothesis_b(sweeps: dict[str, Sweep]) -> list[dict[str, Any]]:
    """(B) The cluster's own topic suffers more: drops at the strongest impairment of each sweep."""
    rows: list[dict[str, Any]] = []
    for name, sweep in sweeps.items():
        for cluster, topic in sweep.of_topics.items():
            found: Contrast = contrast(sweep, topic, cluster)
            size = sweep.sizes[sweep.clusters.index(cluster)]
            rows.append(
                {"sweep": name, "cluster": cluster_name(cluster), "topic": topic, "size": size, "contrast": found}
            )
    return rows


def _image(figure: Figure, alt: str) -> dict[str, str]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return {"src": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", "alt": alt}


def _is_cluster(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("format") == "neuron-shapley-cluster"
    except (ValueError, AttributeError, OSError):
        return False
