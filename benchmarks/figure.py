"""The figure that shows how the cost of an update grows with the batch and with the length of the response."""

from pathlib import Path

import numpy as np

from benchmarks.cases import Case
from lm_human_preferences.foundation.files import atomic_file
from lm_human_preferences.reports.figures import COLOURS, STYLE

BATCHES, RESPONSES = (8, 16, 32, 48, 64), (8, 24, 48, 72, 96)
USUAL_BATCH, USUAL_RESPONSE = 16, 24  # of the panel that varies the other


def scaling_cases(model: str, **settings) -> list[Case]:
    """Updates of the style task at each batch, then at each length of the response."""
    return [Case("update", model, "style", batch, response_length=USUAL_RESPONSE, **settings) for batch in BATCHES] + [
        Case("update", model, "style", USUAL_BATCH, response_length=length, **settings) for length in RESPONSES
    ]


def fit(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """The straight line of least squares (slope, value at 0), and the largest distance of a point from it as a share of
    the point.
    """
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(start), float(max(abs(slope * a + start - b) / b for a, b in zip(x, y, strict=True)))


def draw(rows: list[dict], path: Path) -> None:
    """Write the figure of measured scaling cases as PNG: CPU seconds on a CPU, which other programs hardly change,
    seconds on a GPU.
    """
    import matplotlib
    from matplotlib.figure import Figure

    cost, unit = ("cpu_seconds", "CPU seconds") if rows[0]["case"]["device"] == "cpu" else ("seconds", "seconds")
    batches = [(row["case"]["batch"], row[cost]) for row in rows[: len(BATCHES)]]
    responses = [(row["case"]["response_length"], row[cost]) for row in rows[len(BATCHES) :]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 3.4), layout="constrained")
        labels = (
            f"episodes in a batch (responses of {USUAL_RESPONSE} tokens)",
            f"tokens in a response ({USUAL_BATCH} episodes)",
        )
        for axis, points, label in zip(figure.subplots(1, 2), (batches, responses), labels, strict=True):
            x, y = map(list, zip(*points, strict=True))
            slope, start, distance = fit(x, y)
            ends = np.array([0, max(x)])
            axis.plot(
                ends,
                slope * ends + start,
                color=COLOURS[1],
                linewidth=1.2,
                label=f"line; no point is more than {distance:.0%} off",
            )
            axis.plot(x, y, "o", color=COLOURS[0], label="measured")
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.set_xlabel(label)
            axis.set_ylabel(f"{unit} for a PPO update")
            axis.legend(loc="upper left")
        title = f"Cost of an update ({rows[0]['case']['model']} model, queries of 64 tokens)"
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
