"""What the pages are made of: the one style, tables, folded parts, a whole page. Plain values are escaped here."""

import html
from collections.abc import Sequence
from typing import Any

from grpo.options.refusal import spelled_out

LONG = 40  # characters of a word that may break anywhere: it would make a table wider than the page
MOST = 600  # characters of a completion or question that are shown
NARROW = 700  # px; below it each row of a table is a block, so that no page is wider than a phone
# Colors have at least 4.5 : 1 to their background; chart.py draws with c0 to c3.
STYLE = f"""
:root {{ color-scheme: light dark; --back: #fff; --text: #1b1d20; --soft: #5a6068; --rule: #d3d7dc; --tint: #f3f5f7;
  --c0: #1f6fae; --c1: #b84d08; --c2: #1f7a33; --c3: #7448c8; }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #14171a; --text: #e7e9eb; --soft: #a5abb3; --rule: #3b4148;
  --tint: #1f2328; --c0: #62aeea; --c1: #f29b55; --c2: #66c777; --c3: #ba9df3; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 1100px; padding: 1.2em 14px 3em; font: 15px/1.5 system-ui, sans-serif;
  background: var(--back); color: var(--text); overflow-wrap: anywhere; }}
h1 {{ font-size: 1em; font-weight: normal; color: var(--soft); margin: 0; }}
h2 {{ font-size: 1.2em; margin: 1.8em 0 .4em; }} h3 {{ font-size: 1em; margin: 1.2em 0 .3em; }}
.headline {{ font-size: 1.45em; line-height: 1.35; margin: .3em 0 .8em; max-width: 38em; }}
.soft {{ color: var(--soft); max-width: 60em; }}
table {{ border-collapse: collapse; margin: .6em 0 1em; }}
th, td {{ border: 1px solid var(--rule); padding: .3em .6em; text-align: left; vertical-align: top; }}
th {{ background: var(--tint); }} th, td {{ overflow-wrap: break-word; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.45 ui-monospace, monospace; }}
details {{ margin: .6em 0; }} summary {{ cursor: pointer; }}
svg {{ width: 340px; max-width: 100%; height: auto; font-size: 11px; margin: .4em .3em .4em 0; vertical-align: top; }}
svg text {{ fill: currentColor; }} svg .grid {{ stroke: var(--rule); }}
svg .line {{ fill: none; stroke-width: 2; }} svg .faint {{ stroke-width: 1; opacity: .65; }}
svg .dashed {{ stroke-dasharray: 3 3; }}
svg .at rect, svg .at circle {{ fill: transparent; }} svg .at:hover circle {{ fill: currentColor; }}
@media (max-width: {NARROW}px) {{
  .headline {{ font-size: 1.25em; }} td {{ overflow-wrap: anywhere; }} table.wide td:empty {{ display: none; }}
  table.wide, table.wide tbody, table.wide tr, table.wide td:has(pre) {{ display: block; width: 100%; }}
  table.wide tr {{ border: 1px solid var(--rule); margin-bottom: .7em; }} table.wide tr:first-child {{ display: none; }}
  table.wide td {{ display: inline-block; max-width: 100%; border: 0; padding: .15em .6em; }}
  table.wide td::before {{ content: attr(data-label) ": "; color: var(--soft); }}
  svg {{ width: 100%; }}
}}
"""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], verbatim: Sequence[str] = ()) -> str:
    """An HTML table of plain values, which are escaped; the lines of a text stay lines.

    From three columns on it is "wide": see NARROW. `verbatim` names the columns with a model's text.
    """
    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(
        f'<td data-label="{escaped(name)}">{_cell(value, name in verbatim)}</td>'
        for name, value in zip(header, row, strict=True)) + "</tr>\n" for row in rows)
    kind = ' class="wide"' if len(header) > 2 else ""
    return f'<table{kind}><tr>{head}</tr>{body}</table>'


def pairs(rows: Sequence[tuple[str, Any]]) -> str:
    """A table of names and values without a header."""
    return "<table>" + "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{_cell(value)}</td></tr>\n' for name, value in rows) + "</table>"


def folded(title: str, content: str) -> str:
    """HTML that is shown when its title is clicked on."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"


def options_table(values: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The options that differ from their defaults, and folded the others."""
    changed = [(name, value, defaults.get(name, "")) for name, value in values.items()
               if name not in defaults or value != defaults[name]]
    rest = [(name, value) for name, value in values.items() if name in defaults and value == defaults[name]]
    return (table(("option", "value", "default"), changed)
            + folded(f"The other {len(rest)}, which have their defaults", table(("option", "value"), rest)))


def paragraph(text: str, kind: str = "soft") -> str:
    """A paragraph; `kind` is "headline" or "soft"."""
    return f'<p class="{kind}">{escaped(text)}</p>'


def escaped(text: str) -> str:
    """A text as HTML, with characters that nobody sees as codes: it may come from a model."""
    return html.escape(spelled_out(text, keep="\n\t"))


def shortened(text: str) -> str:
    """The beginning of a text, with its full length if there is more."""
    return text if len(text) <= MOST else f"{text[:MOST]} ... ({len(text):,} characters)"


def page(title: str, body: Sequence[str], style: str = "") -> str:
    """A whole HTML page; the parts of the body are HTML already, `style` is CSS besides STYLE."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escaped(title)}</title><style>{STYLE}{style}</style>"
    content = "\n".join([f"<h1>{escaped(title)}</h1>", *body])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{content}</body></html>\n'


def _cell(value: Any, verbatim: bool = False) -> str:
    text = "none" if value is None else shortened(str(value))
    verbatim |= "\n" in text or any(len(word) > LONG for word in text.split())
    return f"<pre>{escaped(text)}</pre>" if verbatim else escaped(text)
