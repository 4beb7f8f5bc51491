"""What people call a model, and which repository they mean. Knows names only, neither files nor configs.

A name is a core and its variants: "Mistral-7B-Instruct-v0.3" is the core mistral·7b with the variants instruct and v0.3. A short name
may mean a repository that has every variant which it names and whose core fits by one of the `RULES`, which are tried in order. Of
those repositories the one with the fewest further variants is meant, then the one with most downloads: "llama 3.1 8b" is the base
model, "gemma 3 27b" google/gemma-3-27b-it. Several cores that fit equally ("gemma 3" is five sizes) are an open question, not a choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

NOISE = frozenset(("hf", "meta", "nvidia", "c4ai", "ai21", "latest", "model", "llm"))
"""Words that tell nothing: an organisation repeated in the name, or the file layout."""

VARIANTS: dict[str, float] = {
    **dict.fromkeys(("instruct", "it", "chat", "base", "pt", "pretrain", "bf16", "fp16", "sft", "dpo"), 1.0),
    **dict.fromkeys(("preview", "thinking", "think", "reasoning", "beta", "alpha", "deduped", "rl", "zero", "python"), 2.0),
    **dict.fromkeys(("fp8", "nvfp4", "mxfp4", "awq", "gptq", "int8", "int4", "4bit", "8bit", "mlx"), 4.0),
}
"""Words that say which release, tuning or encoding of a network it is -> how far that is from the plain name."""

_DATE_CONTEXT_ACTIVE = r"\d{4}|\d{6}|\d{8}|\d{1,3}k|1m|a\d+(?:\.\d+)?[bm]|v0\d*(?:\.\d+)*"
_UNDERSCORE_POINT = r"(?<=[-_ ]\d)_(?=\d(?!\d))|(?<=[a-z]\d)_(?=\d(?![\da-z]))"  # phi-1_5, stablelm-2-1_6b; not qwen3_8b
_VERSION = r"v\d+(?:\.\d+)*"
_SIZE = r"e?\d+(?:\.\d+)?(?:x\d+(?:\.\d+)?)?[bm]\d?|\d+e"
_WORD = r"(?:nv|mx|b)?fp?\d+|int\d+|[a-z]{2,}(?=\d)|[a-z]*\d+(?:\.\d+)*[a-z]*(?:\d+(?:\.\d+)*[a-z]+)?|[a-z]+"


class Name(NamedTuple):
    """A model's name, taken apart."""

    core: tuple[str, ...]
    variants: frozenset[str]

    @property
    def key(self) -> str:
        """The core in one piece, so that "code llama 7b" is "CodeLlama-7b"; two numbers stay apart ("qwen2 7b" is not "qwen 27b").

        >>> parse("code llama 7b").key, parse("qwen 2 7b").key, parse("qwen 27b").key
        ('codellama7b', 'qwen2-7b', 'qwen27b')
        """
        return re.sub(r"(?<=\d) (?=\d)", "-", " ".join(self.core)).replace(" ", "")


def parse(name: str) -> Name:
    """The core and the variants of a model's name, without its organisation.

    >>> name = parse("Mistral-7B-Instruct-v0.3")
    >>> name.core, sorted(name.variants)
    (('mistral', '7b'), ['instruct', 'v0.3'])
    >>> parse("llama3.1:8b") == parse("Meta-Llama-3.1-8B")
    True
    """
    text = re.sub(_UNDERSCORE_POINT, ".", name.lower())
    text = re.sub(r"\b(0\d|1[0-2])-(20\d\d)\b", r"\1\2", text)
    core: list[str] = []
    variants: set[str] = set()
    sized = False
    for word in re.findall(_WORD, text):
        if word in NOISE:
            continue
        if word in VARIANTS or re.fullmatch(_DATE_CONTEXT_ACTIVE, word) or (sized and re.fullmatch(_VERSION, word)):
            variants.add(word)
        else:
            sized = sized or re.fullmatch(_SIZE, word) is not None
            core.append(word.removesuffix(".0"))
    return Name(tuple(core), frozenset(variants))


def distance(asked: Name, has: Name) -> float:
    """How far a repository's variants go beyond those that were asked for."""
    return sum(VARIANTS.get(word, 1.0) for word in has.variants - asked.variants)


def _same(asked: Name, has: Name) -> bool:
    return has.key == asked.key


def _sized(asked: Name, has: Name) -> bool:
    n = len(asked.core)
    return has.core[:n] == asked.core and all(re.fullmatch(_SIZE, word) for word in has.core[n:])


def _begins(asked: Name, has: Name) -> bool:
    return has.core[: len(asked.core)] == asked.core


def _ends(asked: Name, has: Name) -> bool:
    n = len(asked.core)
    return n >= 3 and has.core[-n:] == asked.core


class Candidate(NamedTuple):
    """A repository that may be meant."""

    id: str
    official: bool
    downloads: int


RULES: tuple[tuple[Callable[[Name, Name], bool], bool], ...] = (
    (_same, True),  # "code llama 7b" is CodeLlama-7b
    (_sized, True),  # "llama 3.3": the same but for a size that was left out
    (_same, False),
    (_begins, True),  # "llama 3.2 11b" has but one continuation, -Vision
    (_ends, True),  # "r1 distill qwen 7b"
)
"""How the core of a short name may fit a repository's, and whether for official organisations only; the first that fits counts."""


def meant(name: str, candidates: Iterable[Candidate]) -> list[list[str]]:
    """The repositories that `name` may mean: a list for each core, nearest repository first. With one core it is clear what is meant.

    >>> meant("llama 3 8b", [Candidate("meta-llama/Meta-Llama-3-8B", True, 9), Candidate("meta-llama/Meta-Llama-3-8B-Instruct", True, 99)])
    [['meta-llama/Meta-Llama-3-8B', 'meta-llama/Meta-Llama-3-8B-Instruct']]
    """
    asked = parse(name)
    named = [(candidate, parse(candidate.id.rpartition("/")[2])) for candidate in candidates] if asked.core else []
    named = [(candidate, has) for candidate, has in named if asked.variants <= has.variants]
    for fits, official in RULES:
        best = [(candidate, has) for candidate, has in named if candidate.official >= official and fits(asked, has)]
        if best:
            best.sort(key=lambda pair: (distance(asked, pair[1]), -pair[0].downloads, pair[0].id.lower()))
            cores: dict[str, list[str]] = {}
            for candidate, has in best:
                cores.setdefault(has.key, []).append(candidate.id)
            return list(cores.values())
    return []
