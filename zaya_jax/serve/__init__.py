"""The OpenAI-compatible HTTP server, and the page that is served beside it.

A request's way: `app` (routes) -> `guard` (keys, limits, log) -> `schema` (what may be asked) ->
`chats` or `completions` -> `compiler` (grammars) -> `work` (the one thread that steps the engine)
-> `reply` (what was written becomes reasoning, content and tool calls) -> `streams` (events to the
client). `rsa` answers by Markovian RSA. docs/serving.md tells how to use it.

Needs requirements-serve.txt; nothing else imports this package.
"""
