"""llama_api: text from a Llama 3 8B behind Ollama by one plain call, cached, collapsed and measured."""

__version__ = "2.0.0"
