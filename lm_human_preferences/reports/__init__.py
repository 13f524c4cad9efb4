"""What people look at afterwards: figures, tables, and one self-contained HTML page.

Imports runs and the rooms before it; it reads the files of a run and never trains. Begin with `report.py`.
"""
