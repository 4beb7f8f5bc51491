"""The web page and the HTTP API: the same answers where people and programs look.

The address is the state: `pages.page(path, query)` is a pure function from an address to HTML, and `api.answer(name, given)` one from a
scenario to JSON; neither knows of sockets. Only `server.py` and `work.py` know how requests come and go.
"""
