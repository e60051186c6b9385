"""The operator's commands: clients of the service, which know its settings and its HTTP API."""

import click

from .ask import ask
from .cache import cache
from .doctor import doctor
from .pull import pull
from .run import run

__all__ = ["ask", "cache", "cli", "doctor", "pull", "run"]

cli = click.Group("llama-api", {"run": run, "cache": cache, "ask": ask, "doctor": doctor, "pull": pull},
                  help="Text from a Llama 3 8B behind Ollama. See also `llama-api COMMAND --help`.")
