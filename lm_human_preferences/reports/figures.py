"""What all figures have in common: their style, and how they are written. What is drawn stands in run_figures.py and
in the result's own file (evaluation_report.py, quality_report.py, sweep_report.py).
"""

from __future__ import annotations  # matplotlib's types are named, but it is imported only to draw

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file, make_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Okabe and Ito's: told apart by colour-blind people too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, DARK = "#b4bcc6", "#333a44"
DASHED = (0, (4, 3))
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929c",
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "axes.labelcolor": DARK,
    "xtick.color": "#555d68",
    "ytick.color": "#555d68",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "lm-human-preferences",  # else the names within an SVG are drawn at random
}


class Drawing(NamedTuple):
    """A figure that can be drawn."""

    name: str  # of its file
    title: str
    caption: str
    draw: Callable[[Figure], None]


class Picture(NamedTuple):
    """A figure that was drawn."""

    path: Path  # the PNG
    title: str
    caption: str


def write_figures(drawings: list[Drawing], folder: Path, svg: bool = False) -> list[Picture]:
    """Each drawing as `folder/<name>.png`, with `svg` also as `<name>.svg`. UserError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need a package that is missing: pip install matplotlib") from None
    make_folder(folder)
    pictures = []
    with matplotlib.rc_context(STYLE):
        for drawing in drawings:
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            figure.suptitle(drawing.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
            drawing.draw(figure)
            _save(figure, folder / f"{drawing.name}.png", {"Software": None})
            if svg:
                _save(figure, folder / f"{drawing.name}.svg", {"Date": None})
            pictures.append(Picture(folder / f"{drawing.name}.png", drawing.title, drawing.caption))
    return pictures


def _save(figure: Figure, path: Path, metadata: dict[str, Any]) -> None:
    """`metadata` takes out what would differ from one time to the next."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


def in_percent(axis: Axis) -> None:
    """Label an axis of shares in whole percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


class Bar(NamedTuple):
    """A share in a bar chart."""

    name: str
    share: float
    error: float  # half of its interval; 0 draws none
    own: bool  # of what the figure is about


def draw_bars(axes: Axes, bars: list[Bar]) -> None:
    """Shares as bars from below upward, each with its number."""
    for place, bar in enumerate(bars):
        axes.barh(place, bar.share, height=0.6, color=COLOURS[0] if bar.own else GREY)
        if bar.error:
            axes.errorbar(bar.share, place, xerr=bar.error, color=DARK, capsize=3, linewidth=1.2)
        weight = "bold" if bar.own else "normal"
        axes.text(bar.share + bar.error + 0.012, place, f"{bar.share:.1%}", va="center", fontweight=weight)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_xlim(0, min(1.15, max(bar.share + bar.error for bar in bars) + 0.12))
    axes.grid(axis="y", visible=False)
    in_percent(axes.xaxis)


def legend_above(axes: Axes) -> None:
    """The legend above the axes, where it can hide nothing."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, ncols=4, handlelength=1.6, columnspacing=1.2
    )


def whiskers(interval: Mapping[str, float]) -> list[list[float]]:
    """An interval's ends as matplotlib's errors below and above the mean."""
    return [[interval["mean"] - interval["low"]], [interval["high"] - interval["mean"]]]
