"""A small Ollama for a machine without one: its wire format in front of llama.cpp and SmolLM2-135M.

A process of its own (`python -m llama_api.embedded --port 11434`), built as Ollama is since 0.30: routes in front of a
llama-server, here the one inside xllamacpp, on a loopback port that only this process has the key of. It is for trying
things out and for tests; the model answers under its own name, so that it is never taken for Llama 3. What it cannot do
(`template`, `suffix`, images, tools, thinking) is refused. Load-time options are checked, and change nothing.

It embeds, as chat models did in Ollama until 0.30: the same loaded model gives the mean of its last states, and the
same vector for a text whatever else it is asked. A text may have 512 tokens, one batch of the engine; the first long
one makes the process 200 MB larger, where a second engine would double it from the start. As it is no embedding model,
its vectors tell related texts from others, and not much more.
"""
