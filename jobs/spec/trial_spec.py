"""`TrialSpec`: what a trial is, as people write it in YAML.

Relative paths in a spec are relative to the current directory, not to the spec's folder; `~` and
`${VARIABLE}` stand for what they do in a shell, and a variable that is not set is refused. Reading
a spec executes nothing. `jobs.spec.configurations.expand` makes the configurations of it, and
`jobs.trial.planning.make_plan` the plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from jobs.spec.analysis_plan import Judgement
from jobs.spec.score_names import named_scores, require_judged
from jobs.spec.shorthand import (
    check_scorer,
    check_source,
    default_name,
    expanded,
    read_dataset,
    read_factors,
    read_model,
    read_optimization,
    read_seeds,
    read_stop,
    read_workers,
)
from jobs.spec.templates import check_template
from jobs.spec.yaml_reader import read_yaml, validated

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=100)]
BatchSize = Annotated[Whole, Field(ge=1)]
PrefillChunk = Annotated[Whole, Field(ge=1)] | None
Place = Annotated[Text, AfterValidator(expanded)]
Scorer = Annotated[Text, AfterValidator(check_scorer)]


def _sorted_once(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSpec(_Spec):
    """Where the model comes from. A string is short for its `path`."""

    path: Place
    """A local folder, a hub id, or `demo` (the small model that ships with Optrial)."""
    revision: str | None = None
    """Commit, tag or branch of a hub model; a commit keeps the trial repeatable."""
    trust_remote_code: Flag = False
    """Run Python code that the model's repository brings along."""


