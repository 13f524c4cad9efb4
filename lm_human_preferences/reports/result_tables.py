"""Results as tables for people: what `evaluate` and `reward_quality` found, on the console and as rows for the report."""

from typing import Any

from lm_human_preferences.judging import text_metrics
from lm_human_preferences.judging.bootstrap import Interval

# --- evaluate ---

EVALUATION_ROWS = {
    "kl": ("KL to the reference, nats per response", "{:.2f}"),
    "kl_per_token": ("KL to the reference, nats per token", "{:.3f}"),
    "entropy": ("entropy, nats per token", "{:.2f}"),
    "length": ("tokens up to the end", "{:.1f}"),
    "no_valid_end": ("responses without a valid end", "{:.1%}"),
    "distinct_1": ("distinct tokens", "{:.1%}"),
    "distinct_2": ("distinct pairs of tokens", "{:.1%}"),
    "perplexity": ("perplexity under the reference", "{:.1f}"),
    "text_perplexity": ("perplexity of the given texts", "{:.1f}"),
    "rouge_1": ("ROUGE-1", "{:.3f}"),
    "rouge_2": ("ROUGE-2", "{:.3f}"),
    "rouge_l": ("ROUGE-L", "{:.3f}"),
    "copied_sentences": ("sentences copied from the query", "{:.1%}"),
    **{f"copied_{n}_grams": (f"{n}-grams copied from the query", "{:.1%}") for n in text_metrics.COPIED_NGRAMS},
    "copied_responses": ("responses copied as a whole", "{:.1%}"),
    "copied_lead_3": ("responses copied from the first 3 sentences", "{:.1%}"),
    "copied_from": ("place of copied sentences, 0 start, 1 end", "{:.2f}"),
}


