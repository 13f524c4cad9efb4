"""The two drawings of README and the site: the method, and the rooms of the library as they really import each other.

    python docs/pictures.py                # writes static/method.svg and static/house.svg

Both are 430 units wide with text of at least 15, so that a phone shows it readably, at 12 pixels and more. They follow
the reader's choice of dark or light, and load nothing.
"""

import ast
import re
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "lm_human_preferences"
WIDTH = 430
STYLE = """
svg { --ink: #1c1e21; --faint: #565b62; --box: #ffffff; --line: #b9b7ae; --one: #1f5fa8; --two: #a34a00;
--ground: #f6f5f1; }
@media (prefers-color-scheme: dark) {
svg { --ink: #e8e6e1; --faint: #a9adb3; --box: #262a30; --line: #5a606a; --one: #8fbcf2; --two: #ffb377;
--ground: #17191c; }
}
text { font: 16px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: var(--ink); }
.small { font-size: 15px; fill: var(--faint); }
.head { font-size: 18px; font-weight: 600; }
.formula { font: italic 17px Cambria, "DejaVu Serif", Georgia, serif; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.ground { fill: var(--ground); }
.box { fill: var(--box); stroke: var(--line); }
.chosen { fill: none; stroke: var(--one); stroke-width: 2.5; }
.line { fill: none; stroke: var(--faint); stroke-width: 1.5; }
.one { stroke: var(--one); } .two { stroke: var(--two); }
.tip { fill: var(--faint); } .tip-one { fill: var(--one); }
text.one { fill: var(--one); stroke: none; } text.two { fill: var(--two); stroke: none; }
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A line of text; in a formula `_b` is b as an index."""
    shown = escape(words, quote=False)
    if "formula" in kind:
        lowered = '<tspan dy="4" font-size="13">\\1</tspan><tspan dy="-4">\u200b</tspan>'
        shown = re.sub(r"_(\w)", lowered, shown)
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{shown}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" class="{kind}"/>'


def arrow(path: str, kind: str = "") -> str:
    """A line along `path`, with a tip at its end."""
    tip = "tip-one" if "one" in kind else "tip"
    return f'<path d="{path}" class="line {kind}" marker-end="url(#{tip})"/>'


