"""What the dashboard shows: how far a study is, and how far its answers can be trusted."""

from collections.abc import Mapping
from typing import Any

from lm_human_preferences.people.quality import quality
from lm_human_preferences.people.store import Store


def dashboard(store: Store) -> Mapping[str, Any]:
    """The values of templates/dashboard.html."""
    settings = store.settings() or {}
    questions = {question.id: question for question in store.questions()}
    return {
        "task": settings.get("task", ""),
        "open": store.count_open(),
        "asked": len(questions),
        "waits": store.waited_for(),
        "quality": quality(questions, store.judgements()),
        "flags": store.rows(
            "SELECT s.question, s.labeller, f.note FROM flags f JOIN showings s ON s.id = f.showing "
            "ORDER BY f.id DESC LIMIT 20"
        ),
    }
