"""The record of a study: one SQLite file that several processes read and write at once.

Everything is append-only, which the file's own triggers keep: a changed answer is a new one that names the one it
replaces. What was committed survives a kill and a power cut (write-ahead log, synchronous=FULL). Only `demand`, how
many answers each question still wants, changes in place; it follows from the rest.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.people.records import SKIP, Answer, Judgement, Question, Response, Settings, Showing

FILE = "study.sqlite"  # in a study's folder
VERSION = 1
_PATIENCE = 20.0  # seconds that a process waits for another one's transaction

_TABLES = """
CREATE TABLE settings (id INTEGER PRIMARY KEY, value TEXT NOT NULL, added REAL NOT NULL) STRICT;
CREATE TABLE instructions (id INTEGER PRIMARY KEY, digest TEXT NOT NULL, text TEXT NOT NULL,
    added REAL NOT NULL) STRICT;
CREATE TABLE labellers (name TEXT PRIMARY KEY, added REAL NOT NULL) STRICT;
CREATE TABLE readings (labeller TEXT NOT NULL, digest TEXT NOT NULL, read REAL NOT NULL,
    PRIMARY KEY (labeller, digest)) STRICT;
CREATE TABLE questions (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, query TEXT NOT NULL, query_tokens TEXT,
    responses TEXT NOT NULL, gold INTEGER, wanted INTEGER NOT NULL, key TEXT UNIQUE, added REAL NOT NULL) STRICT;
CREATE TABLE showings (id INTEGER PRIMARY KEY, question INTEGER NOT NULL REFERENCES questions, labeller TEXT NOT NULL,
    places TEXT NOT NULL, repeat INTEGER NOT NULL, shown REAL NOT NULL) STRICT;
