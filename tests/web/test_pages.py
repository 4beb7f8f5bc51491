"""The pages as functions of an address: the figures are the estimate's, the address is the state, and nothing is known twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from site_of_tests import ADDRESSES, links, text_of

import vramplan.web
from vramplan.catalog.gpus import all_gpus
from vramplan.catalog.models import search_models
from vramplan.errors import BadInput
from vramplan.estimate import estimate
from vramplan.report.text import verdict
from vramplan.scenario import Scenario, keys, scenario
from vramplan.units import gib
from vramplan.web import catalog, controls, documents
from vramplan.web.address import LONGEST, address, given, pairs
from vramplan.web.pages import MENU, Page, page
from vramplan.web.presets import PRESETS, applied, current

HOME = Path(vramplan.web.__file__).parent


def at(href: str) -> Page:
    path, _, query = href.partition("?")
    return page(path, query)


def asked(href: str) -> Scenario:
    return scenario(given(pairs(href.partition("?")[2]))[0])


@pytest.mark.parametrize("href", ADDRESSES)
def test_the_figures_are_those_of_the_estimate(href: str) -> None:
    answer, shown = estimate(asked(href)), at(href)
    text = text_of(shown.html)
    assert shown.status == 200
    assert gib(answer.peak[1]) in text
    for part in verdict(answer).rstrip(".").removeprefix("Fits: ").removeprefix("Does not fit: ").split(", "):
        assert part in text
    moment = answer.peak[0]
    for item in answer.ledger.items:
        if moment in item.alive:
            assert " ".join(item.why.split()) in text, item.path
            assert gib(item.nbytes) in text, item.path
    for name, value in answer.quantities.items():
        assert name.replace("_", " ") in text
        assert gib(value) in text or f"{value:,}" in text or name.endswith("parameters")
    for assumed in answer.assumptions:
        assert " ".join(assumed.split()) in text


@pytest.mark.parametrize("href", ADDRESSES)
def test_an_address_says_what_it_says_again(href: str) -> None:
    values, rest = given(pairs(href.partition("?")[2]))
    assert not rest
    assert address(values) == href.replace("task=train&gpu=rtx-4090&method", "task=train&gpu=rtx-4090&method")
    assert given(pairs(address(values)[2:])) == (values, {})


WORDS = st.text(min_size=1, max_size=12).map(str.strip).filter(bool)


@drawn(st.dictionaries(st.sampled_from([name for name in keys() if name not in ("lora", "kv_dtype", "draft_model")]), WORDS))
def test_any_values_survive_the_address(values: dict[str, str]) -> None:
    assert given(pairs(address({"model": "a/b", **values})[2:])) == ({"model": "a/b", **values}, {})


def test_parts_lists_configs_and_strangers_in_an_address() -> None:
    config = {"model_type": "llama", "hidden_size": 64}
    values, rest = given(
        pairs(
            address({"model": config, "lora": {"rank": 8, "targets": ["q_proj"]}})[2:] + "&offload=optimizer&offload=activations&fbclid=1"
        )
    )
    assert values == {"model": config, "lora": {"rank": "8", "targets": "q_proj"}, "offload": "optimizer,activations"}
    assert rest == {"fbclid": "1"}
    assert "Not read: fbclid" in text_of(at("/?model=gpt2&fbclid=1").html)


@pytest.mark.parametrize(
    "query", ["model=" + "x" * LONGEST, "&".join(f"a{n}=1" for n in range(400)), "model={", "lora=rank%3D8&lora.rank=8"]
)
def test_a_wrong_address_is_refused(query: str) -> None:
    with pytest.raises(BadInput):
        given(pairs(query))
    assert page("/", query).status == 400


def test_an_empty_field_of_a_form_leaves_the_address() -> None:
    assert at("/?model=gpt2&gpu=&engine=") == Page(status=303, location="/?model=gpt2")
    assert at("/?model=gpt2&gpu=rtx-4090&weights=awq&preset=lora").location == "/?model=gpt2&task=train&gpu=rtx-4090&method=lora"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda one: one.id)
def test_a_preset_is_answered_and_is_the_current_one(preset: Any) -> None:
    values = applied({"model": "Qwen/Qwen3-0.6B", "gpu": "rtx-4090"}, preset.id)
    assert current(values) == preset.id
    assert f'value="{preset.id}" aria-pressed="true"' in at(address(values)).html


def test_every_key_has_a_control_with_its_help_and_choices() -> None:
    found: dict[str, controls.Control] = {}
    for task in ("infer", "train"):
        found |= {one.name: one for one in controls.first({"task": task}, {})}
        found |= {one.name: one for group in controls.folded({"task": task}, {}).values() for one in group}
    assert set(found) == set(keys()) - {"task"}
    for name, one in found.items():
        assert one.help == keys()[name]["help"].replace("`", "")
        for value, _ in one.choices:
            assert keys()[name]["read"](name, value) is not None
    assert [one.name for one in found["lora"].parts][:2] == ["lora.rank", "lora.alpha"]


def test_values_and_defaults_are_in_the_controls() -> None:
    html = at("/?model=gpt2&context_length=512&eager=true").html
    assert re.search(r'name="context_length" value="512"', html)
    assert re.search(r'name="sequences" value="" placeholder="256"', html)
    assert re.search(r'name="eager".*?<option value="true" selected', html, re.DOTALL)
    assert '<details class="group" open>' in html


def test_no_model_card_or_choice_is_written_in_templates_or_script() -> None:
    texts = {path.name: path.read_text() for path in (*HOME.glob("templates/*.html"), *HOME.glob("static/*"))}
    names = [gpu.id for gpu in all_gpus()] + [model.id for model in search_models("", 300)]
    choices = {word for about in keys().values() for kind in [about["read"].schema] for word in kind.get("enum", ()) if len(word) > 5}
    for name, text in texts.items():
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
        for word in (*names, *(choices - {"default", "precomputed"})):
            assert not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", code), (name, word)


def test_wrong_input_is_a_page_with_what_was_meant() -> None:
    shown = at("/?model=lama-3.1-8b&gpu=rtx-4090")
    assert shown.status == 404
    assert any("model=" in href and "gpu=rtx-4090" in href for href in links(shown.html))
    assert at("/?model=gpt2&gpu=rtx-9999").status == 404
    assert at("/?model=gpt2&context_length=-5").status == 400
    assert at("/?model=gpt2&precision=bf17&task=train").status == 400
    assert "&lt;script&gt;" in at("/?model=<script>alert(1)</script>").html
    assert "<script>alert" not in at("/?model=<script>alert(1)</script>").html
    assert at("/nothing").status == at("/cards/none").status == at("/models/no/ne").status == at("/how/none").status == 404


def test_links_of_every_kind_are_answered() -> None:
    """One link of each kind on each kind of page, and every document; a kind is a folder and the names in the query."""
    start = [href for href, _ in MENU] + [ADDRESSES[4], "/cards/rtx-4090", "/models/openai-community/gpt2", "/models?q=qwen3&page=2"]
    seen: dict[str, int] = {}
    for href in start:
        shown = at(href)
        assert shown.status == 200, href
        kinds: set[object] = set()
        for link in links(shown.html):
            path, _, query = link.partition("?")
            kind = path if path.startswith("/how/") else (path.split("/")[1], "/" in path[1:], frozenset(name for name, _ in pairs(query)))
            if not link.startswith(("/static/", "/api/")) and link not in seen and kind not in kinds:
                seen[link] = at(link).status
            kinds.add(kind)
    assert {link: status for link, status in seen.items() if status not in (200, 303)} == {}
    assert len(seen) > 25


def test_documents_are_pages_and_their_links_lead_somewhere() -> None:
    for name in documents.names():
        found = documents.document(name)
        assert found.title != name
        assert "Generated by" not in found.html
        assert "&lt;!--" not in found.html
        assert not re.search(r'href="[^"#]*\.md', found.html), name
    assert at("/accuracy").html.count("<table>") >= 4


def test_cards_are_sorted_and_found() -> None:
    usable = [gpu["usable"] for gpu in catalog.cards("nvidia consumer", "usable")]
    sizes = [float(text.split()[0].replace(",", "")) for text in usable]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 10
    assert catalog.cards("rtx 4090", "name")[0]["id"] == "rtx-4090"


def test_a_table_says_what_the_estimate_says() -> None:
    _, rows = catalog.what_runs("rtx-4090")
    for row in rows[:4]:
        for cell in row.cells:
            if cell.state != "open":
                answer = estimate(asked(cell.href))
                assert cell.text == gib(answer.peak[1], 1)
                assert (cell.state == "fits") == ((answer.headroom or 0) >= 0)


def test_remedies_are_links_that_fit() -> None:
    shown = at(ADDRESSES[1].replace("&method", "&show=more&method"))
    assert "What makes it fit" in text_of(shown.html)
    steps = re.findall(r'<ul class="steps">(.*?)</ul>', shown.html, re.DOTALL)[0]
    applied_to = links(steps)
    assert len(applied_to) >= 1
    assert estimate(asked(applied_to[-1] if len(applied_to) == 1 else links(shown.html[: shown.html.index('<ul class="steps">')])[-1])).fits


def test_a_comparison_has_a_column_for_each_scenario() -> None:
    html = at("/compare?s=%2F%3Fmodel%3Dgpt2%26gpu%3Drtx-4090&s=model%3Dgpt2%26task%3Dtrain&s=model%3Dnone").html
    assert html.count('<th scope="col"><a') == 3
    for query in ("model=gpt2&gpu=rtx-4090", "model=gpt2&task=train"):
        assert gib(estimate(asked(f"/?{query}")).peak[1]) in text_of(html)
    assert "not in the catalogue" in text_of(html)


def test_what_is_taken_along_gives_the_same_answer(run: Any) -> None:
    html = at(ADDRESSES[0]).html
    command, data, code = [text_of(one).strip() for one in re.findall(r"<pre[^>]*>(.*?)</pre>", html, re.DOTALL)]
    done = run(*command.split()[1:], "--json")
    assert json.loads(done.out) == json.loads(run("estimate", "--scenario", "-", "--json", stdin=data.encode()).out)
    assert "vramplan.estimate(" in code
