"""Which model falls first: performance of several models under impairment, on the same prompts (docs/compare.md).

Models that are all at the ceiling of a test look alike. So everything at a site is impaired by degrees, in strengths that are
comparable between models (standard deviations of each model's own activation, or a fraction of it), and what is compared is how
much of each model's performance is left. The prompts are the sample: every model sees the same ones, and a resample draws the
same ones for every model, so that what makes a prompt hard for all of them cancels. Works on stored sweeps; no torch.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shapley.corpus import PASSAGES, read_embedded, reference_texts
from shapley.errors import ShapleyError
from shapley.impairment import Impairment
from shapley.inference import at_matched_damage, holm
from shapley.prompts import Prompt, TopicPrompts
from shapley.records import EVERYTHING, Sweep
from shapley.shape import Interval, finite, impairment_dose, log_area, percentiles, resampled_means, retention
from shapley.types import BoolArray, FloatArray, IntArray, ValueName

PLAIN = "plain"  # the topic whose loss is the general damage
NOT_APART, NOT_COMPARABLE = "not told apart", "not comparable"
_LEVEL = 0.05
_MOST_UNDEFINED = 0.05  # share of resamples without an estimate, above which an interval is not used
_CONTEXT_WORDS, _MOST_WORDS = 2, 40  # of a plain text: given, and at most used
_MOST_PASSAGES = 32
_SAME = ("prompts", "impairment", "strengths", "seeds")  # of the settings of sweeps that are compared


@dataclass(frozen=True)
class TaskCurve:
    """How one model's performance on one task falls.

    A model that is not above its floor has nothing to lose: all but ``performance`` and ``floor`` is NaN then.

    Attributes:
        performance: ``[strengths]``, mean over noise seeds and prompts, strength zero first.
        floor: the performance at which nothing is left; held fixed by the intervals.
        retention, low, high: ``[strengths]``, (performance - floor) / (untouched - floor), and its 95% interval.
        id50: the strength at which half is left; the largest strength where that was not reached.
        censored: whether it was not reached: read *at least*.
        area: mean retention over log strength, from the least positive strength to the largest.
        lost: for every damage level, 1 - retention where plain text is so much worse.
        tokens: ``[prompts]``, how many tokens the model's tokenizer makes of each answer, prompts sorted by key.
    """

    performance: FloatArray
    floor: float
    retention: FloatArray
    low: FloatArray
    high: FloatArray
    id50: Interval
    censored: bool
    area: Interval
    lost: tuple[Interval, ...]
    tokens: FloatArray

    @property
    def above_floor(self) -> bool:
        return bool(self.performance[0] > self.floor)


@dataclass(frozen=True)
class Pair:
    """Two models on one task: the first minus the second, on the same resampled prompts.

    Attributes:
        log_id50: of ID50s, natural logarithms; the verdict is on it. Where one is censored the difference is at least so
            large, where both are it is zero.
        area: of areas.
        lost: of the shares lost, for every damage level; positive where the first loses more.
        p: two-sided, that the difference of log ID50 is zero; NaN where it cannot be tested.
        p_holm: corrected for all tasks and pairs of the comparison.
    """

    task: str
    first: str
    second: str
    log_id50: Interval
    area: Interval
    lost: tuple[Interval, ...]
    p: float
    p_holm: float

    @property
    def falls_first(self) -> str | None:
        """The model with the lower ID50, if the interval excludes zero and the corrected p is at most 0.05."""
        if not self.p_holm <= _LEVEL or self.log_id50.low <= 0 <= self.log_id50.high:
            return None
        return self.first if self.log_id50.estimate < 0 else self.second

    @property
    def verdict(self) -> str:
        if np.isnan(self.p):
            return NOT_COMPARABLE
        return NOT_APART if self.falls_first is None else f"{self.falls_first} falls first"


@dataclass(frozen=True)
class Comparison:
    """All models on all tasks.

    Attributes:
        strengths: ``[strengths]``, zero first; in standard deviations of the site for the noise kinds.
        damages: ``[levels]``, rises of the loss on plain text, in nats a UTF-8 byte.
        damage: by model, ``[strengths]``, the rise at every strength.
        curves: by task and model.
        pairs: task by task, every pair of models in the order they were given.
    """

    value: ValueName
    impairment: Impairment
    strengths: FloatArray
    damages: FloatArray
    damage: dict[str, FloatArray]
    curves: dict[str, dict[str, TaskCurve]]
    pairs: list[Pair]

    @property
    def models(self) -> list[str]:
        return list(self.damage)


def compare(
    sweeps: Mapping[str, Sweep],
    topics: Mapping[str, TopicPrompts],
    floors: Mapping[str, Mapping[str, float]],
    damages: Sequence[float] | FloatArray,
    value: ValueName = "accuracy",
    *,
    n: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare models by how they fall.

    Args:
        sweeps: by model, of everything at one site; the same strengths, impairment, seeds and prompts.
        topics: the prompts of all sweeps: tasks, and plain text as the topic ``plain``.
        floors: by model and task, the performance at which nothing is left (``floors_of``).
        damages: ``[levels]``, at which rises of the loss on plain text to compare, in nats a byte.
        value: what performance is: ``accuracy`` or ``logprob``.
        n: resamples of the bootstrap.

    Raises:
        ShapleyError: fewer than two models, sweeps that differ in more than the model or are not of these prompts, no task or
            no plain text, a floor that is missing, fewer than two positive strengths, or a damage that is not positive.
    """
    tasks = [topic for topic in topics if topic != PLAIN]
    strengths, levels = _check(sweeps, topics, tasks, floors), np.unique(damages)
    check_design(strengths, levels)
    # In the order of their keys, so that a resample holds the same prompts however the file orders them.
    orders = {topic: _by_key(prompts) for topic, prompts in topics.items()}
    damage = {name: plain_damage(sweep, topics[PLAIN], orders[PLAIN], n, seed) for name, sweep in sweeps.items()}
    curves: dict[str, dict[str, TaskCurve]] = {}
    pairs: list[Pair] = []
    for task in tasks:
        drawn: dict[str, FloatArray] = {}
        curves[task] = {}
        for name, sweep in sweeps.items():
            values = sweep.metric(task, EVERYTHING, value).mean(axis=1)[:, orders[task]]
            means = _with_resamples(values, n, seed, task)
            left = _retentions(means, floors[name][task])
            drawn[name] = _statistics(strengths, left, damage[name], levels)
            if values.shape[1] == 1:  # one prompt says nothing of others
                left[1:], drawn[name][1:] = np.nan, np.nan
            tokens = answer_tokens(sweep, task)[orders[task]]
            curves[task][name] = _curve(strengths, means[0], floors[name][task], left, drawn[name], tokens)
        pairs += [_pair(task, a, b, drawn[a] - drawn[b]) for a, b in itertools.combinations(sweeps, 2)]
    corrected = holm([pair.p for pair in pairs])
    return Comparison(
        value,
        next(iter(sweeps.values())).impairment,
        strengths,
        levels,
        {name: rises[0] for name, rises in damage.items()},
        curves,
        [replace(pair, p_holm=float(p)) for pair, p in zip(pairs, corrected, strict=True)],
    )


