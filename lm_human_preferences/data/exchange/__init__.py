"""Other people's files of labels, read into the project's readable labels and written from them; one module a form.

A form takes one record of a file (a JSON object, a row of a table) and gives labels as `data/label_files.py` has them:
{"query": text, "responses": [text, ...], "best": 0}, with whatever else is known under names of its own, `worker` and
`confidence` above all. Begin with `forms.py`, the table of forms; `reading.py` has the settings, `files.py` the files.
"""