class DatasetSpec(_Spec):
    """Prompts, their reference answers, and how many of them. A string is short for its `path`."""

    name: Name = ""
    """Name in the results; by default the path's last part without its suffix."""
    path: Annotated[str, AfterValidator(expanded)] = ""
    """A .jsonl, .jsonl.gz, .parquet or .csv file (local, or an address such as s3://…), a dataset
    id on the hub, or `demo/language`, `demo/networking`, `demo/data`. Needed unless it is a
    `task`."""
    task: Text | None = None
    """Instead of a path: the name of an lm-eval task, which brings prompts, answers and metrics
    along. Needs `optrial[quality]`."""
    include_path: Place | None = None
    """Folder with the files of tasks of your own. Loading a task runs the Python that it names."""
    num_fewshot: Annotated[Whole, Field(ge=0)] | None = None
    """Worked examples before each question of a task; by default as many as the task says."""
    chat: Flag = False
    """Make each prompt the user's turn of a chat, rendered by the model's template; a task's worked
    examples become turns too."""
    continue_final_message: Flag = False
    """Where a chat ends with the assistant's words, go on with them; else such a row is refused."""
    trust_remote_code: Flag = False
    """Let a task fetch metrics from the hub, which are code, and run them."""
    subset: str | None = None
    """Subset (configuration) of a hub dataset."""
    split: str | None = None
    """Split of a hub dataset; needed where it has more than one."""
    revision: str | None = None
    """Commit, tag or branch of a hub dataset; a commit keeps the trial repeatable."""
    prompt: Text | None = None
    """The column of the prompts, or a template such as "{question}\\n" (quote it; `{{` is a brace).
    By default the column `prompt`, or the chats in `messages` where only that exists."""
    messages: Text | None = None
    """The column of chats, lists of {role, content}, rendered by the model's chat template.
    Excludes `prompt`."""
    target: Text | None = None
    """The column of reference answers; by default `target` where it exists."""
    choices: Text | None = None
    """The column of candidate answers (lists of texts) for multiple choice."""
    cluster: Text | None = None
    """The column that groups dependent prompts, such as questions about one passage."""
    id: Text | None = None
    """The column of unique prompt ids; by default `id` where it exists, else a hash of the
    prompt."""
    limit: Annotated[Whole, Field(ge=1)] | None = None
    """Draw this many prompts; a smaller draw is part of every larger one."""
    sample_seed: Whole = 0
    """Seed of the draw."""
    shards: Annotated[Whole, Field(ge=1)] | None = None
    """Parts that the dataset is cut into, the units of work and resume; at most one per prompt.
    Verdicts on times and memory need at least 8, and more among many comparisons: left out, it is
    as many as the trial's primary verdicts need, the next look's too, and no more, since larger
    shards fill batches better."""
    scorers: tuple[Scorer, ...] = ()
    """How outputs are scored: exact, normalised, contains, numeric, multiple_choice,
    `regex:PATTERN`, or your own function as `package.module:function`."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("name") is None:
            path = value.get("path") or value.get("task")
            if isinstance(path, str):
                return {**value, "name": default_name(path)}
        return value

    @field_validator("prompt", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError('expected text, got a mapping. Quote a template: "{question}"')
        return check_template(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> DatasetSpec:
        if self.prompt is not None and self.messages is not None:
            raise ValueError("`prompt` and `messages` exclude each other. Keep one of them")
        check_source(self.model_dump(exclude_defaults=True), self.path, self.task)
        return self


class EngineSettings(_Spec):
    """Engine settings of every configuration that does not set its own."""

    batch_size: BatchSize = 8
    """Sequences that are generated at once."""
    cache: Name = "dynamic"
    """Where keys and values are kept: dynamic, static, or the name of another cache."""
    prefill_chunk: PrefillChunk = None
    """Tokens of a prompt per step; null prefills it whole."""


class OptimizationSpec(_Spec):
    """An optimisation. Written as its name, or as `name: {setting: value}`."""

    name: Name
    """Its registered name."""
    settings: dict[str, Any] = {}
    """Its settings; what they are is the optimisation's own."""

    @field_validator("settings")
    @classmethod
    def _expanded(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {k: expanded(v) if isinstance(v, str) else v for k, v in settings.items()}


Optimization = Annotated[
    OptimizationSpec,
    BeforeValidator(read_optimization, json_schema_input_type=str | dict[str, dict[str, Any]]),
]


class LevelSpec(_Spec):
    """One level of a factor: what it adds to a configuration."""

    name: Name
    """Part of the names of the configurations that have it."""
    optimizations: tuple[Optimization, ...] = ()
    """Optimisations, each a name or `name: {setting: value}`; the order does not matter."""
    batch_size: BatchSize | None = None
    """Sequences that are generated at once; null takes the trial's."""
    cache: Name | None = None
    """Where keys and values are kept; null takes the trial's."""
    prefill_chunk: PrefillChunk = None
    """Tokens of a prompt per step; null prefills it whole, leaving it out takes the trial's."""

    def engine(self) -> dict[str, Any]:
        """The engine settings that are set here, as keywords of `EngineSettings`."""
        own: dict[str, Any] = {"batch_size": self.batch_size, "cache": self.cache}
        found = {key: value for key, value in own.items() if value is not None}
        if "prefill_chunk" in self.model_fields_set:
            found["prefill_chunk"] = self.prefill_chunk
        return found


class ConfigurationSpec(LevelSpec):
    """One arm of the trial: a set of optimisations and engine settings."""

    vs: Name | None = None
    """The configuration that this one is compared with; by default the baseline at the same engine
    settings."""
    alone: Flag = False
    """Leave it as it is, whatever the factors; the others are crossed with them."""


class GenerationSpec(_Spec):
    """How completions are sampled; the same for every configuration."""

    max_new_tokens: Annotated[Whole, Field(ge=1)] = 64
    """Budget in tokens of the baseline's vocabulary."""
    temperature: Annotated[Number, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that have this share of the probability; 1 is all."""
    top_k: Annotated[Whole, Field(ge=0)] = 0
    """Sample from this many most likely tokens; 0 is all."""
    repetition_penalty: Annotated[Number, Field(gt=0)] = 1.0
    """Divides the logits above 0 of all tokens of prompt and completion so far, and multiplies
    those below (as transformers does); 1 is off. Across vocabularies it is refused."""
    suppress_tokens: Annotated[
        tuple[Annotated[Whole, Field(ge=0)], ...], AfterValidator(_sorted_once)
    ] = ()
    """Ids of tokens that are never chosen."""
    from_model: Flag = False
    """Take what is not set here from the model's generation_config.json: greedy or not,
    temperature, top_p, top_k, repetition_penalty, suppress_tokens, max_new_tokens, stop_strings as
    `stop`. Whatever else decides tokens there is refused by name."""
    stop: Annotated[
        tuple[Text, ...], BeforeValidator(read_stop, json_schema_input_type=str | list[str])
    ] = ()
    """Texts that end a completion."""
    token_times: Flag = False
    """Record every token's time."""
    completion_ids: Flag = False
    """Record the token ids beside the text."""


class WorkersSpec(_Spec):
    """How many workers there are, and what each one is given. A number is short for `count`."""

    count: Annotated[Whole, Field(ge=1)] = 1
    """Workers, each with one copy of the model."""
    cpus: Annotated[Number, Field(gt=0)] = 1.0
    """CPUs of each worker, which are its threads."""
    gpus: Annotated[Whole, Field(ge=0)] = 0
    """Whole GPUs of each worker: timings on a shared one mean nothing."""
    accelerator_type: str | None = None
    """The only kind of accelerator to run on, as Ray names it (`H100`), where there are several."""
    start_timeout_s: Annotated[Number, Field(ge=0)] = 0.0
    """How long to wait for a node that a worker fits on, where nodes come on demand."""
    schedule: Literal["auto", "blocks", "leases"] = "auto"
    """`blocks`: a worker holds all configurations and runs them back to back. `leases`: it holds
    one at a time, in `rounds`. `auto`: leases where they do not fit into memory together."""
    rounds: Annotated[Whole, Field(ge=1)] = 3
    """Of leases: how often each configuration has its turn, so that a drift meets all."""
    deadline_s: Annotated[Number, Field(gt=0)] | None = None
    """Most seconds that a block may take before its worker is ended; by default five times what is
    usual, at least 60."""
    node_cache: Place | None = None
    """A folder on each node's own disk, where model and artifacts are copied to once per node."""


class TrialSpec(_Spec):
    """A trial: configurations compared on the same prompts and the same seeds."""

    model: Annotated[ModelSpec, BeforeValidator(read_model, json_schema_input_type=str | ModelSpec)]
    """The model: a local folder, a hub id or `demo`, or a mapping of path and revision."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is float32 on CPU and the checkpoint's own dtype on GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where the workers have GPUs, else cpu."""
    datasets: Annotated[
        tuple[
            Annotated[
                DatasetSpec, BeforeValidator(read_dataset, json_schema_input_type=str | DatasetSpec)
            ],
            ...,
        ],
        Field(min_length=1),
    ]
    """Where the prompts come from."""
    configurations: tuple[ConfigurationSpec, ...] = ()
    """The configurations, one by one; by default a single one without optimisations."""
    factors: Annotated[
        dict[Name, tuple[LevelSpec, ...]],
        BeforeValidator(
            read_factors,
            json_schema_input_type=dict[
                str, list[str | int | bool | LevelSpec | None] | dict[str, Any]
            ],
        ),
    ] = {}
    """Full factorial over these factors, times the listed configurations. Levels of batch_size,
    cache and prefill_chunk are their values. Levels of any other factor are `off`, an
    optimisation's name, `on` (the optimisation named like the factor), or a mapping of level names
    to {optimizations, batch_size, …}."""
    engine: EngineSettings = EngineSettings()
    """Engine settings of every configuration that does not set its own."""
    baseline: str | None = None
    """The baseline: a configuration's name, or a factor's level such as `cache-dynamic`. By default
    every configuration without optimisations is one."""
    seeds: Annotated[
        tuple[Whole, ...], BeforeValidator(read_seeds, json_schema_input_type=int | list[int])
    ] = (0,)
    """Sampling seeds: how many, counted from 0, or a list."""
    generation: GenerationSpec = GenerationSpec()
    """How completions are sampled."""
    workers: Annotated[
        WorkersSpec, BeforeValidator(read_workers, json_schema_input_type=int | WorkersSpec)
    ] = WorkersSpec()
    """How many workers, and what each one is given."""
    output: Place
    """Folder of the results, or an s3:// or gs:// address."""
    share_prompts: Literal["none", "seeds", "configurations"] = "none"
    """Prefill a prompt once and share it: not at all; among the `seeds` of a configuration, which
    then run at once; or among all `configurations` of equal weights too, before anybody's time
    counts. Rows say so in `prefill_shared`, and their time to first token is that of the fork."""
    weight_order: Literal["auto", "rows", "columns"] = "auto"
    """How float32 weights lie in a CPU's memory, for all configurations alike: by `rows`, as they
    are loaded, or by `columns` where a matrix has no fewer outputs than inputs, which torch reads
    up to three times as fast for one or two sequences, and prompts about as fast. Columns take
    memory of their own in each worker, where rows of a float32 checkpoint are mapped and shared.
    `auto` is columns for float32 on a CPU where no `batch_size` is above 2, and in a trial that is
    there already what it was. The order can change the last bits of a logit."""
    baseline_check: Flag = True
    """Run every baseline twice (`NAME.repeat`), to see what a difference of nothing looks like."""
    likelihoods: Flag = True
    """Let the model score targets and choices, where a dataset has any."""
    max_row_errors: Annotated[Number, Field(ge=0, le=1)] = 0.05
    """Share of rows that may have an error: of a dataset's when it is read, else nothing is run,
    and of a configuration's in the end, else the exit code is 1."""
    shuffle_seed: Whole = 0
    """Seed of the order in which the work is done."""
    analysis: Judgement = Judgement()
    """How differences are judged. What is stated when the trial first runs stays."""

    @field_validator("output")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        scheme, separator, _ = value.partition("://")
        if separator and scheme not in {"s3", "gs", "file", "memory"}:
            raise ValueError(f"expected a folder or an s3:// or gs:// address, got '{value}'")
        return value

    @model_validator(mode="after")
    def _weights_of_datasets(self) -> TrialSpec:
        known = [dataset.name for dataset in self.datasets]
        for name in self.analysis.weights:
            if name not in known:
                raise ValueError(
                    f"`analysis.weights` names `{name}`, which is no dataset. "
                    f"There are: {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _gpus_for_cuda(self) -> TrialSpec:
        if self.device == "cuda" and self.workers.gpus == 0:
            raise ValueError(
                "`device` is cuda, but the workers have no GPU. Set `workers: {gpus: 1}`"
            )
        return self


def read_spec(path: str | Path) -> TrialSpec:
    """The spec in a YAML file; InputError with everything that is wrong with it, one line each."""
    spec = validated(TrialSpec, read_yaml(path), path)
    require_judged(spec.analysis, spec_scores(spec), path)
    return spec


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a spec, for editors that complete and check it."""
    schema = TrialSpec.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def spec_scores(spec: TrialSpec) -> tuple[str, ...] | None:
    """The scores that a spec asks for; None where a task has to be loaded to say."""
    if any(dataset.task is not None for dataset in spec.datasets):
        return None
    names = (name for dataset in spec.datasets for name in dataset.scorers)
    return named_scores(names, likelihoods=spec.likelihoods)
