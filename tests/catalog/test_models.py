"""The committed models.txt: complete, consistent, and read without parsing all of it."""

import importlib.util
import json
from importlib.resources import files
from pathlib import Path

import pytest

from vramplan.catalog import models
from vramplan.catalog.models import all_ids, all_models, find_model, official_organisations, search_models

ROOT = Path(__file__).parents[2]
LINES = (files("vramplan.catalog") / "models.txt").read_text(encoding="utf-8").splitlines()
CONFIGS = [line for line in LINES if line.startswith("{")]
MODELS = [line.split("\t") for line in LINES if line[0] not in "#@{"]


def test_ids_are_unique_whatever_their_case_and_all_there() -> None:
    ids = [columns[0] for columns in MODELS]
    assert len(ids) == len({id.lower() for id in ids}) == len(all_ids()) == 6005
    assert all(id.count("/") == 1 and id.isascii() for id in ids)


def test_every_architecture_stands_once_and_has_a_model() -> None:
    assert len(CONFIGS) == 1058
    assert len({json.dumps(json.loads(config), sort_keys=True) for config in CONFIGS}) == len(CONFIGS)
    starts = [line.startswith("{") for line in LINES]
    assert not any(first and second for first, second in zip(starts, [*starts[1:], True], strict=True))


def test_the_file_is_in_its_canonical_form() -> None:
    assert [json.dumps(json.loads(config), separators=(",", ":")) for config in CONFIGS] == CONFIGS
    assert all(1 < len(columns) <= 9 and columns[-1] != "-" and "" not in columns for columns in MODELS)
    blocks: list[list[str]] = []
    for line in LINES:
        if line[0] == "{":
            blocks.append([json.loads(line)["model_type"]])
        elif line[0] not in "#@":
            blocks[-1].append(line.split("\t")[0].lower())
    assert all(block[1:] == sorted(block[1:]) for block in blocks)
    assert [block[:2] for block in blocks] == sorted(block[:2] for block in blocks)


def test_all_models_and_look_ups_agree() -> None:
    everything = list(all_models())
    assert len(everything) == len(MODELS)
    assert all(find_model(entry.id) == entry for entry in everything[::53])
    assert all(entry.source and entry.check for entry in everything)


def test_fields_of_a_verbatim_and_of_a_cut_entry() -> None:
    v3 = find_model("deepseek-ai/DeepSeek-V3")
    assert v3.verbatim
    assert v3.config["quantization_config"]["weight_block_size"] == [128, 128]  # type: ignore[index]
    assert (v3.config["kv_lora_rank"], v3.config["num_nextn_predict_layers"]) == (512, 1)
    llama = find_model("meta-llama/Llama-3.1-8B")
    assert not llama.verbatim
    assert (llama.context_length, llama.licence, llama.released) == (131072, "llama3.1", "2024-07-14")
    assert llama.downloads is not None
    assert llama.downloads > 100_000
    tuned = find_model("JackFram/llama-160m")
    assert (tuned.context_length, tuned.source, tuned.note) == (None, models._words()["source", "llmfit"], None)


def test_models_of_one_architecture_keep_their_own_context_length() -> None:
    entries = list(all_models())  # keeps the configs alive, so that their id() is theirs
    by_config: dict[int, set[int | None]] = {}
    for entry in entries:
        by_config.setdefault(id(entry.config), set()).add(entry.context_length)
    assert any(len(lengths - {None}) > 1 for lengths in by_config.values())


def test_a_look_up_by_id_parses_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str | bytes] = []
    loads = json.loads

    def counting(text: bytes) -> object:
        parsed.append(text)
        return loads(text)

    monkeypatch.setattr(models.json, "loads", counting)
    find_model("qwen/qwen3-8b")
    find_model("gemma 3 27b")
    assert len(parsed) == 2


def test_search() -> None:
    assert search_models("llama 3.1 8b", limit=2)[0].id == "meta-llama/Llama-3.1-8B"
    found = search_models("mixtral", limit=100)
    assert len(found) > 10
    assert all("mixtral" in entry.id.lower() for entry in found)
    assert search_models("no such model") == []
    popular = search_models(limit=3)
    assert len(popular) == 3
    assert all(entry.id.split("/")[0].lower() in official_organisations() for entry in popular)


def test_the_referee_counts_belong_to_the_catalogue() -> None:
    counts = [json.loads(line) for line in (ROOT / "tests/data/parameters.jsonl").read_text().splitlines()]
    meta = {count["id"]: count.get("params_meta") for count in counts}
    uncounted = {"moonshotai/Kimi-K3", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"}  # their classes are not in transformers
    uncounted |= {"sgl-project/DeepSeek-V4-Flash-FP8", "sgl-project/DeepSeek-V4-Pro-FP8"}
    assert {id for id in all_ids() if meta.get(id) is None} == uncounted
    assert set(meta) <= set(all_ids())
    entries = list(all_models())  # keeps the configs alive, so that their id() is theirs
    by_config: dict[int, set[int | None]] = {}
    for entry in entries:
        by_config.setdefault(id(entry.config), set()).add(meta.get(entry.id))
    assert all(len(values) == 1 for values in by_config.values())
    kinds = ("embed", "lm_head", "linear", "experts", "router", "norm_other", "ssm_conv_other", "vision")
    wrong = [c["id"] for c in counts if "breakdown" in c and sum(c["breakdown"].get(kind, 0) for kind in kinds) != c["params_meta"]]
    assert wrong == []


def test_the_build_script_groups_deduplicates_and_shortens(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_catalog", ROOT / "scripts/build_catalog.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    shape = {"model_type": "llama", "hidden_size": 8}
    rows = [
        {"id": "b/Net", "config": shape, "params_meta": 5, "license": "mit", "hf_downloads": 3},
        {"id": "a/net", "config": dict(reversed(shape.items())), "params_meta": 5, "license": None, "hf_downloads": 0, "context_length": 4},
        {"id": "A/Net", "config": shape},
        {"id": "c/Other", "config": {"model_type": "bert"}, "license": None, "hf_downloads": None, "tie_ambiguous": "yes", "check": "odd"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = build.models(str(tmp_path / "counts.jsonl"), str(tmp_path / "in.jsonl"))
    assert text == build.HEAD + "\n".join(
        [
            '{"model_type":"bert"}',
            f"c/Other\t-\t-\t-\t-\t-\tllmfit\todd\t{build.TIE}",
            '{"hidden_size":8,"model_type":"llama"}',
            "A/Net\t0\t-\t4",
            "b/Net\t3\tmit",
            "",
        ]
    )
    assert (tmp_path / "counts.jsonl").read_text().splitlines() == ['{"id":"A/Net","params_meta":5}', '{"id":"b/Net","params_meta":5}']
    assert "\n".join(LINES).startswith(build.HEAD)