def check_design(strengths: FloatArray, damages: Sequence[float] | FloatArray) -> None:
    """Raises ShapleyError for fewer than two strengths above zero, or damages that are not positive numbers."""
    if len(strengths) < 3:
        raise ShapleyError("expected two strengths or more above zero: curves with fewer have no area")
    if not (finite("damages", damages) > 0).all():
        raise ShapleyError(f"damages {list(damages)}: expected rises of the loss on plain text above 0, in nats a byte")


def plain_text(texts: Sequence[str]) -> TopicPrompts:
    """Plain text as a topic: of each text the first two words are given, and the others, up to forty words in all, are the
    answer.

    Raises:
        ShapleyError: a text of fewer than three words.
    """
    prompts = []
    for text in texts:
        words = text.split()[:_MOST_WORDS]
        if len(words) <= _CONTEXT_WORDS:
            raise ShapleyError(f"plain text {text[:40]!r}: expected three words or more")
        given, rest = words[:_CONTEXT_WORDS], words[_CONTEXT_WORDS:]
        prompts.append(Prompt(PLAIN, " ".join(given), f" {' '.join(rest)}"))
    return TopicPrompts(PLAIN, tuple(prompts))


def unused_passages() -> list[str]:
    """Passages of the embedded corpus over which no activation statistics are taken, spread over the corpus."""
    used = set(reference_texts())
    unused = [text for _, text in read_embedded(PASSAGES) if text not in used]
    return unused[:: len(unused) // _MOST_PASSAGES][:_MOST_PASSAGES]


def floors_of(
    tasks: Sequence[str], zero: Sweep | None, value: ValueName, chance: Mapping[str, float]
) -> dict[str, float]:
    """By task, the performance of one model at which nothing is left: chance where it is given, and otherwise what the model
    does with every neuron scaled to zero.

    Args:
        zero: its sweep of scaling everything, the largest strength 1; none if chance is given for every task.
    """
    measured = {} if zero is None else {t: float(zero.metric(t, EVERYTHING, value)[-1].mean()) for t in tasks}
    return {**measured, **chance}


def plain_damage(sweep: Sweep, prompts: TopicPrompts, order: IntArray, n: int, seed: int) -> FloatArray:
    """``[1 + n, strengths]``: the rise of the loss on plain text, in nats a UTF-8 byte; of all texts first, then of resamples.

    A loss by byte is the total over a text divided by its length, which does not depend on how a tokenizer cuts it.
    """
    loss = sweep.metric(PLAIN, EVERYTHING, "loss").mean(axis=1)[:, order]
    size = np.array([[len(prompt.answer.encode()) for prompt in prompts.prompts]], dtype=float)[:, order]
    # The same key: loss and size of the same texts.
    by_byte = _with_resamples(loss, n, seed, PLAIN) / _with_resamples(size, n, seed, PLAIN)
    return by_byte - by_byte[:, :1]


def answer_tokens(sweep: Sweep, topic: str) -> FloatArray:
    """``[prompts]``: how many tokens each answer has, as the model cuts it: the loss is a sum over tokens, the
    log-probability a mean. NaN where a model is so sure throughout that both are zero."""
    totals = [sweep.metric(topic, EVERYTHING, name).sum(axis=(0, 1)) for name in ("loss", "logprob")]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.round(totals[0] / -totals[1]))


