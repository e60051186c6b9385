"""The parts that any Flask service under gunicorn needs: connections, access, problems and a record of each request."""

from . import problems, security
from .connection import gone_check, read_json_body
from .files import TYPES, conditional_response, type_of
from .flask_app import Application, NoContent
from .problems import note, problem_of
from .record import REQUEST_ID, Recorder
from .security import BEARER_ONLY, HEALTH_PATHS, OPEN_PATHS, PAGE_FILES, PAGE_POLICY, UNLIMITED, is_monitoring

__all__ = ["BEARER_ONLY", "HEALTH_PATHS", "OPEN_PATHS", "PAGE_FILES", "PAGE_POLICY", "REQUEST_ID", "TYPES", "UNLIMITED",
           "Application", "NoContent", "Recorder", "conditional_response", "gone_check", "is_monitoring", "note",
           "problem_of", "problems", "read_json_body", "security", "type_of"]