def evaluation_table(result: dict) -> str:
    """The results for people: a column a policy, means with their 95% intervals; then who wins."""
    columns = {
        **result["policies"],
        **{name.replace("_", "-"): figures for name, figures in result.get("baselines", {}).items()},
    }
    rows = [
        (f"score of {judge}", "{:+.3f}", [figures.get("scores", {}).get(judge) for figures in columns.values()])
        for judge in next(iter(columns.values()))["scores"]
    ]
    rows += [
        (title, form, [figures.get(key) for figures in columns.values()])
        for key, (title, form) in EVALUATION_ROWS.items()
        if any(key in figures for figures in columns.values())
    ]
    cells = [
        ["", *columns],
        *([title, *(_cell(interval, form) for interval in intervals)] for title, form, intervals in rows),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        f"\n{result['queries']:,} held-out queries ({result['split']}), reference {result['reference']}; 95% intervals over queries"
    ]
    lines += [
        f"  {row[0]:{widths[0]}}"
        + "".join(f"   {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in cells
    ]
    lines = [line.rstrip() for line in lines]
    wins = [
        f"  {w['policy']} against {w['against']} under {w['judge']}: {_cell(w['share'], '{:.1%}')} of {w['queries']:,} queries"
        for w in result["wins"]
    ]
    return "\n".join(lines + (["\nwins, ties split", *wins] if wins else []))


def _cell(interval: Interval | None, form: str) -> str:
    if interval is None or interval["mean"] is None:
        return "" if interval is None else "-"
    mean, low, high = (form.format(interval[key] + 0.0) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


# --- reward_quality ---

Row = tuple[str, Any, str]  # what it is, an Estimate or a number, how to write it


def quality_rows(result: dict) -> dict[str, list[Row]]:
    """The results in the order to show them: title of a group -> rows."""
    c, length, people, percent, signed = (
        result["calibration"],
        result["length"],
        result.get("people"),
        "{:.1%}",
        "{:+.3f}",
    )
    groups: dict[str, list[Row]] = {
        "choices": [
            ("accuracy", result["accuracy"], percent),
            (
                "the same, choices that share responses not taken for independent",
                result["accuracy_overlapping"],
                percent,
            ),
            ("chance", result["chance"], percent),
            ("log-likelihood, nats a choice", result["log_likelihood"], signed),
            ("of choosing blindly", c["uniform_log_likelihood"], signed),
        ],
        "calibration": [
            ("mean probability of the response it prefers", c["confidence"], percent),
            ("expected calibration error", c["error"], percent),
            ("temperature that would calibrate it", c["temperature"], "{:.3f}"),
            ("log-likelihood at that temperature", c.get("log_likelihood_at_temperature"), signed),
            ("calibration error at that temperature", c.get("error_at_temperature"), percent),
        ],
        "length": [
            ("correlation of reward and tokens", length["correlation"], signed),
            ("within a choice", length["correlation_within"], signed),
            ("people choose the longest", length["people_longest"], percent),
            ("the model prefers the longest", length["model_longest"], percent),
            (f"accuracy, all {length['pairs']:,} pairs of the best and another", length["pairs_accuracy"], percent),
            (
                f"accuracy, {length['equal_pairs']:,} such pairs of equal length (ratio up to {length['equal_length']:g})",
                length["equal_pairs_accuracy"],
                percent,
            ),
            (
                f"accuracy, {length['equal_choices']:,} choices among equally long responses",
                length["equal_accuracy"],
                percent,
            ),
        ],
    }
    if people:
        reliability = people["reliability"]
        groups["people"] = [
            (
                f"correlation with the mean rating ({people['sentences']:,} sentences)",
                people["mean_correlation"],
                signed,
            ),
            ("rank correlation with the mean rating", people["mean_rank_correlation"], signed),
            ("highest that the noise of the means allows", reliability["ceiling"], signed),
            (f"correlation with single ratings ({people['ratings']:,})", people["single_correlation"], signed),
            ("one person's with the mean of the others", people.get("single_with_others_correlation"), signed),
            ("the model agrees with one person's choice", people["agreement_model"], percent),
            ("two persons agree", people["agreement_people"], percent),
            ("one person agrees with the mean of the others", people["agreement_rest"], percent),
        ]
    return {title: [row for row in found if row[1] is not None] for title, found in groups.items()}


def written(value: Any, form: str) -> tuple[str, str]:
    """A number and its standard error as text, a dash and nothing where it was not measured."""
    estimate = value if isinstance(value, dict) else {"value": value, "standard_error": None}
    if estimate["value"] is None:
        return "-", ""
    error = (
        "" if estimate["standard_error"] is None else f"± {form.replace('+', '').format(estimate['standard_error'])}"
    )
    return form.format(estimate["value"] + 0.0), error


def quality_table(result: dict) -> str:
    """The results for people, each with its standard error."""
    groups = quality_rows(result)
    width = max(len(title) for group in groups.values() for title, *_ in group)
    lines = [f"\n{result['choices']:,} held-out choices of {result['labels']}; ± is a standard error"]
    for title, group in groups.items():
        lines += [
            "",
            title,
            *(
                f"  {name:{width}}   {number:>8} {error}".rstrip()
                for name, (number, error) in ((name, written(value, form)) for name, value, form in group)
            ),
        ]
    lines += ["", "reliability", f"  {'probability':<12}{'choices':>9}{'predicted':>11}{'right':>9}"]
    lines += [
        f"  {row['low']:.2f} to {row['high']:.2f}{row['choices']:>9,}{row['confidence']:>11.1%}{row['accuracy']:>9.1%} ± {row['standard_error']:.1%}"
        for row in result["calibration"]["reliability"]
    ]
    if "curve" in result:
        lines += [
            "",
            "learning curve",
            f"  {'model':<16}{'labels':>8}   {'accuracy':<18}{'log-likelihood':<20}temperature",
        ]
        lines += [
            f"  {row['model'] or 'its own':<16}{row['labels']:>8,}   {' '.join(written(row['accuracy'], '{:.1%}')):<18}"
            f"{' '.join(written(row['log_likelihood'], '{:+.3f}')):<20}{' '.join(written(row['temperature'], '{:.2f}'))}".rstrip()
            for row in result["curve"]
        ]
    return "\n".join(lines)
