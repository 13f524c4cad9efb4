"""What a model reads: tasks, queries, rows of text, people's labels, and the files that they lie in.

Imports language and the rooms before it. Begin with `tasks.py` (what a task is),
`label_files.py` (what a label file may look like) and `labels.py`; `exchange/` reads other people's label files.
"""