def other_tokens(first: TaskCurve, second: TaskCurve) -> BoolArray:
    """``[prompts]``: whose answers two models cut into different numbers of tokens."""
    known = ~np.isnan(first.tokens) & ~np.isnan(second.tokens)
    return np.asarray(known & (first.tokens != second.tokens))


def _check(
    sweeps: Mapping[str, Sweep],
    topics: Mapping[str, TopicPrompts],
    tasks: Sequence[str],
    floors: Mapping[str, Mapping[str, float]],
) -> FloatArray:
    """The strengths of sweeps that can be compared."""
    if len(sweeps) < 2:
        raise ShapleyError("one model alone cannot be compared: give two or more")
    if PLAIN not in topics or not tasks:
        raise ShapleyError(f"expected prompts of a task, and plain text as the topic {PLAIN!r}")
    first, *others = sweeps
    settings = {name: json.loads(sweep.attrs["settings"]) for name, sweep in sweeps.items()}
    for name, what in itertools.product(others, _SAME):
        if settings[name][what] != settings[first][what]:
            raise ShapleyError(
                f"the sweeps of {first} and {name} differ in {what}: {settings[first][what]!r}, {settings[name][what]!r}"
            )
    if settings[first]["prompts"] != {topic: prompts.sha256 for topic, prompts in topics.items()}:
        raise ShapleyError(f"the sweep of {first} is of other prompts than were given")
    for name, sweep in sweeps.items():
        if EVERYTHING not in sweep.clusters:
            raise ShapleyError(f"the sweep of {name} does not impair everything: sweep the cluster 'all'")
        if missing := set(tasks) - set(floors.get(name, ())):
            raise ShapleyError(f"no floor of {name} on {sorted(missing)}: give chance, or measure it")
    return sweeps[first].strengths


