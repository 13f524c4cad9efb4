"""What people look at afterwards: figures, tables, and one self-contained HTML page.

Imports watching, runs and the rooms before them; it reads the files of a run and never trains. Begin with `report.py`,
which says which file shows what; `page.py` and templates/ are the page itself.
"""
