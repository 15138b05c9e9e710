"""The vocabulary: every metric, span, event and attribute that we may emit.

One line an entry: name, kind, unit, what it says. A name that is not here cannot be
emitted by us, and a name here that nothing emits fails `tests/test_names.py`. OTel's own
semantic conventions come first; training has none, so ours are `ml.*`. Units are UCUM
and never part of a name. An unbounded value (step, request id, shape) is never an
attribute of a metric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"
SCOPE = "otel_ml"

Kind = Literal["counter", "gauge", "histogram", "up_down_counter"]

# From 100 µs (a tiny model's phase) to 10 min (a huge model's step): 1-2.5-5 a decade.
SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
BYTES = tuple(float(4**n * 1024) for n in range(1, 16))
ITEMS = tuple(float(2**n) for n in range(15))


class Name(str):
    """An attribute's key or a span's or event's name; a `str` that knows what it says."""

    __slots__ = ("doc",)
    doc: str

    def __new__(cls, value: str, doc: str) -> Self:
        """A name with its one sentence."""
        self = super().__new__(cls, value)
        self.doc = doc
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """A copy, wherever it is made (exporters deep-copy attributes), is plain text."""
        return str, (str(self),)


class Attribute(Name):
    """The key of an attribute."""

    __slots__ = ()


class Span(Name):
    """The name of a span; low-cardinality, details are attributes."""

    __slots__ = ()


class Event(Name):
    """The event name of a log record."""

    __slots__ = ()


@dataclass(frozen=True)
class Metric:
    """A metric: `kind` in `unit`, with the only attributes it may carry."""

    name: str
    kind: Kind
    unit: str
    doc: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = field(default=None, repr=False)




A = Attribute

# --- attributes: the run (resource) ------------------------------------------------------
RUN_ID = A("ml.run.id", "The run, the same in every process, rank and signal.")
RUN_NAME = A("ml.run.name", "A name for people; defaults to the script's name.")
RUN_ATTEMPT = A("ml.run.attempt", "Which try at the same run this is, from 0.")
RANK = A("ml.rank", "The process's rank in the job, from 0.")
LOCAL_RANK = A("ml.local_rank", "The process's rank on its machine, from 0.")
WORLD_SIZE = A("ml.world_size", "How many ranks the job has.")
LAUNCHER = A("ml.launcher", "What started the ranks: torchrun, slurm, ray, kubeflow, accelerate, none.")

