"""lm-eval's tasks, loaded with all that they ask of a model: its package is the extra `quality`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import io
import json
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.plan import ModelSource, TaskSource, digest
from jobs.tasks.files import build, unusable
from optim.errors import InputError

Render = Callable[..., str]
"""`(messages, add_generation_prompt=True)` -> prompt, as lm-eval calls it."""


def renderer(model: ModelSource) -> Render:
    """By the model's template; InputError where it has none, or one that refuses the messages."""
    from optim.model import load_tokenizer

    tokenizer: Any = load_tokenizer(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the model's tokenizer has no chat template",
            source=model.path,
            field="chat",
            mend="Leave `chat` out, or take a model that is made for chats",
        )

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        prompt: str = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return prompt

    return render


FEWSHOT_SEED = 1234
"""lm-eval's own, for the examples before a question."""
_RANDOM_SEED, _NUMPY_SEED = 0, 1234
"""What `lm_eval.simple_evaluate` sets before it loads a task; some shuffle with them."""
_PLACES = {"config_source", "dataset_kwargs"}
"""Of a task's configuration: where things lie on this machine."""


@dataclass(frozen=True)
class Sample:
    """One document of a task, and what lm-eval asks of a model about it."""

    doc_id: int
    """Its place among the task's documents."""
    doc: Any
    requests: tuple[Any, ...]
    """`lm_eval.api.instance.Instance`s in the task's order."""


@dataclass(frozen=True)
class LoadedTask:
    """A task of lm-eval with all of its samples; `task` is a `lm_eval.api.task.Task`."""

    name: str
    task: Any
    samples: tuple[Sample, ...]
    is_chat: bool = False
    """Whether prompts are chats, rendered by the model's template."""

    def source(
        self, include_path: str | None, doc_ids: Sequence[int], *, trust_remote_code: bool
    ) -> TaskSource:
        """What a plan says of it, of the documents that are run."""
        chosen = set(doc_ids)
        docs = [sample.doc for sample in self.samples if sample.doc_id in chosen]
        return TaskSource(
            name=self.name,
            include_path=include_path,
            num_fewshot=self.task.config.num_fewshot or 0,
            is_chat=self.is_chat,
            trust_remote_code=trust_remote_code,
            version=str(self.task.VERSION),
            lm_eval_version=importlib.metadata.version("lm-eval"),
            config_sha256=digest(_plain(_without_places(self.task.dump_config()))),
            documents_sha256=digest(_plain(docs)),
        )

    def metrics(self) -> tuple[str, ...]:
        """The names that its scores have, as far as the task says so beforehand."""
        names = [ensemble.name for ensemble in self.task._filters]
        return tuple(score_name(m, f) for m in self.task.aggregation() for f in names)


def score_name(metric: str, filter_name: str) -> str:
    """A metric's name as lm-eval has it, but without its filter `none`, which does nothing."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def load_task(
    name: str,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    *,
    chat: Render | None = None,
    trust_remote_code: bool = False,
) -> LoadedTask:
    """A task with its documents and requests, as lm-eval itself would make them.

    With `chat`, prompts are chats rendered by it, worked examples being turns of their own;
    `trust_remote_code` lets it fetch metrics from the hub, which are code, and nothing else.

    Raises InputError where lm-eval is not installed, where there is no such task, where it is a
    group of them, where its data cannot be had, and where it needs what is not supported.
    """
    require_lm_eval()
    with quiet(), _seeded():
        made = build(name, include_path, is_trusted=trust_remote_code)
        _set_fewshot(made, name, num_fewshot)
        made.set_fewshot_seed(seed=FEWSHOT_SEED)
        try:
            made.build_all_requests(
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=chat is not None,
                chat_template=chat,
            )
        except Exception as error:  # The task's own templates and functions may raise anything.
            raise unusable(name, "its prompts cannot be made", error) from error
        requests: dict[int, list[Any]] = {}
        for instance in made.instances:
            requests.setdefault(instance.doc_id, []).append(instance)
        samples = tuple(
            Sample(doc_id, found[0].doc, tuple(sorted(found, key=lambda each: each.idx)))
            for doc_id, found in requests.items()
        )
    return LoadedTask(name, made, samples, chat is not None)


def require_lm_eval() -> None:
    """InputError where lm-eval is not installed."""
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"tasks need lm-eval, which cannot be imported here ({error})",
            field="task",
            mend="Install `optrial[quality]`",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and its tasks log, warn and show progress; what matters of it becomes an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    random.seed(_RANDOM_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _set_fewshot(task: Any, name: str, wanted: int | None) -> None:
    own = task.get_config("num_fewshot")
    if wanted is not None:
        if own == 0 and wanted:
            raise InputError(
                f"the task allows no examples, and {wanted} are asked for",
                source=name,
                field="num_fewshot",
                mend="Leave `num_fewshot` out",
            )
        task.set_config(key="num_fewshot", value=wanted)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _without_places(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _without_places(v) for k, v in config.items() if k not in _PLACES}
    return config


def _plain(value: Any) -> Any:
    """As JSON that is the same everywhere: functions by their source, images by their kind."""

    def other(each: Any) -> str:
        if callable(each):
            try:
                return inspect.getsource(each)
            except (TypeError, OSError):
                return str(getattr(each, "__qualname__", type(each).__qualname__))
        return each.isoformat() if hasattr(each, "isoformat") else type(each).__qualname__

    return json.loads(json.dumps(value, default=other, sort_keys=True))
