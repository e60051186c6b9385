"""GET /problems/<slug>: what a problem means and what to do, as a page, or as JSON for a program that prefers it."""

import orjson
from flask import Blueprint, Response, abort, request
from markupsafe import Markup, escape

from ..faults import PROBLEMS
from ..http import conditional_response
from .page import PageFiles
from .problem_texts import ADVICE, Advice

PAGE = Markup("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{slug} · llama_api</title>
<link rel="icon" type="image/svg+xml" href="../{files}/icon.svg">
<link rel="stylesheet" href="../{files}/style.css">
</head>
<body>
<header><p><a href="../">llama_api</a></p></header>
<main class="card problem">
<h1>{title}</h1>
<p class="hint">Status {status}, <code>{slug}</code></p>
<p>{meaning}</p>
<h2>If you call the service</h2>
<p>{caller}</p>
<h2>If you run it</h2>
<p>{operator}</p>
</main>
</body>
</html>
""")


def blueprint(files: PageFiles) -> Blueprint:
    """The pages on problems, in the style of ``files``."""
    bp = Blueprint("problems", __name__)
    pages = {slug: _page(slug, *PROBLEMS[slug], advice, files.folder).encode() for slug, advice in ADVICE.items()}
    values = {slug: orjson.dumps({"type": f"/problems/{slug}", "title": PROBLEMS[slug][1], "status": PROBLEMS[slug][0],
                                  **advice._asdict()}) for slug, advice in ADVICE.items()}

    @bp.get("/problems/<slug>")
    def problem(slug: str) -> Response:
        """Explain a problem and what can be done about it."""
        if slug not in ADVICE:
            abort(404)
        kind = request.accept_mimetypes.best_match(["text/html", "application/json"], "text/html")
        response = conditional_response(pages[slug] if kind == "text/html" else values[slug], kind)
        response.vary.add("Accept")
        response.cache_control.no_cache = True
        return response

    return bp


def _page(slug: str, status: int, title: str, advice: Advice, folder: str) -> str:
    texts = {name: _prose(text) for name, text in advice._asdict().items()}
    return PAGE.format(slug=slug, status=status, title=title, files=folder, **texts)


def _prose(sentence: str) -> Markup:
    """``sentence`` with the text in backticks as code."""
    return Markup("").join(Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
                           for number, part in enumerate(sentence.split("`")))
