"""A spec as HTML with its words marked, for the page."""

import re

from markupsafe import Markup, escape

TOKENS = re.compile(
    r"""(?P<comment>\#.*)
    |(?P<string>"[^"]*"|'[^']*')
    |(?P<key>\b[A-Za-z_]\w*(?=[ \t]*=[^=])|^[ \t-]*[A-Za-z_]\w*(?=:(?:\s|$)))
    |(?P<number>(?<![\w.:/-])\d+(?:\.\d+)?(?:\.\.\d+)?(?:%|[A-Za-z]+)?(?![\w.]))
    |(?P<verb>(?:(?<=^)|(?<=;))[ \t]*[a-z]\w*\b)
    |(?P<preposition>(?<![\w:./-])(?:of|via|to|with|in|into|from|except|where|by|on|at)\b)
    |(?P<comparison><=|>=|==|<|>)""",
    re.VERBOSE | re.MULTILINE,
)


def highlight(spec: str) -> Markup:
    """The text of a spec, DSL or YAML, escaped, each word in a span of its class; nothing is added or lost."""
    parts, end = [], 0
    for match in TOKENS.finditer(spec):
        parts += [escape(spec[end : match.start()]), _span(match.lastgroup or "", match.group())]
        end = match.end()
    return Markup("").join([*parts, escape(spec[end:])])


def _span(kind: str, text: str) -> Markup:
    return Markup('<span class="{}">{}</span>').format(kind, text)
