"""A task of inspect-ai: it asks the endpoint itself, with the impairment in the body of every request.

It shows text, not other fields of a reply, so what was applied is asked before and after every batch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from shapley.assess.client import Client
from shapley.assess.levels import Applied, Level
from shapley.assess.tasks import Answer
from shapley.errors import ShapleyError


class InspectTask:
    """``FILE.py@NAME``: a function of that file that makes a task. Its code runs here, as ``inspect eval`` would run it.

    Args:
        scorer: of the task's; the first by default. Values that inspect maps to [0, 1]: C and I, numbers, yes and no.
        max_tokens: of a reply, where the task does not say.

    Raises:
        ShapleyError: inspect-ai is not installed, or there is no such task.
    """

    def __init__(self, name: str, scorer: str | None, max_tokens: int) -> None:
        try:
            self._inspect = import_module("inspect_ai")
            self._models = import_module("inspect_ai.model")
            self._to_float = import_module("inspect_ai.scorer").value_to_float()
        except ModuleNotFoundError:
            raise ShapleyError("tasks of inspect-ai need it: pip install inspect-ai openai") from None
        self.max_tokens = max_tokens
        self._task = _load(name)
        samples = list(self._task.dataset)
        for number, sample in enumerate(samples, start=1):
            sample.id = sample.id or number
        self._ids = {str(sample.id): sample.id for sample in samples}
        self.name, self.scorer, self.ids = f"inspect:{name}", scorer or "first", tuple(self._ids)
        self.sha256 = hashlib.sha256("\n".join(sample.model_dump_json() for sample in samples).encode()).hexdigest()

    def ask(self, client: Client, level: Level, ids: Sequence[str]) -> Iterator[Answer]:
        """Raises ShapleyError where the task fails, or has no such scorer."""
        body = {"impairment": level.body()}
        model = self._models.get_model(
            f"openai-api/shapley/{client.model}",
            base_url=client.base,
            api_key=client.key or "none",
            config=self._models.GenerateConfig(temperature=0, max_tokens=self.max_tokens, extra_body=body),
            memoize=False,
        )
        with tempfile.TemporaryDirectory() as logs:
            wanted = [self._ids[item] for item in ids]
            log = self._inspect.eval(self._task, model, sample_id=wanted, epochs=1, display="none", log_dir=logs)[0]
            if log.status != "success":
                problem = log.error.message if log.error else log.status
                raise ShapleyError(f"inspect failed at {level.text()}: {problem}")
            applied = client.applied(level)
            yield from (self._answer(sample, applied) for sample in log.samples or ())

    def _answer(self, sample: Any, applied: Applied) -> Answer:
        scores = sample.scores or {}
        name = next(iter(scores), "") if self.scorer == "first" else self.scorer
        if name not in scores:
            raise ShapleyError(f"{self.name} has no scorer {name!r}: choose from {', '.join(scores) or 'none'}")
        value = self._to_float(scores[name].value)
        if not 0 <= value <= 1:
            raise ShapleyError(f"{name} of inspect is {value!r}: scores must be numbers from 0 to 1")
        return Answer(str(sample.id), value, sample.output.completion, applied)


def _load(name: str) -> Any:
    file, _, function = name.rpartition("@")
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, function)()
    except Exception as error:  # somebody else's code
        raise ShapleyError(
            f"cannot load the inspect task {name!r} (FILE.py@NAME): {type(error).__name__}: {error}"
        ) from None
