"""A task of lm-evaluation-harness: it asks the endpoint itself, with the impairment in the model's name.

The harness sends nothing in a request that it does not know, so ``MODEL@noise:0.5`` is how it carries an impairment; and it
shows nothing of a reply but text and log-probabilities, so what was applied is asked before and after every batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from shapley.assess.client import Client
from shapley.assess.levels import Applied, Level
from shapley.assess.tasks import Answer
from shapley.errors import ShapleyError


class LmEvalTask:
    """One task, not a group, by its name or the path of its YAML file.

    Args:
        scorer: a metric, or ``METRIC,FILTER`` as in the harness's results; the first of the task by default. Values must be in
            [0, 1].

    Raises:
        ShapleyError: the harness is not installed, or has no such task or metric.
    """

    def __init__(self, name: str, scorer: str | None) -> None:
        try:
            self._evaluate = import_module("lm_eval").simple_evaluate
            self._manager = import_module("lm_eval.tasks").TaskManager()
        except ModuleNotFoundError:
            raise ShapleyError("tasks of lm-eval need it: pip install 'lm_eval[api]>=0.4.13'") from None
        self.name, self._asked = f"lm-eval:{name}", name
        [(self._key, task)] = self._load().items()
        metrics = list(task.aggregation())
        self.scorer = scorer or metrics[0]
        if self.scorer.partition(",")[0] not in metrics:
            raise ShapleyError(f"{self.name} has no metric {self.scorer!r}: choose from {', '.join(metrics)}")
        documents = list(task.eval_docs)
        self.ids = tuple(str(i) for i in range(len(documents)))
        self.sha256 = hashlib.sha256(json.dumps(documents, default=str, sort_keys=True).encode()).hexdigest()

    def _load(self) -> dict[str, Any]:
        try:
            tasks: dict[str, Any] = self._manager.load([self._asked])["tasks"]
        except Exception as error:  # the harness raises what its tasks and their loaders do
            raise ShapleyError(f"lm-eval cannot load {self._asked!r}: {type(error).__name__}: {error}") from None
        if len(tasks) != 1:
            raise ShapleyError(f"{self._asked!r} is {len(tasks)} tasks of lm-eval: give one")
        return tasks

    def ask(self, client: Client, level: Level, ids: Sequence[str]) -> Iterator[Answer]:
        """Raises ShapleyError where the harness fails, or a metric is not in [0, 1]."""
        settings: dict[str, Any] = {
            "model": f"{client.model}@{level.text()}",
            "base_url": f"{client.base}/completions",
            "num_concurrent": len(ids),
        }
        if client.key:  # the token is for the endpoint's tokenizer
            settings |= {"header": {"Authorization": f"Bearer {client.key}"}, "auth_token": client.key}
        # Sorted: the harness takes documents in their order, and names the k-th after the k-th index.
        indices = {self._key: sorted(map(int, ids))}
        try:
            found = self._evaluate(
                "local-completions",
                settings,
                tasks=[self._asked],
                task_manager=self._manager,
                samples=indices,
                bootstrap_iters=0,
            )
        except Exception as error:  # as above, and what its HTTP client raises
            raise ShapleyError(f"lm-eval failed at {level.text()}: {type(error).__name__}: {error}") from None
        yield from self._answers(found["samples"][self._key], client.applied(level))

    def _answers(self, samples: Sequence[dict[str, Any]], applied: Applied) -> Iterator[Answer]:
        metric, _, wanted = self.scorer.partition(",")
        seen = set()
        for sample in samples:  # one for each filter of a document's replies
            if sample["doc_id"] in seen or (wanted and sample["filter"] != wanted):
                continue
            seen.add(sample["doc_id"])
            value = sample.get(metric)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ShapleyError(f"{metric} of lm-eval is {value!r}: scores must be numbers from 0 to 1")
            reply = json.dumps(sample["filtered_resps"], default=str)
            yield Answer(str(sample["doc_id"]), float(value), reply, applied)
        if not seen:
            raise ShapleyError(f"{self.name} has no filter {wanted!r}")
