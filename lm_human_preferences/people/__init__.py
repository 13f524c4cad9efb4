"""People in the loop: questions, who is asked what, answers, how far they can be trusted, and the page that asks.

Imports serving and the rooms before it; `server.py` alone loads the web server. Begin with `store.py` (the record),
`queue.py` (who gets which question) and `server.py` (the page); `quality.py` and `merging.py` read what was answered.
"""