def drawing(height: float, title: str, parts: list[str]) -> str:
    tips = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" class="{name}"/></marker>'
        for name in ("tip", "tip-one")
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img">'
    ground = f'<rect width="{WIDTH}" height="{height:g}" rx="12" class="ground"/>'
    lines = [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style><defs>{tips}</defs>", ground, *parts]
    return "\n".join(lines) + "\n</svg>\n"


# --- the method ---


def method() -> str:
    """People's choices, the reward model that learns them, and the policy that is tuned under a price on leaving the
    language model that it came from.
    """
    left, wide = 66, WIDTH - 66 - 14
    middle = left + wide / 2
    responses = (" dull from its first minute.", " a delight, and wise.", " set in Paris.", " long.")
    parts = [
        box(14, 14, WIDTH - 28, 42),
        text(26, 41, "ρ", "formula two"),
        text(44, 41, "the reference: a language model, say GPT-2"),
        # from the reference down the left side, to each of the three steps
        '<path d="M32 56V478" class="line two"/>',
        '<path d="M32 134H60M32 318H60M32 478H60" class="line two"/>',
        text(left, 90, "1", "head one"),
        text(left + 20, 90, "It writes, people choose", "head"),
        box(left, 102, wide, 146),
        text(left + 14, 127, "x = The film is …", "formula"),
    ]
    for number, words in enumerate(responses):
        y = 152 + 26 * number
        parts.append(text(left + 14, y, f"y_{number}", "formula"))
        parts.append(text(left + 42, y, f"…{words}"))
    parts += [
        box(left + 8, 161, wide - 16, 25, "chosen"),
        text(WIDTH - 32, 179, "best", "end one"),
        arrow(f"M{middle:g} 248V264"),
        text(left, 290, "2", "head one"),
        text(left + 20, 290, "A reward model learns that", "head"),
        box(left, 302, wide, 78),
        text(left + 14, 328, "r(x, y): how good is y after x?"),
        text(left + 14, 360, "loss −log( exp r(x, y_b) / Σ exp r(x, y_i) )", "formula"),
        arrow(f"M{middle:g} 380V396"),
        text(left, 422, "3", "head one"),
        text(left + 20, 422, "The policy π learns to earn it", "head"),
        box(left, 434, wide, 184),
        text(left + 14, 462, "it writes"),
        text(left + 84, 462, "y ~ π( · | x)", "formula"),
        arrow(f"M{left + 120:g} 470V492", "one"),
        text(left + 14, 512, "it earns"),
        text(left + 84, 512, "r(x, y) − β log( π(y) / ρ(y) )", "formula"),
        arrow(f"M{left + 120:g} 521V543", "one"),
        text(left + 14, 562, "PPO makes what earned more than"),
        text(left + 14, 583, "expected likelier, in small steps"),
        arrow(f"M{WIDTH - 78} 578C{WIDTH - 4} 566 {WIDTH - 2} 470 {WIDTH - 176} 457", "one"),
        text(left + 14, 607, "β is the price of leaving ρ", "small"),
        text(14, 646, "ρ writes the responses of step 1; the models of steps", "small"),
        text(14, 666, "2 and 3 begin as ρ, and π pays for straying from it:", "small"),
        text(14, 686, "no reward model is perfect.", "small"),
    ]
    return drawing(700, "People's choices, a reward model that learns them, a policy that earns its reward", parts)


# --- the house ---


def rooms() -> list[str]:
    """The rooms in their order, the stages among them, as the library's first lines list them."""
    about = ast.get_docstring(ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = [line for line in about.splitlines() if line.startswith("    ")]
    return " ".join(listed).replace("(the stages)", "stages").split()


def room_of(path: tuple[str, ...], order: list[str]) -> str:
    return path[0] if path[0] in order else "stages"


def imports_between(order: list[str]) -> Counter[tuple[str, str]]:
    """(room, another room) -> how many files of the one import from the other."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(LIBRARY.rglob("*.py")):
        here = path.relative_to(LIBRARY).with_suffix("").parts
        if here == ("__init__",):
            continue
        theirs = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(LIBRARY.name):
                below = node.module.split(".")[1:]
                theirs |= {room_of((*below, alias.name), order) for alias in node.names}
        mine = room_of(here, order)
        found.update((mine, room) for room in theirs - {mine})
    return found


ABOUT = {
    "foundation": "errors, files, configuration",
    "compute": "ranks, devices, precision",
    "language": "GPT-2 and its encoding",
    "data": "tasks, queries, labels",
    "learning": "reward model, PPO, DPO",
    "judging": "how good, and how sure",
    "runs": "folders, checkpoints",
    "watching": "what can be wrong",
    "serving": "pages in a browser",
    "people": "the labelling page",
    "stages": "one file, one training",
    "reports": "figures and pages",
    "commands": "the command line",
}


def house() -> str:
    """The rooms from the ground up; an arc goes from a room down to each that it imports from, the thicker the more
    of its files do.
    """
    order, high, top = rooms(), 44, 86
    between = imports_between(order)
    floor = {room: top + high * (len(order) - 1 - place) for place, room in enumerate(order)}
    edge = 262  # where the floors end and the arcs begin
    parts = [
        f'<path d="M8 {top - 6} {8 + (edge - 8) / 2:g} 10 {edge} {top - 6}z" class="box"/>',
        text(8 + (edge - 8) / 2, top - 16, "lm_human_preferences", "small middle"),
    ]
    for room in order:
        y = floor[room]
        parts += [
            f'<rect x="8" y="{y}" width="{edge - 8}" height="{high}" class="box"/>',
            text(20, y + 19, room if room != "stages" else "train_*.py", "head"),
            text(20, y + 37, ABOUT[room], "small"),
        ]
    for (room, other), files in sorted(between.items(), key=lambda item: (item[1], item[0])):
        start, end = floor[room] + high / 2 + 5, floor[other] + high / 2 - 5
        reach = edge + 18 + 22 * (order.index(room) - order.index(other)) ** 0.8
        strength = f'stroke-width="{0.75 + 0.3 * min(files, 14):.3g}" style="opacity:{min(0.85, 0.3 + files / 20):.2g}"'
        path = f"M{edge} {start:g}C{reach:.4g} {start:g} {reach:.4g} {end:g} {edge} {end:g}"
        parts.append(f'<path d="{path}" class="arc" id="{room}-{other}" {strength}/>')
    bottom = top + high * len(order)
    parts += [
        text(8, bottom + 26, "An arc goes from a room down to one that it", "small"),
        text(8, bottom + 46, "imports from, the thicker the more of its files do.", "small"),
    ]
    parts.append(text(8, bottom + 66, "No arc goes up.", "small"))
    text_of = drawing(bottom + 82, "The rooms of the library; each imports only from those below it", parts)
    return text_of.replace("</style>", ".arc { fill: none; stroke: var(--one); }\n</style>")


DRAWINGS = {"method.svg": method, "house.svg": house}


def main() -> None:
    for name, draw in DRAWINGS.items():
        (ROOT / "static" / name).write_text(draw(), encoding="utf-8")
        print(f"static/{name}")


if __name__ == "__main__":
    main()
