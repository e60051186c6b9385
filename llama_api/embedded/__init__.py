"""A small stand-in for Ollama: its wire format in front of llama.cpp and SmolLM2-135M.

It runs as a separate process (`python -m llama_api.embedded --port 11434`), built as Ollama has been since 0.30: routes
in front of a llama-server, here the one in xllamacpp, on a loopback port whose key only this process has. It is meant
for trials and tests; the model answers under its own name, so that it is never mistaken for Llama 3. Features that it
lacks (`template`, `suffix`, images, tools, thinking) are refused. Load-time options are checked but have no effect.

It embeds texts, as chat models did in Ollama until 0.30: the loaded model returns the mean of its last states, and the
same vector for a text whatever else the list contains. A text may have 512 tokens, one batch of the engine; the first
long one makes the process 200 MB larger, whereas a second engine would double its size from the start. The model was
not trained for embeddings: its vectors distinguish related texts from unrelated ones, and little more.
"""