# --- attributes: steps and what is in them -----------------------------------------------
FRAMEWORK_NAME = A("ml.framework.name", "torch or jax; none for a step that the program itself marked, where neither is in it.")
FRAMEWORK_VERSION = A("ml.framework.version", "The framework's version.")
PHASE = A("ml.phase", "What a part of the step was for: data_wait, forward, backward, optimizer, …")
OUTCOME = A("ml.outcome", "ok, skipped or failed.")
SKIP_REASON = A("ml.skip.reason", "Why a step was skipped: gradient_overflow.")
OPTIMIZER = A("ml.optimizer", "The optimizer's class, numbered where several are alike.")
PARAM_GROUP = A("ml.param_group", "The optimizer's parameter group, from 0, where there are several.")
STEP_NUMBER = A("ml.step.number", "The step's number, from 0.")
STEP_STRIDE = A("ml.step.stride", "How many steps each entry of a thinned column stands for.")
STEP_DURATION_S = A("ml.step.duration", "The step's duration in seconds.")
PROFILE_PATH = A("ml.profile.path", "Where the profiler's capture of this step is.")
STEP_PHASE = A("ml.step.phase", "Prefix of ml.step.phase.<phase>: the phase's seconds in the step.")
STEP_LOSS = A("ml.step.loss", "Prefix of ml.step.loss.<optimizer>: each optimizer's loss, where several.")
STEP_LOSS_BEFORE = A("ml.step.loss_before", "When a second optimizer is met: whose loss it was that was told without.")
STEP_SCALAR = A("ml.step.scalar", "Prefix of ml.step.scalar.<name>: another value of the step by the name the program gave it.")
EPOCH_NUMBER = A("ml.epoch.number", "The epoch's number, as the program gave it.")
SPLIT = A("ml.split", "What a value or an evaluation is of: train, validation, test, as the program says.")
STEP_SAMPLES = A("ml.step.samples", "Samples fetched for the step.")
STEP_TOKENS = A("ml.step.tokens", "Tokens fetched for the step.")
STEP_MICRO_BATCHES = A("ml.step.micro_batches", "Backward passes in the step.")
TIME_CATEGORY = A("ml.time.category", "productive, startup, data_wait, compile, checkpoint, evaluation, skipped, other.")
RUN_STATE = A("ml.run.state", "running, finished (also when interrupted) or failed.")
SCALAR_NAME = A("ml.scalar.name", "The value's name.")
ERROR_TYPE = A("error.type", "The exception's class.")
EXCEPTION_TYPE = A("exception.type", "The exception's class.")
EXCEPTION_MESSAGE = A("exception.message", "The exception's message, redacted.")
EXCEPTION_STACKTRACE = A("exception.stacktrace", "The traceback.")
FUNCTION_NAME = A("code.function.name", "The function: one that is compiled (in metrics at most 50, then 'other'), traced or timed.")
ARGUMENT = A("ml.argument", "Prefix of ml.argument.<name>: an argument of a traced function, where that was asked for; an array as its shape.")
REQUEST_ID = A("ml.request.id", "The request: its X-Request-ID, what the program calls it, else a new one.")
LIMIT_KIND = A("otel_ml.limit.kind", "What it was: span, event, scalar, value, phase, function, name, step, number.")
EPOCH_DURATION_S = A("ml.epoch.duration", "The epoch's duration in seconds.")

# --- attributes: compile, checkpoint, inference, model ----------------------------------
COMPILE_STAGE = A("ml.compile.stage", "trace, lowering or backend, where the framework tells them apart.")
CACHE_RESULT = A("ml.compile.cache.result", "hit or miss: whether the persistent cache had it.")
COMPILE_SAVED_S = A("ml.compile.cache.saved", "What the persistent cache saved, in seconds; may be negative.")
COMPILE_REASON_KIND = A("ml.compile.reason.kind", "Why it was compiled again: size, dtype, type, value, identity, other.")
COMPILE_REASON = A("ml.compile.reason", "The failed guard as the framework said it, or the argument that changed.")
ANOMALY_KIND = A("ml.anomaly.kind", "recompile_storm.")
ANOMALY_EVIDENCE = A("ml.anomaly.evidence", "The figures it stands on.")
ANOMALY_ADVICE = A("ml.anomaly.advice", "What to try next.")
HW_ID = A("hw.id", "The device, as the framework counts them: cpu:0, gpu:3.")
CHECKPOINT_OPERATION = A("ml.checkpoint.operation", "save or load.")
CHECKPOINT_PATH = A("ml.checkpoint.path", "Where the checkpoint is.")
CHECKPOINT_SIZE_BY = A("ml.checkpoint.size", "The checkpoint's size in bytes.")
CHECKPOINT_DURATION_S = A("ml.checkpoint.duration", "What saving or loading took the program, in seconds.")
CHECKPOINT_BACKGROUND_S = A("ml.checkpoint.background", "What went on behind the program after that, in seconds.")
MEMORY_USED_BY = A("ml.memory.used", "Bytes in use, as the program says.")
MEMORY_FREE_BY = A("ml.memory.free", "Bytes left, as the program says.")
MODEL_NAME = A("ml.model.name", "The root module's class.")
MODEL_PARAMETERS_COUNT = A("ml.model.parameters", "How many parameters the model holds.")
PARAMETER_TRAINABLE = A("ml.parameter.trainable", "Whether the parameters require a gradient.")

