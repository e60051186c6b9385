"""The page, its figures and its problems in the OpenAPI document."""

from ..faults import SLUGS
from ..metrics import LAST, POINTS, RESULTS, STEP
from ..strict_json import Json
from .openapi_parts import COUNT, NUMBER, TEXT, array, in_path, kept, nullable, ref


def _object(optional: str, **properties: Json) -> Json:
    return {"type": "object", "required": [name for name in properties if name not in optional.split()],
            "properties": properties}


def schemas() -> dict[str, Json]:
    """The schemas by name."""
    series = _object(
        "plot tone", name=TEXT, unit={**TEXT, "examples": ["/s"]}, metric={
            **TEXT, "description": "The metric of GET /metrics that the points are of."},
        plot={**TEXT, "description": "The plot that shows it; none for outages, which are bands in all of them."},
        kind={"enum": ["area", "line", "limit", "outage"]}, tone={"enum": ["bad"]}, points={
            "type": "array", "items": nullable(NUMBER), "maxItems": POINTS,
            "description": "The newest last; null where nothing is known."})
    flight = _object(
        "", id={**TEXT, "examples": ["9f1c2ab04d5e4c3f"]}, age_s=NUMBER, state={
            "enum": ["waiting", "loading", "writing"]}, readers={
            **COUNT, "description": "Callers who wait for it, over all workers."}, tokens=COUNT, host=nullable(TEXT))
    request = _object(
        "", time={**TEXT, "format": "date-time"}, endpoint=TEXT, status={"type": "integer"},
        cache=nullable({"enum": list(RESULTS)}), duration_ms=NUMBER)
    stats = _object(
        "", step={"const": STEP, "description": "Seconds between two points."}, end={
            **COUNT, "description": "Time of the newest points, in seconds since 1970."},
        health=ref("schemas", "Health"), series=array(ref("schemas", "Series")), hosts={
            "type": "array", "items": {"type": "object"}, "description": "As in GET /health."},
        flights=array(ref("schemas", "Flight")), requests=array(ref("schemas", "EndedRequest"), maxItems=LAST),
        settings={
            "type": "object", "description": "The settings in force by their variables, secrets masked."})
    return {
        "Series": {"description": "The points of one line or area of a plot.", **series},
        "Flight": {"description": "A generation under way.", **flight},
        "EndedRequest": {"description": "One of the last requests, those aside that only look.", **request},
        "Stats": {"description": "What the page shows: the last 15 minutes, and what the service does now.", **stats},
        "ProblemPage": {"description": "What a problem means, and what to do.", **_object(
            "", type=TEXT, title=TEXT, status=COUNT, meaning=TEXT, caller=TEXT, operator=TEXT)}}


def operations() -> dict[tuple[str, str], Json]:
    """The requests and responses of each operation, by path and method."""
    text = {"schema": TEXT}
    return {
        ("/", "GET"): {"tags": ["page"], "parameters": ["If-None-Match"], "responses": kept(
            "The page, for a client that names text/html in `Accept`; else a word.", {
                "text/html": text, "text/plain": {**text, "example": "Ollama is running"}})},
        ("/page/{version}/{name}", "GET"): {
            "tags": ["page"], "parameters": [
                in_path("version", "0123456789abcdef"), in_path("name", "style.css"), "If-None-Match"],
            "responses": kept("The file.", {"text/css": text, "text/javascript": text, "image/svg+xml": text})},
        ("/stats", "GET"): {
            "tags": ["monitoring"], "parameters": ["If-None-Match"], "responses": kept(
                "The figures, over all workers.", {"application/json": {"schema": ref("schemas", "Stats")}})},
        ("/flights/{flight_id}", "DELETE"): {
            "tags": ["monitoring"], "parameters": [in_path("flight_id", "9f1c2ab04d5e4c3f")], "responses": {
                "204": {"description": "It is ended."}}},
        ("/problems/{slug}", "GET"): {
            "tags": ["documentation"], "parameters": [in_path("slug", SLUGS[0], enum=list(SLUGS)), "If-None-Match"],
            "responses": kept("The page, or the same as JSON for a client that prefers that.", {
                "text/html": text, "application/json": {"schema": ref("schemas", "ProblemPage")}})}}
