"""Pages that a browser is served: who may see them and what is refused, personal links, the socket; and the page on
which models write beside each other.

Imports runs and the rooms before it; `people/` serves its labelling page with it. Begin with `guard.py` (what every
request passes) and `site.py` (what a page is made of).
"""