# --- attributes: the end of a run, its set-up, its verdict ------------------------------
RUN_OUTCOME = A("ml.run.outcome", "finished, failed, interrupted or killed.")
RUN_EXIT_CODE = A("ml.run.exit_code", "The process's exit code, where known.")
RUN_DURATION_S = A("ml.run.duration", "From the process's start to its end, in seconds.")
RUN_TOTALS = A("ml.run.totals", "The run's aggregates as JSON; keys in `otel_ml/totals.py`.")
CONFIG_ARGV = A("ml.config.argv", "The command line, secrets redacted.")
CONFIG_VALUE = A("ml.config.value", "Prefix of ml.config.value.<name>: what the program says it was configured with, secrets redacted.")
CONFIG_OPTIMIZERS = A("ml.config.optimizers", "The optimizers' classes.")
CONFIG_MODELS = A("ml.config.models", "The root modules' classes.")
DIAGNOSIS_VERDICT = A("ml.diagnosis.verdict", "input-bound, compute-bound, residual-heavy, no bottleneck found, …")
DIAGNOSIS_EVIDENCE = A("ml.diagnosis.evidence", "The figures the verdict stands on.")
DIAGNOSIS_ADVICE = A("ml.diagnosis.advice", "What to try next.")

# --- metrics -----------------------------------------------------------------------------
STEP_DURATION = Metric("ml.training.step.duration", "histogram", "s", "Wall time of a training step.", (FRAMEWORK_NAME,), SECONDS)
PHASE_DURATION = Metric("ml.training.phase.duration", "histogram", "s", "Wall time of a step's phase, by the host's clock.", (PHASE,), SECONDS)
STEPS = Metric("ml.training.steps", "counter", "{step}", "Training steps.", (OUTCOME, SKIP_REASON))
SAMPLES = Metric("ml.training.samples", "counter", "{sample}", "Samples trained on.")
TOKENS = Metric("ml.training.tokens", "counter", "{token}", "Tokens trained on.")
MICRO_BATCHES = Metric("ml.training.micro_batches", "counter", "{batch}", "Backward passes.")
LOSS = Metric("ml.training.loss", "gauge", "{loss}", "What the optimizer last descended.", (OPTIMIZER,))
GRAD_NORM = Metric("ml.training.grad_norm", "gauge", "{norm}", "Total gradient norm before clipping.", (OPTIMIZER,))
LEARNING_RATE = Metric("ml.training.learning_rate", "gauge", "{rate}", "Learning rate last used.", (OPTIMIZER, PARAM_GROUP))
SCALAR = Metric("ml.training.scalar", "gauge", "{value}", "Another value of the training, last seen.", (SCALAR_NAME, SPLIT))
NONFINITE = Metric("ml.training.nonfinite_values", "counter", "{value}", "Values that were NaN or infinite.", (SCALAR_NAME, SPLIT))
EPOCH = Metric("ml.training.epoch", "gauge", "{epoch}", "The epoch that the program said it is in.")
RUN_TIME = Metric("ml.run.time", "counter", "s", "The run's wall time by what it was spent on.", (TIME_CATEGORY,))
RUN_STATUS = Metric("ml.run.status", "gauge", "{status}", "1 for the run's state, 0 for the others.", (RUN_STATE,))
RUN_PROGRESS = Metric("ml.run.progress.timestamp", "gauge", "s", "Unix time of the last step.")
EVALUATION_DURATION = Metric("ml.evaluation.duration", "histogram", "s", "Wall time of an evaluation.", (SPLIT,), SECONDS)
COMPILE_DURATION = Metric("ml.compile.duration", "histogram", "s", "Wall time of a compilation.", (FRAMEWORK_NAME, COMPILE_STAGE, FUNCTION_NAME), SECONDS)
FUNCTION_DURATION = Metric("ml.function.duration", "histogram", "s", "Wall time of a function or block that the program has timed.", (FUNCTION_NAME,), SECONDS)
LEFT_OUT = Metric("otel_ml.left_out", "counter", "{item}", "What the program asked for and did not get, or not as it said it.", (LIMIT_KIND,))
FUNCTION_CALLS = Metric("ml.function.calls", "counter", "{call}", "Outermost calls of the program's compiled functions.", (FUNCTION_NAME,))
CACHE_REQUESTS = Metric("ml.compile.cache.requests", "counter", "{request}", "Compilations that the persistent cache was asked for.", (CACHE_RESULT,))
ANOMALIES = Metric("ml.anomalies", "counter", "{anomaly}", "Anomalies found.", (ANOMALY_KIND,))
RECOMPILES = Metric("ml.compile.recompiles", "counter", "{recompile}", "Functions compiled again.", (FUNCTION_NAME, COMPILE_REASON_KIND))
CHECKPOINT_DURATION = Metric("ml.checkpoint.duration", "histogram", "s", "Wall time of saving or loading.", (CHECKPOINT_OPERATION, ERROR_TYPE), SECONDS)
CHECKPOINT_BACKGROUND = Metric("ml.checkpoint.background.duration", "histogram", "s", "Wall time of an asynchronous save behind the program.", (), SECONDS)
CHECKPOINT_SIZE = Metric("ml.checkpoint.size", "histogram", "By", "Size of a checkpoint.", (CHECKPOINT_OPERATION,), BYTES)
CHECKPOINT_TIMESTAMP = Metric("ml.checkpoint.timestamp", "gauge", "s", "Unix time of the last checkpoint saved.")
MEMORY_PEAK = Metric("ml.memory.peak", "gauge", "By", "Peak resident memory of the process.")
MEMORY_DEVICE_PEAK = Metric("ml.memory.device.peak", "gauge", "By", "Peak memory of a device that this process used.", (HW_ID,))
MEMORY_ALLOCATED = Metric("ml.memory.allocated", "gauge", "By", "Memory that this process uses: of a device, and without hw.id of the host, what is resident.", (HW_ID,))
MEMORY_LIMIT = Metric("ml.memory.limit", "gauge", "By", "Memory that this process may use: of a device, and without hw.id of the host.", (HW_ID,))
MEMORY_LIVE = Metric("ml.memory.live", "gauge", "By", "Bytes of the arrays that the program holds, on all devices.")
TRAINING_FLOPS = Metric("ml.training.flops", "counter", "{flop}", "Floating-point operations of the training functions called, as their compiler counts them.")
MFU = Metric("ml.training.mfu", "gauge", "1", "Those a second, as a share of the dense bfloat16 peak; for known devices only.")
VALUES_LOST = Metric("otel_ml.values.lost", "counter", "{value}", "Values that the program gave back to a device before they could be read.")
INFERENCE_DURATION = Metric("ml.inference.duration", "histogram", "s", "Wall time of a forward pass that serves.", (MODEL_NAME, OUTCOME), SECONDS)
INFERENCE_REQUESTS = Metric("ml.inference.requests", "counter", "{request}", "Forward passes that serve.", (MODEL_NAME, OUTCOME))
INFERENCE_BATCH_SIZE = Metric("ml.inference.batch.size", "histogram", "{sample}", "Samples in a forward pass that serves.", (MODEL_NAME,), ITEMS)
MODEL_PARAMETERS = Metric("ml.model.parameters", "gauge", "{parameter}", "Parameters of a model.", (MODEL_NAME, PARAMETER_TRAINABLE))
RECORD_COUNT = Metric("otel_ml.record.count", "counter", "{record}", "Events that our hooks recorded.")
RECORD_DROPPED = Metric("otel_ml.record.dropped", "counter", "{record}", "Events lost because a recorder was full.")
DRAIN_DURATION = Metric("otel_ml.drain.duration", "counter", "s", "CPU time of our background thread.")
ERROR_COUNT = Metric("otel_ml.error.count", "counter", "{error}", "Errors of ours, kept from the program.")
PROBE = Metric("otel_ml.probe", "counter", "{probe}", "Sent by `otel-ml doctor --path` to see whether it arrives.")
STORE_SIZE = Metric("otel_ml.store.size", "gauge", "By", "Size of this process's local store.")

