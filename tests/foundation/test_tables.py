"""CSV files row by row, and what is said of those that are not as they should be."""

import gzip

import pytest

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.tables import read_table

TABLE = '\ufeffid,text\r\n1,"one, two"\r\n\r\n2,"a ""quoted"" line\nand another"\r\n'


def test_rows_and_where_they_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(TABLE.encode())
    rows = list(read_table(path, ("text",)))
    assert [row for _, row in rows] == [
        {"id": "1", "text": "one, two"},
        {"id": "2", "text": 'a "quoted" line\nand another'},
    ]
    assert [where for where, _ in rows] == [f"{path}, row 1 (line 2)", f"{path}, row 2 (line 4)"]


def test_gzipped_with_another_delimiter_and_a_large_field(tmp_path):
    long, told = "x" * 300_000, []
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(f"id\ttext\n1\t{long}\n".encode()))
    rows = read_table(tmp_path / "a.tsv.gz", ("id", "text"), delimiter="\t", progress=told.append)
    assert [row["text"] for _, row in rows] == [long]
    assert sum(told) == (tmp_path / "a.tsv.gz").stat().st_size


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "a.csv is empty: expected a first line with the columns id, text"),
        (b"id,name\n1,2\n", "a.csv: expected the columns id, text; it has id, name"),
        (b"id,text,id\n", "a.csv: its first line names the column 'id' twice"),
        (b"id,text\n1,a\n2\n", "a.csv, row 2 (line 3): expected 2 fields, as the first line has, found 1"),
        (b"id,text\n1,a,b\n", "a.csv, row 1 (line 2): expected 2 fields, as the first line has, found 3"),
        (b'id,text\n1,a\n2,"begun', "a.csv, row 2 (line 3) is truncated: the file ends within it"),
        (b'id,text\n1,"a"b\n', "a.csv, row 1 (line 2) is not CSV"),
        (b"id,text\n1,caf\xe9\n", "a.csv, line 2: not UTF-8 (invalid continuation byte at byte 5)"),
    ],
)
def test_what_is_not_such_a_table_is_one_line(tmp_path, content, says):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_table(tmp_path / "a.csv", ("id", "text")))
    assert says in str(error.value)


def test_a_table_that_is_damaged_or_not_there(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id,text\n" + b"1,a\n" * 999)[:-9])
    with pytest.raises(UserError, match=r"a\.csv\.gz is damaged"):
        list(read_table(tmp_path / "a.csv.gz"))
    with pytest.raises(UserError, match="does not exist"):
        list(read_table(tmp_path / "b.csv"))
