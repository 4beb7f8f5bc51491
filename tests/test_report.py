"""The text for 80 columns: how wide it gets, its bar, its rows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vramplan import Estimate, estimate, inspect
from vramplan.report.compare import render as render_table
from vramplan.report.inspect import render as render_inspection
from vramplan.report.parts import PARTS
from vramplan.report.text import render, table
from vramplan.units import GiB

LONG = "an-organisation-with-a-long-name/A-Model-With-A-Very-Long-Name-That-Was-Merged-Distilled-And-Quantised-Twice-v0.1-FP8"
SMALL = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def answers() -> list[Estimate]:
    scenarios: list[dict[str, Any]] = [
        {"model": model, "engine": engine, "gpu": gpu, "context_length": 512, "sequences": 3}
        for model in (
            "meta-llama/Llama-3.1-8B",
            "google/gemma-3-27b-it",
            "deepseek-ai/DeepSeek-V3",
            "ai21labs/AI21-Jamba-Mini-1.5",
            "openai/gpt-oss-120b",
        )
        for engine in ("vllm", "llama.cpp", "transformers")
        for gpu in (None, "rtx-4090", "rtx-pro-5000-72gb-blackwell")
    ]
    scenarios += [
        {"model": "meta-llama/Llama-3.1-8B", "engine": engine, "gpu": gpu, "context_length": 512}
        for engine in ("tensorrt-llm", "lmdeploy", "exllamav2", "exllamav3", "litgpt")
        for gpu in (None, "rtx-4090")
    ]
    return [estimate(**given) for given in scenarios]


ANSWERS = answers()


@pytest.mark.parametrize("explain", [False, True])
def test_no_line_is_wider_than_80_columns(explain: bool) -> None:
    for answer in ANSWERS:
        for line in render(answer, explain=explain).splitlines():
            assert len(line) <= 80, line


def test_a_model_of_a_long_name_is_wrapped_or_stands_alone(tmp_path: Any) -> None:
    """A name that has no place to break is the only thing on its line."""
    import json

    folder = tmp_path / LONG.split("/")[1]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    for text in (str(estimate(str(folder), engine="transformers", context_length=64)), render_inspection(inspect(str(folder)))):
        for line in text.splitlines():
            assert len(line) <= 80 or len(line.split()) == 1 or (len(line.split()) == 2 and line.split()[0] == "-"), line


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "google/gemma-3-27b-it", "deepseek-ai/DeepSeek-V3", "openai-community/gpt2"])
def test_an_inspection_is_no_wider_but_for_its_tables(model: str) -> None:
    text = render_inspection(inspect(model))
    in_table = False
    for before, line in zip(["", *text.splitlines()], [*text.splitlines(), ""], strict=True):
        in_table = (in_table and bool(before)) or line.startswith("---")
        if not in_table and "  ---" not in line:
            assert len(before) <= 80 or "  " in before.strip(), before


def bar(answer: Estimate) -> str:
    return next(line for line in render(answer).splitlines() if line.startswith("["))


def test_the_bar_is_the_card_s_memory() -> None:
    for answer in ANSWERS:
        if answer.room is None:
            assert not any(line.startswith("[") for line in render(answer).splitlines())
            continue
        drawn = bar(answer)
        assert len(drawn) == 80
        assert drawn.endswith("]" if answer.fits else "!")
        used = len(drawn) - 2 - drawn.count("·")
        assert abs(used - min(78, 78 * answer.peak[1] / answer.room)) <= 1
        weights = answer.quantities["weights"]
        assert abs(drawn.count("W") - min(78, 78 * weights / answer.room)) <= 1


def test_every_part_of_a_bar_has_a_letter_of_its_own() -> None:
    letters = [look.letter for look in PARTS.values()]
    assert len(set(letters)) == len(letters)
    for answer in ANSWERS:
        assert {item.path[0] for item in answer.ledger.items} <= set(PARTS)
        assert "#" not in render(answer)


def test_rows_add_up_as_they_are_printed() -> None:
    """Each part is printed once, the peak is their sum within the rounding of two decimals."""
    for answer in ANSWERS:
        rows = [re.match(r"([A-Z]) (.{43})\s*([\d.,]+) (GiB|MiB|KiB|B)", line) for line in render(answer).splitlines()]
        sizes = [float(row[3].replace(",", "")) * {"GiB": 1, "MiB": 2**-10, "KiB": 2**-20, "B": 2**-30}[row[4]] for row in rows if row]
        assert sum(sizes) == pytest.approx(answer.peak[1] / GiB, abs=0.01 * len(sizes))


def test_explain_shows_every_item_of_the_peak() -> None:
    for answer in ANSWERS:
        text = " ".join(render(answer, explain=True).split())
        for item in answer.ledger.items:
            if answer.peak[0] in item.alive:
                assert f"= {' '.join(item.why.split())}" in text
                assert f"source: {' '.join(item.source.split())}" in text


def test_a_table_of_answers_names_what_differs() -> None:
    two = [estimate("meta-llama/Llama-3.1-8B", gpu=gpu, context_length=4096) for gpu in ("rtx-4090", "h100")]
    assert render_table(two).splitlines()[2].split()[0] == "GPU"
    text = render_table([estimate("meta-llama/Llama-3.1-8B", context_length=n) for n in (4096, 8192)])
    assert text.splitlines()[2].split()[0] == "context"
    assert text.splitlines()[-1].split()[-2:] == ["-", "-"]


def test_a_table_is_aligned() -> None:
    assert table(["a", "b"], [["xxx", "1"], ["y", "222"]]) == "a      b\n---  ---\nxxx    1\ny    222"
