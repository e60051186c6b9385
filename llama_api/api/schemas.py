"""The schemas of requests and responses: they validate, and the OpenAPI document is generated from them."""

from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate

from ..core import Models
from ..errors import InvalidRequest
from ..model_call import GENERATE, ModelCall
from ..strict_json import is_text, parse_object

MAX_STOPS = 16
DEFAULT_TOKENS = 100
ERRORS_SHOWN, NAME_SHOWN = 20, 100  # faults reported for one body, and characters of a field's name


class Text(fields.String):
    """A string of Unicode scalar values, without lone surrogates."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        if not is_text(text):
            raise ValidationError("Contains a lone surrogate, which is not a character.")
        return text


class StrictInteger(fields.Integer):
    """A JSON integer: 5 and 5.0, neither "5" nor true."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise self.make_error("invalid", input=value)
        return value


class StrictNumber(fields.Float):
    """A JSON number, neither "0.7" nor true."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if type(value) not in (int, float) or abs(value) > 1e308:
            raise self.make_error("invalid", input=value)
        return float(value) + 0.0  # so that -0.0 is 0.0


class StrictBoolean(fields.Boolean):
    """true or false and nothing else."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if type(value) is not bool:
            raise self.make_error("invalid", input=value)
        return value


class Stop(fields.Field[tuple[str, ...]]):
    """A string, or a list of up to 16 of them; none may be empty."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> tuple[str, ...]:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > MAX_STOPS:
            raise ValidationError(f"Must be a string or a list of at most {MAX_STOPS} strings.")
        text = Text()
        checked = tuple(str(text.deserialize(stop)) for stop in stops)
        if "" in checked:
            raise ValidationError("Must not contain an empty string.")
        return checked


def _not_blank(text: str) -> None:
    if not text.strip():
        raise ValidationError("Must not be empty or only whitespace.")


def _optional(example: Any, description: str) -> dict[str, Any]:
    return {"allow_none": True, "load_default": None, "metadata": {"example": example, "description": description}}


class GenerateRequest(Schema):
    """The body of POST /generate. Loads to a pair of ModelCall and whether to stream."""

    prompt = Text(required=True, validate=_not_blank, metadata={
        "example": "Why is the sky blue?", "minLength": 1, "pattern": r"\S", "description": "The question."})
    max_tokens = StrictInteger(**_optional(100, "The most tokens that the answer may have."))
    temperature = StrictNumber(load_default=0.7, allow_none=True, validate=validate.Range(0, 2), metadata={
        "example": 0.7, "description": "0 always picks the likeliest token; higher is more random."})
    system = Text(**_optional("Answer in one sentence.", "Replaces the system message of the model."))
    stop = Stop(**_optional(["\n\n"], "Texts that end the answer, added to the model's own."))
    seed = StrictInteger(validate=validate.Range(0, 2 ** 31 - 1), **_optional(42, "Repeats the same random choices."))
    top_p = StrictNumber(validate=validate.Range(0, 1, min_inclusive=False), **_optional(
        0.9, "Choose among the likeliest tokens of this total probability."))
    top_k = StrictInteger(validate=validate.Range(1, 1000), **_optional(40, "Choose among this many likeliest tokens."))
    stream = StrictBoolean(load_default=False, allow_none=True, metadata={
        "example": False, "description": "Send the answer as server-sent events while it is written."})

    model = Text(**_optional("llama3:8b", "The model that answers: a served one, under any of its names."))

    def __init__(self, models: Models, max_tokens_limit: int = 8192, num_ctx: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self._models, self._num_ctx = models, num_ctx
        if names := models.names:  # equivalent names are accepted too; the document lists the configured ones
            self.fields["model"].metadata = {**self.fields["model"].metadata, "enum": [*names, None]}
        field = self.fields["max_tokens"]
        field.load_default = min(DEFAULT_TOKENS, max_tokens_limit)
        field.validators = [validate.Range(1, max_tokens_limit)]

    def read(self, body: bytes) -> tuple[ModelCall, bool]:
        """Parse and validate a body. Raises MalformedJSON or InvalidRequest."""
        try:
            loaded: tuple[ModelCall, bool] = self.load(parse_object(body))
        except ValidationError as error:
            raise InvalidRequest(messages_of(error)) from None
        return loaded

    @post_load
    def _to_call(self, data: dict[str, Any], **kwargs: Any) -> tuple[ModelCall, bool]:
        def effective(name: str) -> Any:
            value = data[name]
            return self.fields[name].load_default if value is None else value

        model = self._models.default if data["model"] is None else self._models.resolve(data["model"])
        if model is None:
            raise ValidationError(f"Must be one of: {', '.join(self._models.served)}.", "model")
        call = ModelCall.of(
            GENERATE, model, prompt=data["prompt"], system=data["system"] or None, truncate=False, options={
                "num_predict": effective("max_tokens"), "temperature": effective("temperature"), "seed": data["seed"],
                "stop": list(data["stop"] or ()) or None, "top_p": data["top_p"], "top_k": data["top_k"],
                "num_ctx": self._num_ctx})
        return call, effective("stream")


def messages_of(error: ValidationError) -> dict[str, list[str]]:
    """The messages of ``error`` by field: bounded and encodable, as a hostile body can have thousands of faults."""
    def clean(text: str) -> str:
        return text.encode("utf-8", "replace").decode()  # no response can carry a lone surrogate

    def texts(faults: object) -> list[str]:
        return [clean(str(text)) for text in (faults if isinstance(faults, list) else [faults])]

    return {clean(str(name))[:NAME_SHOWN]: texts(faults)
            for name, faults in list(error.messages_dict.items())[:ERRORS_SHOWN]}


def _figure(description: str, example: float | int, null: bool = False) -> fields.Float | fields.Integer:
    kind = fields.Integer if isinstance(example, int) else fields.Float
    return kind(required=True, allow_none=null, metadata={"description": description, "example": example})


class Metrics(Schema):
    """The figures of an answer."""

    inference_latency_ms = _figure("Wall time to get the answer from Ollama or the cache, without queueing.", 812.4)
    input_tokens = _figure("Tokens of the prompt, as Ollama counted them.", 17, null=True)
    cached_input_tokens = fields.Integer(metadata={
        "description": "Those of them that Ollama had read before; absent if not reported.", "example": 12})
    output_tokens = _figure("Tokens of the answer, as Ollama counted them.", 50, null=True)
    cpu_usage_percent = _figure("Of the whole machine, sampled at most once a second.", 45.2)
    memory_usage_percent = _figure("Of the whole machine, sampled at most once a second.", 60.1)
    queue_ms = _figure("Wait for a slot.", 0.1)
    time_to_first_token_ms = _figure("From the slot to the first piece; null on a hit.", 95.0, null=True)
    tokens_per_second = _figure("Speed of the generation, by Ollama's own clock; null on a hit.", 71.2, null=True)


class GenerateResponse(Schema):
    """An answer."""

    response = fields.String(required=True, metadata={"example": "Sunlight is scattered by the air."})
    model = fields.String(required=True, metadata={"example": "llama3:8b", "description": "The model that answered."})
    finish_reason = fields.String(required=True, allow_none=True, metadata={
        "enum": ["stop", "length", None], "example": "stop",
        "description": "Why it ended; null when Ollama gave no known reason."})
    cached = fields.Boolean(required=True, metadata={"example": False})
    metrics = fields.Nested(Metrics, required=True)


class Problem(Schema):
    """An error, RFC 9457."""

    type = fields.String(required=True, metadata={"example": "/problems/invalid-request"})
    title = fields.String(required=True, metadata={"example": "A field is wrong"})
    status = fields.Integer(required=True, metadata={"example": 422})
    detail = fields.String(required=True, metadata={"description": "A sentence that says what to do."})
    instance = fields.String(required=True, metadata={"example": "/generate"})
    request_id = fields.String(required=True, metadata={"example": "9f1c2ab04d5e4c3f"})
    errors = fields.Dict(keys=fields.String(), values=fields.List(fields.String()), metadata={
        "description": "The faults of each field; only with 422.", "example": {"prompt": ["Must not be empty."]}})


class Alive(Schema):
    """The process answers."""

    status = fields.String(required=True, validate=validate.Equal("alive"), metadata={"example": "alive"})


class Ready(Schema):
    """Whether a load balancer should send requests."""

    status = fields.String(required=True, validate=validate.OneOf(["ready", "not ready"]))
    reason = fields.String(metadata={"description": "Why it is not ready."})


class OllamaHealth(Schema):
    """The newest probe of Ollama."""

    reachable = fields.Boolean(required=True)
    version = fields.String(required=True, allow_none=True, metadata={"example": "0.33.0"})
    model_present = fields.Boolean(required=True)


class QueueHealth(Schema):
    """Slots and queue of the worker that answers."""

    running = fields.Integer(required=True, metadata={"example": 0})
    waiting = fields.Integer(required=True, metadata={"example": 0})
    slots = fields.Integer(required=True, metadata={"example": 1})
    limit = fields.Integer(required=True, metadata={"example": 64})


class HostHealth(Schema):
    """The newest probe of one Ollama; values that it did not report are null."""

    host = fields.String(required=True, metadata={"example": "127.0.0.1:11434"})
    usable = fields.Boolean(required=True, metadata={"description": "Whether generations may go there."})
    reachable = fields.Boolean(required=True)
    version = fields.String(required=True, allow_none=True, metadata={"example": "0.33.0"})
    model_present = fields.Boolean(required=True)
    loaded = fields.Boolean(required=True, allow_none=True, metadata={"description": "Whether the model is in memory."})
    gpu_percent = fields.Integer(required=True, allow_none=True, metadata={
        "example": 100, "description": "How much of the loaded model is on the GPU."})
    context_length = fields.Integer(required=True, allow_none=True, metadata={
        "example": 8192, "description": "Window of the loaded model, in tokens."})
    digest = fields.String(required=True, allow_none=True, metadata={
        "example": "365c0bd3c000", "description": "The first 12 digits of the model's build."})
    running = fields.Integer(required=True, metadata={"example": 0})
    slots = fields.Integer(required=True, metadata={"example": 1})
    reason = fields.String(required=True, allow_none=True, metadata={
        "example": None, "description": "Why it is not usable, or what is wrong although it is."})


class Health(Schema):
    """The state of the service."""

    status = fields.String(required=True, validate=validate.OneOf(["healthy", "degraded", "unhealthy"]))
    reason = fields.String(metadata={"description": "Why it is not healthy."})
    cache_size = fields.Integer(required=True, metadata={"example": 42, "description": "Answers in the cache."})
    model = fields.String(required=True, metadata={"example": "llama3:8b"})
    ollama = fields.Nested(OllamaHealth, required=True)
    queue = fields.Nested(QueueHealth, required=True)
    hosts = fields.List(fields.Nested(HostHealth), required=True)


class CacheStats(Schema):
    """The state of the cache; counts are since the start, over all workers."""

    store = fields.String(required=True, validate=validate.OneOf(["memory", "sqlite", "redis"]))
    entries = fields.Integer(required=True, metadata={"example": 42})
    bytes = fields.Integer(required=True, metadata={"example": 51234})
    max_entries = fields.Integer(required=True, metadata={"example": 1000})
    max_bytes = fields.Integer(required=True, metadata={"example": 67108864})
    hits = fields.Integer(required=True, metadata={"example": 120})
    misses = fields.Integer(required=True, metadata={"example": 42})
    collapsed = fields.Integer(required=True, metadata={"example": 7})
    evictions = fields.Integer(required=True, metadata={"example": 0})
    hit_ratio = fields.Float(required=True, metadata={
        "example": 0.71, "description": "Hits divided by hits plus misses, 0 … 1."})
