"""Very long runs of white space.

tiktoken's engine looks ahead at each of them and gives up, with a panic that no program can tell from its own fault, at
a million characters. So they are cut out here, exactly where GPT-2's pattern would cut.
"""

import re
from collections.abc import Iterator

LONG = 500_000  # characters

# Unicode's White_Space, which is what the engine's \s stands for; Python's has four control characters more.
_WHITE = "[\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


def split_at_long_runs(text: str) -> Iterator[tuple[str, bool]]:
    """(part, whether it is a run) of a text; the tokens of its parts, one after the other, are the text's.

    A run is one word in GPT-2's pattern (`\\s+(?!\\S)`), to be merged as it is: all white space but for the last
    character, which the next word may begin with, or all of it at the text's end.
    """
    start = 0
    for run in re.finditer(f"(?<!{_WHITE}){_WHITE}{{{LONG},}}+", text):
        end = run.end() - (run.end() < len(text))
        yield text[start : run.start()], False
        yield text[run.start() : end], True
        start = end
    yield text[start:], False