def _by_key(prompts: TopicPrompts) -> IntArray:
    return np.array(sorted(range(len(prompts)), key=lambda i: prompts.prompts[i].key))


def _with_resamples(values: FloatArray, n: int, *key: object) -> FloatArray:
    """``[1 + n, strengths]``: the mean of ``[strengths, prompts]`` over all prompts, then over resamples of them. The key
    alone says which prompts they hold: one key, the same prompts."""
    return np.vstack([values.mean(axis=1), resampled_means(values, n, *key)])


def _retentions(means: FloatArray, floor: float) -> FloatArray:
    """``[1 + n, strengths]``; NaN in rows of which the untouched model is not above the floor."""
    left = np.full(means.shape, np.nan)
    above = means[:, 0] > floor
    if above.any():
        left[above] = retention(means[above], floor, axis=1)
    return left


def _statistics(strengths: FloatArray, left: FloatArray, damage: FloatArray, levels: FloatArray) -> FloatArray:
    """``[1 + n, 2 + levels]``: log ID50, area, and the share lost at every damage; NaN where there is no retention, or a
    damage was not reached.

    Args:
        left: ``[1 + n, strengths]``, retention.
        damage: ``[1 + n, strengths]``.
    """
    found = np.full((len(left), 2 + len(levels)), np.nan)
    for row in np.flatnonzero(~np.isnan(left[:, 0])):
        lost = 1 - left[row]
        found[row, 0] = np.log(impairment_dose(strengths, left[row], 0.5).value)
        found[row, 1] = log_area(strengths, left[row])
        found[row, 2:] = [at_matched_damage(damage[row], lost, level).drop for level in levels]
    return found


def _interval(drawn: FloatArray) -> Interval:
    """Of ``[1 + n]``, the estimate first; NaN throughout where there is no estimate."""
    if np.isnan(drawn[0]):
        return Interval(np.nan, np.nan, np.nan, undefined=1.0)
    return percentiles(float(drawn[0]), drawn[1:])


def _curve(
    strengths: FloatArray,
    performance: FloatArray,
    floor: float,
    left: FloatArray,
    drawn: FloatArray,
    tokens: FloatArray,
) -> TaskCurve:
    """Arguments as made by ``_retentions`` and ``_statistics``."""
    bands = [_interval(at) for at in left.T]
    log = _interval(drawn[:, 0])
    return TaskCurve(
        performance,
        floor,
        left[0],
        np.array([band.low for band in bands]),
        np.array([band.high for band in bands]),
        Interval(math.exp(log.estimate), math.exp(log.low), math.exp(log.high), log.undefined),
        bool(np.isfinite(left[0, 0])) and impairment_dose(strengths, left[0], 0.5).censored,
        _interval(drawn[:, 1]),
        tuple(map(_interval, drawn[:, 2:].T)),
        tokens,
    )


def _pair(task: str, first: str, second: str, difference: FloatArray) -> Pair:
    """From ``[1 + n, 2 + levels]`` differences; not yet corrected for other pairs."""
    log_id50, area, *lost = map(_interval, difference.T)
    p = _sign_p(difference[1:, 0]) if log_id50.undefined <= _MOST_UNDEFINED else float("nan")
    return Pair(task, first, second, log_id50, area, tuple(lost), p, p)


def _sign_p(drawn: FloatArray) -> float:
    """Two-sided p of a difference, from resamples: twice the share on the rarer side of zero, at which both sides count. What
    was observed counts as one of the draws, so that p is never zero."""
    defined = drawn[~np.isnan(drawn)]
    rarer = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (1 + rarer) / (1 + len(defined))))
