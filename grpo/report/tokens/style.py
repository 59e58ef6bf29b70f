"""The colors of the token page and their legend: radio buttons, of which CSS reads the chosen one, without a script."""

from grpo.report.markup import NARROW, escaped

LEVELS = 4  # shades of a color
# What tokens can be colored by: the words beside the button, and what its shades mean. The first letter of a name
# begins its CSS classes: pu3 is a pull upwards of the third level.
COLORS = {
    "pull": ("the pull of the update", "blue: the update raises the token's probability; orange: it lowers it; "
             "strongest: the hardest pull on this page"),
    "surprise": ("surprise", "probability for the policy: below 90 %, 50 %, 10 %, and strongest below 1 %"),
    "ratio": ("the ratio", "blue: more probable than in the step's first update; orange: less; strongest: at the "
              "bound of the clip"),
    "kl": ("the KL", "strongest: the farthest from the reference on this page; orange: below 0"),
    "entropy": ("the entropy", "strongest: the most open choice on this page"),
}


def legend() -> list[str]:
    """The buttons and what the colors mean; buttons stand beside the colored part, so that CSS can reach it."""
    buttons, scales = [], []
    for name, (words, meaning) in COLORS.items():
        checked = "" if buttons else " checked"
        buttons.append(f'<input type="radio" name="color" id="by-{name}"{checked}><label for="by-{name}">'
                       f"{escaped(words)}</label>")
        shades = [f"u{level}" for level in range(1, LEVELS + 1)]
        if name in ("pull", "ratio"):
            shades = [f"d{level}" for level in range(LEVELS, 0, -1)] + shades
        swatches = "".join(f'<span class="swatch {shade}"></span>' for shade in shades)
        scales.append(f'<p class="scale {name}"><span aria-hidden="true">{swatches}</span> {escaped(meaning)}</p>')
    marks = ('<p class="marks"><span class="t x">underlined</span> stopped by the clip, or left out by the correction; '
             '<span class="t m">crossed out</span> not in the loss; ↵ a line break, ␣ a space in a table. The '
             "numbers of a token stand below the mouse, and all of them in the tables.</p>")
    return ['<p class="soft">Color by</p>', *buttons, *scales, marks]


def _rules() -> str:
    """What each button colors, and which scale it shows."""
    rules = []
    for name in COLORS:
        letter = name[0]
        rules += [f"#by-{name}:checked ~ main .{letter}{way}{level} {{ background: var(--{way}{level}); }}"
                  for way in "ud" for level in range(1, LEVELS + 1)]
        rules.append(f"#by-{name}:checked ~ .scale.{name} {{ display: block; }}")
    rules += [f".swatch.{way}{level} {{ background: var(--{way}{level}); }}" for way in "ud"
              for level in range(1, LEVELS + 1)]
    return "\n".join(rules)


def _mixed() -> str:
    """Each shade, mixed with the background so far that text on it stays readable, in both themes."""
    return " ".join(f"--{way}{level}: color-mix(in srgb, var(--{color}) {12 * level}%, var(--back));"
                    for way, color in (("u", "c0"), ("d", "c1")) for level in range(1, LEVELS + 1))


STYLE = f"""
body {{ {_mixed()} }}
.tokens {{ font: 14px/1.9 ui-monospace, monospace; margin: .3em 0; }}
.t {{ white-space: pre-wrap; padding: .15em 0; box-shadow: inset 1px 0 0 var(--rule); }}
.x {{ text-decoration: underline 2px var(--c3); text-underline-offset: .2em; }}
.m {{ color: var(--soft); text-decoration: line-through; }}
.work {{ border-left: 3px solid var(--rule); padding-left: .8em; max-width: 60em; }}
label {{ margin-right: 1.1em; white-space: nowrap; }}
.scale {{ display: none; }} .scale, .marks {{ color: var(--soft); margin: .5em 0; }}
.swatch {{ display: inline-block; width: 1.3em; height: 1em; vertical-align: -.1em; border: 1px solid var(--rule); }}
.scroll {{ overflow-x: auto; }} .numbers {{ font-size: 13px; font-variant-numeric: tabular-nums; }}
.numbers th, .numbers td {{ padding: .1em .5em; white-space: pre; }}
@media (max-width: {NARROW}px) {{ label::after {{ content: "\\A"; white-space: pre; }} }}
{_rules()}
"""
