"""The trace imports torch: without the extra `trace`, its modules are not collected for doctests."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["src/vramplan/trace/*", "tests/trace/*"]
