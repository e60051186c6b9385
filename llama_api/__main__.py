"""``llama-api``, and ``python -m llama_api``."""

from .commands import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="llama-api")


if __name__ == "__main__":
    main()
