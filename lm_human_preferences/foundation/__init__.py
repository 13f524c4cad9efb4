"""What any program needs: errors a user can read, files that appear whole, configuration, the process, downloads.

Imports nothing of the library. Begin with `errors.py` (what the user did wrong is one line) and `files.py` (whole or
absent).
"""