# --- spans -------------------------------------------------------------------------------
SPAN_RUN = Span("ml.run", "The run, or a segment of it.")
SPAN_STEP = Span("ml.step", "One training step; a trace of its own, linked to the run.")
SPAN_EVALUATION = Span("ml.evaluation", "Forward passes without gradient between training steps.")
SPAN_INFERENCE = Span("ml.inference", "A forward pass of a process that never trains.")
SPAN_COMPILE = Span("ml.compile", "A compilation.")
SPAN_EPOCH = Span("ml.epoch", "An epoch, as the program said.")
SPAN_REQUEST = Span("ml.request", "A request, as the program said.")
SPAN_CHECKPOINT = Span("ml.checkpoint", "A checkpoint saved or loaded.")
SPAN_PROBE = Span("otel_ml.probe", "Sent by `otel-ml doctor --path` to see whether it arrives.")
SPAN_DATA_WAIT = Span("data_wait", "Waiting for the next batch.")
SPAN_FORWARD = Span("forward", "From the root forward's start to backward's start.")
SPAN_BACKWARD = Span("backward", "The backward pass.")
SPAN_HOST = Span("host", "Up to the end of a compiled function's dispatch; what it computes goes on after that.")
SPAN_WAIT = Span("wait", "Waiting for what a device computes.")
SPAN_OPTIMIZER = Span("optimizer", "zero_grad, clipping, scaling and the optimizer's step.")