CREATE TABLE answers (id INTEGER PRIMARY KEY, showing INTEGER NOT NULL REFERENCES showings, kind TEXT NOT NULL,
    value TEXT NOT NULL, sureness INTEGER, instructions TEXT NOT NULL, answered REAL NOT NULL,
    replaces INTEGER UNIQUE REFERENCES answers, nonce TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE flags (id INTEGER PRIMARY KEY, showing INTEGER NOT NULL REFERENCES showings, note TEXT NOT NULL,
    flagged REAL NOT NULL) STRICT;
CREATE TABLE waits (id INTEGER PRIMARY KEY, text TEXT NOT NULL, added REAL NOT NULL) STRICT;
CREATE TABLE demand (question INTEGER PRIMARY KEY REFERENCES questions, wanted INTEGER NOT NULL,
    answered INTEGER NOT NULL DEFAULT 0) STRICT;

CREATE UNIQUE INDEX one_answer ON answers (showing) WHERE replaces IS NULL;
CREATE INDEX answers_of ON answers (showing);
CREATE INDEX showings_of_question ON showings (question, labeller);
CREATE INDEX showings_of_labeller ON showings (labeller, id);
CREATE INDEX flags_of ON flags (showing);
CREATE INDEX questions_of_kind ON questions (kind, id);
CREATE INDEX open_demand ON demand (question) WHERE answered < wanted;

CREATE TRIGGER new_demand AFTER INSERT ON questions WHEN NEW.kind <> 'gold' BEGIN
    INSERT INTO demand (question, wanted) VALUES (NEW.id, NEW.wanted);
END;
CREATE TRIGGER met_demand AFTER INSERT ON answers BEGIN
    UPDATE demand SET answered = answered + (NEW.kind <> 'skip')
        - COALESCE((SELECT kind <> 'skip' FROM answers WHERE id = NEW.replaces), 0)
    WHERE question = (SELECT question FROM showings WHERE id = NEW.showing AND repeat = 0);
END;
"""
_APPENDED = ("settings", "instructions", "labellers", "readings", "questions", "showings", "answers", "flags", "waits")
_KEEP = """
CREATE TRIGGER {table}_stay BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
CREATE TRIGGER {table}_remain BEFORE DELETE ON {table} BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
"""


class Full(UserError):
    """The disk has no room for what was to be written; nothing of it was."""


class Store:
    """A study's file, open. One thread may use it at a time; each process, and each thread, opens its own."""

    def __init__(self, folder: Path, *, make: bool = False, clock: Callable[[], float] = time.time):
        """make: make an empty one where there is none. UserError where there is none, or it is something else."""
        self.path, self.clock = Path(folder) / FILE, clock
        if not make and not self.path.is_file():
            raise UserError(f"{self.path} does not exist: begin the study with python launch.py collect")
        try:
            self.connection = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.execute("PRAGMA foreign_keys=ON")
            with self.transaction():
                self._check_version()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} cannot be opened as a study: {error}; name another one") from None

    def _check_version(self) -> None:
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            keep = "".join(_KEEP.format(table=table) for table in _APPENDED)
            for statement in _statements(_TABLES + keep):
                self.connection.execute(statement)
            self.connection.execute(f"PRAGMA user_version={VERSION}")
        elif version != VERSION:
            raise UserError(f"{self.path} is of version {version}, and this program reads {VERSION}; update it")

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that the block writes is on disk when it ends, or nothing is. Blocks may be nested: an inner one that
        fails undoes its own writes alone. Full where the disk is.
        """
        outer = not self.connection.in_transaction
        begin, end, undo = (
            ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
            if outer
            else ("SAVEPOINT inner", "RELEASE inner", "ROLLBACK TO inner")
        )
        try:
            self.connection.execute(begin)
            yield
            self.connection.execute(end)
        except BaseException as error:
            if self.connection.in_transaction:  # SQLite ends it itself where the disk is full
                self.connection.execute(undo)
                if not outer:
                    self.connection.execute("RELEASE inner")
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode in (
                sqlite3.SQLITE_FULL,
                *_REFUSED_WRITES,
            ):
                raise Full(f"cannot write {self.path}: {error}; make room, or choose another disk") from None
            raise

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(query, values).fetchall()

    def one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row, None if there is none."""
        row: tuple[Any, ...] | None = self.connection.execute(query, values).fetchone()
        return row

    def number(self, query: str, *values: Any) -> int:
        """The one whole number that a query finds."""
        return int(self.connection.execute(query, values).fetchone()[0])

    def _insert(self, table: str, **values: Any) -> int:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        number = self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))
        assert number.lastrowid is not None
        return number.lastrowid

    # --- the study ---

    def settings(self) -> Settings | None:
        """The newest settings, None in an empty study."""
        row = self.one("SELECT value FROM settings ORDER BY id DESC LIMIT 1")
        return json.loads(row[0]) if row else None

    def settle(self, settings: Settings) -> None:
        """Keep settings, where they differ from the newest."""
        with self.transaction():
            if self.settings() != settings:
                self._insert("settings", value=json.dumps(settings), added=self.clock())

    def instructions(self) -> tuple[str, str] | None:
        """Digest and text of those that hold now, None if there are none."""
        row = self.one("SELECT digest, text FROM instructions ORDER BY id DESC LIMIT 1")
        return (row[0], row[1]) if row else None

    def instruct(self, digest: str, text: str) -> None:
        """Make these the instructions, where they are not already; everybody reads them anew."""
        with self.transaction():
            now = self.instructions()
            if now is None or now[0] != digest:
                self._insert("instructions", digest=digest, text=text, added=self.clock())

    def add_labellers(self, names: Iterable[str]) -> None:
        with self.transaction():
            for name in names:
                self.connection.execute("INSERT OR IGNORE INTO labellers VALUES (?, ?)", (name, self.clock()))

    def labellers(self) -> list[str]:
        return [name for (name,) in self.rows("SELECT name FROM labellers ORDER BY added, name")]

    def read(self, labeller: str, digest: str) -> None:
        """Note that somebody has read instructions."""
        with self.transaction():
            self.connection.execute("INSERT OR IGNORE INTO readings VALUES (?, ?, ?)", (labeller, digest, self.clock()))

    def has_read(self, labeller: str, digest: str) -> bool:
        return self.one("SELECT 1 FROM readings WHERE labeller = ? AND digest = ?", labeller, digest) is not None

    def last_read(self, labeller: str) -> str:
        """The digest of the instructions that somebody answers by: those that hold, if they have read them, else the
        last that they have; empty if none.
        """
        now = self.instructions()
        if now is not None and self.has_read(labeller, now[0]):
            return now[0]
        row = self.one(
            "SELECT digest FROM readings WHERE labeller = ? ORDER BY read DESC, rowid DESC LIMIT 1", labeller
        )
        return str(row[0]) if row else ""

    def wait_for(self, text: str) -> None:
        """Say what a run waits for; empty where it waits for nothing."""
        with self.transaction():
            if text != self.waited_for():
                self._insert("waits", text=text, added=self.clock())

    def waited_for(self) -> str:
        row = self.one("SELECT text FROM waits ORDER BY id DESC LIMIT 1")
        return str(row[0]) if row else ""

    # --- questions ---

    def add_questions(self, questions: Iterable[Question]) -> int:
        """Returns how many are new: one whose key is there already is left out."""
        added = 0
        with self.transaction():
            for question in questions:
                if question.key is not None and self.one("SELECT 1 FROM questions WHERE key = ?", question.key):
                    continue
                self._insert(
                    "questions",
                    kind=question.kind,
                    query=question.query,
                    query_tokens=None if question.query_tokens is None else json.dumps(question.query_tokens),
                    responses=json.dumps([vars(response) for response in question.responses]),
                    gold=question.gold,
                    wanted=question.wanted,
                    key=question.key,
                    added=self.clock(),
                )
                added += 1
        return added

    def question(self, number: int) -> Question:
        (found,) = self._questions("WHERE id = ?", number)
        return found

    def questions(self) -> list[Question]:
        """All of them, in the order in which they were added."""
        return self._questions("ORDER BY id")

    def questions_after(self, number: int, count: int) -> list[Question]:
        """The first `count` of those that were added after question `number`, in that order."""
        return self._questions("WHERE id > ? ORDER BY id LIMIT ?", number, count)

    def _questions(self, where: str, *values: Any) -> list[Question]:
        columns = "id, kind, query, query_tokens, responses, gold, wanted, key"
        return [
            Question(
                query,
                [Response(**response) for response in json.loads(responses)],
                kind,
                gold,
                None if tokens is None else json.loads(tokens),
                wanted,
                key,
                number,
            )
            for number, kind, query, tokens, responses, gold, wanted, key in self.rows(
                f"SELECT {columns} FROM questions {where}", *values
            )
        ]

    def count_open(self) -> int:
        """Questions that want more answers than they have."""
        return self.number("SELECT COUNT(*) FROM demand WHERE answered < wanted")

    def count_answerable(self) -> int:
        """Questions without a usable answer that somebody has not given up on ("cannot tell") yet."""
        return self.number(
            "SELECT COUNT(*) FROM demand d WHERE d.answered = 0 AND (SELECT COUNT(DISTINCT s.labeller) FROM showings s "
            "CROSS JOIN answers a ON a.showing = s.id WHERE s.question = d.question) < "
            "MAX(1, (SELECT COUNT(*) FROM labellers))"
        )

    # --- showings and answers ---

    def show(self, question: int, labeller: str, places: Sequence[int], repeat: bool) -> Showing:
        shown = self.clock()
        number = self._insert(
            "showings",
            question=question,
            labeller=labeller,
            places=json.dumps(list(places)),
            repeat=int(repeat),
            shown=shown,
        )
        return Showing(number, question, labeller, list(places), repeat, shown)

    def showing(self, number: int) -> Showing | None:
        row = self.one("SELECT id, question, labeller, places, repeat, shown FROM showings WHERE id = ?", number)
        return _showing(row) if row else None

    def answer(self, showing: int, answer: Answer, digest: str, nonce: str, replaces: int | None = None) -> int:
        """Keep an answer; returns its number.

        digest: of the instructions that the labeller answers by. sqlite3.IntegrityError where the showing has its
        first answer already, the replaced one was replaced before, or the nonce was there.
        """
        with self.transaction():
            return self._insert(
                "answers",
                showing=showing,
                kind=answer.kind,
                value=json.dumps(answer.value),
                sureness=answer.sureness,
                instructions=digest,
                answered=self.clock(),
                replaces=replaces,
                nonce=nonce,
            )

    def flag(self, showing: int, note: str) -> None:
        with self.transaction():
            self._insert("flags", showing=showing, note=note, flagged=self.clock())

    def newest_answers(self, labeller: str, count: int) -> list[tuple[int, Showing, Answer]]:
        """A labeller's last questions with the answers that hold, the newest question first."""
        found = self.rows(
            "SELECT s.id, s.question, s.labeller, s.places, s.repeat, s.shown, a.id, a.kind, a.value, a.sureness "
            "FROM showings s JOIN answers a ON a.showing = s.id "
            "WHERE s.labeller = ? AND NOT EXISTS (SELECT 1 FROM answers b WHERE b.replaces = a.id) "
            "ORDER BY s.id DESC LIMIT ?",
            labeller,
            count,
        )
        return [(row[6], _showing(row[:6]), Answer(row[7], json.loads(row[8]), row[9])) for row in found]

    def judgements(self, until: int | None = None, replaced: bool = False) -> list[Judgement]:
        """All answers in the order in which they came: those that hold, or with `replaced` all of them; `until`: as
        they stood when the answer of that number was the newest.
        """
        last = until if until is not None else self.number("SELECT COALESCE(MAX(id), 0) FROM answers")
        held = "" if replaced else "AND NOT EXISTS (SELECT 1 FROM answers b WHERE b.replaces = a.id AND b.id <= ?2)"
        found = self.connection.execute(
            "SELECT a.id, a.kind, a.value, a.sureness, a.instructions, a.answered, a.replaces, q.kind, "
            "(SELECT group_concat(note, char(10)) FROM flags f WHERE f.showing = s.id), "
            "s.id, s.question, s.labeller, s.places, s.repeat, s.shown "
            "FROM answers a JOIN showings s ON s.id = a.showing JOIN questions q ON q.id = s.question "
            f"WHERE a.id <= ?1 AND ?2 = ?1 {held} ORDER BY a.id",
            (last, last),
        )
        return [
            Judgement(
                number,
                Answer(kind, json.loads(value), sureness),
                _showing(tuple(showing)),
                question_kind,
                digest,
                answered,
                replaces,
                note,
            )
            for number, kind, value, sureness, digest, answered, replaces, question_kind, note, *showing in found
        ]

    def count_labelled(self) -> int:
        """Plain questions with a usable answer that holds."""
        return self.number(
            "SELECT COUNT(DISTINCT s.question) FROM answers a JOIN showings s ON s.id = a.showing "
            "JOIN questions q ON q.id = s.question "
            "WHERE q.kind = 'plain' AND s.repeat = 0 AND a.kind <> ? "
            "AND NOT EXISTS (SELECT 1 FROM answers b WHERE b.replaces = a.id)",
            SKIP,
        )

    def first_labelled(self, count: int) -> tuple[list[int], int]:
        """The first `count` plain questions that had a usable answer at once, in the order in which they came to have
        one, and the number of the answer with which they were so many. What comes later changes neither, not even the
        change of an answer. ValueError where they never were so many.
        """
        usable: dict[
            int, set[int]
        ] = {}  # question -> its usable answers; the order is that in which it came to have one
        rows = self.rows(
            "SELECT a.id, s.question, a.kind, a.replaces FROM answers a JOIN showings s ON s.id = a.showing "
            "JOIN questions q ON q.id = s.question WHERE q.kind = 'plain' AND s.repeat = 0 ORDER BY a.id"
        )
        for answer, question, kind, replaces in rows:
            held = usable.setdefault(question, set())
            if kind != SKIP:
                held.add(answer)
            held.discard(replaces)
            if not held:
                del usable[question]
            if len(usable) == count:
                return list(usable), answer
        raise ValueError(f"{self.path} has {len(usable)} labels, {count} wanted")


_REFUSED_WRITES = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)


def _showing(row: tuple[Any, ...]) -> Showing:
    number, question, labeller, places, repeat, shown = row
    return Showing(number, question, labeller, json.loads(places), bool(repeat), shown)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
