"""One page that needs nothing else: its data, style and script are inside, and its policy lets nothing else in.

The data are JSON in a script element of no scripting type, without any ``<``, so that no text can end the element; the
script puts texts into text nodes and never into markup. The policy names the script's digest: no other script runs,
wherever it might come from.
"""

from __future__ import annotations

import html
import json
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Final

_AS_ESCAPES: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def asset(name: str) -> str:
    """A file of the folder ``page``."""
    return (files("fault_lab.pictures") / "page" / name).read_text(encoding="utf-8")


def embedded(data: object) -> str:
    """JSON that can stand inside of a script element whatever it says; the same values give the same bytes."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True).translate(_AS_ESCAPES)


def tag(name: str, text: str = "", *, inside: str = "", **attributes: str | int) -> str:
    """One element: ``text`` and the attributes are escaped, ``inside`` is markup. ``class_``: class."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value
    )
    return f"<{name}{said}>{html.escape(text)}{inside}</{name}>"


def page(title: str, *, body: str, styles: tuple[str, ...], scripts: tuple[str, ...] = (), data: object = None) -> str:
    """Put a page together. ``body`` is markup; ``styles`` and ``scripts`` are names of assets."""
    style = "".join(asset(name) for name in styles)
    script = "".join(asset(name) for name in scripts)
    allowed = f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        body.rstrip(),
    ]
    if data is not None:
        parts.append(f'<script id="data" type="application/json">{embedded(data)}</script>')
    if script:
        parts.append(f"<script>{script}</script>")
    text = "\n".join([*parts, "</body>\n</html>\n"])
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text of a file