# The values of ml.phase, and the ends of ml.step.phase.<phase>: h2d and collective are still to come.
PHASES = ("data_wait", "forward", "backward", "optimizer", "host", "wait", "compile", "checkpoint", "residual")

# --- events ------------------------------------------------------------------------------
EVENT_RUN_STARTED = Event("ml.run.started", "A process of the run did its first step or call.")
EVENT_RUN_FINISHED = Event("ml.run.finished", "The process ended: outcome, totals, verdict.")
EVENT_STEP = Event("ml.step", "The step record.")
EVENT_STEPS = Event("ml.steps", "Step records as columns, thinned where steps are fast.")
EVENT_SCALARS = Event("ml.scalars", "Values beside a step's record: recorded between steps, of a step that was named, or more than it has room for.")
EVENT_TRAINING_STARTED = Event("ml.training.started", "The program says that its training begins.")
EVENT_MODEL_LOADED = Event("ml.model.loaded", "The program says that a model is ready.")
EVENT_MEMORY_WARNING = Event("ml.memory.warning", "The program says that memory runs out.")
EVENT_EPOCH_FINISHED = Event("ml.epoch.finished", "An epoch ended: its number and duration.")
EVENT_RECOMPILED = Event("ml.compile.recompiled", "A function was compiled again, and why.")
EVENT_ANOMALY = Event("ml.anomaly", "Something is not as it was: kind, evidence, advice.")
EVENT_CHECKPOINT_SAVED = Event("ml.checkpoint.saved", "A checkpoint was written.")
EVENT_CHECKPOINT_LOADED = Event("ml.checkpoint.loaded", "A checkpoint was read.")
EVENT_CHECKPOINT_FAILED = Event("ml.checkpoint.failed", "A checkpoint could not be written or read.")
EVENT_CONFIG = Event("ml.config", "What ran: command line, versions, model, optimizers.")
EVENT_DIAGNOSIS = Event("ml.diagnosis", "The verdict on where the time went.")
EVENT_PROBE = Event("otel_ml.probe", "Sent by `otel-ml doctor --path` to see whether it arrives.")
EVENT_EXCEPTION = Event("ml.exception", "The exception that ended the program, with run and step.")

del A

METRICS: dict[str, Metric] = {m.name: m for m in list(vars().values()) if isinstance(m, Metric)}
ATTRIBUTES: dict[str, Attribute] = {str(a): a for a in list(vars().values()) if isinstance(a, Attribute)}
SPANS: dict[str, Span] = {str(s): s for s in list(vars().values()) if isinstance(s, Span)}
EVENTS: dict[str, Event] = {str(e): e for e in list(vars().values()) if isinstance(e, Event)}
