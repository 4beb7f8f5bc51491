"""The command line: exit statuses, one line for each bad input, JSON, scenarios from files, tables, colour, pipes."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vramplan
from harness import Run
from vramplan.cli import vramplan as group
from vramplan.measured.validate import read
from vramplan.report.schema import ANSWER
from vramplan.scenario import keys

LLAMA = "meta-llama/Llama-3.1-8B"
PROGRAM = [sys.executable, "-c", "from vramplan.cli import main; main()"]


def process(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False, timeout=60, **more)


# ---- exit statuses -------------------------------------------------------------------------------------------------------
def test_answered_is_0_and_check_says_whether_it_fits() -> None:
    fits = process("estimate", LLAMA, "--gpu", "rtx-4090", "--context", "8192", "--check")
    assert (fits.returncode, fits.stderr) == (0, "")
    assert fits.stdout.startswith("Fits: ")
    lacks = process("estimate", LLAMA, "--gpu", "rtx-3060", "--context", "8192", "--check")
    assert (lacks.returncode, lacks.stderr) == (1, "")
    assert lacks.stdout.startswith("Does not fit: ")


def test_not_fitting_without_check_is_an_answer(run: Run) -> None:
    assert run("estimate", LLAMA, "--gpu", "rtx-3060").status == 0
    assert run("estimate", LLAMA, "--check").status == 0, "nothing to fit into"


def test_check_looks_at_every_row(run: Run) -> None:
    assert run("estimate", LLAMA, "--gpu", "h100", "--gpu", "rtx-3060", "--check").status == 1
    assert run("estimate", LLAMA, "--gpu", "h100", "--gpu", "h200", "--check").status == 0


def test_wrong_input_is_2_in_a_process_of_its_own() -> None:
    done = process("estimate", LLAMA, "--gpu", "rtx-4091")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vramplan: GPU 'rtx-4091': not in the catalogue; did you mean 'rtx-4090' or 'rtx-4090-d' or 'rtx-5090'?\n"


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000,
}  # fmt: skip
CONFIGS = {
    "empty": b"",
    "cut short": b'{"model_type": "llama"',
    "no object": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
    "no model_type": b'{"hidden_size": 64}',
    "another type": b'{"model_type": "lama"}',
    "type is a number": b'{"model_type": 7}',
    "twice": b'{"model_type": "llama", "model_type": "gpt2"}',
    "NaN": b'{"model_type": "llama", "hidden_size": NaN}',
    "huge integer": b'{"model_type": "llama", "hidden_size": 1' + b"0" * 10_000 + b"}",
    "deep": b'{"model_type": "llama", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "negative": json.dumps({**CONFIG, "hidden_size": -64}).encode(),
    "zero": json.dumps({**CONFIG, "num_hidden_layers": 0}).encode(),
    "a string for a number": json.dumps({**CONFIG, "vocab_size": "1000"}).encode(),
    "a fraction": json.dumps({**CONFIG, "num_attention_heads": 4.5}).encode(),
    "too many layers": json.dumps({**CONFIG, "num_hidden_layers": 2**60}).encode(),
    "missing": json.dumps({key: value for key, value in CONFIG.items() if key != "vocab_size"}).encode(),
    "unknown quantisation": json.dumps({**CONFIG, "quantization_config": {"quant_method": "magic"}}).encode(),
}
FILES = {
    "empty.gguf": b"",
    "no.gguf": b"not a GGUF file at all",
    "long.gguf": b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2,
    "empty.safetensors": b"",
    "long.safetensors": (2**60).to_bytes(8, "little") + b"{}",
    "cut.safetensors": (100).to_bytes(8, "little") + b'{"a":',
}


def one_line(done: Any) -> None:
    """Status 2, nothing on stdout, one line without a traceback on stderr."""
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("vramplan: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert len(done.err) < 1500


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_config_is_one_line(name: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(CONFIGS[name])
    one_line(run("estimate", str(path), "--gpu", "rtx-4090"))
    if name != "unknown quantisation":  # which is no matter of shapes
        one_line(run("inspect", str(path)))


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    one_line(run("inspect", str(tmp_path / name)))
    one_line(run("estimate", str(tmp_path / name)))


@pytest.mark.parametrize(
    "words",
    [
        "estimate gpt2 --context 0",
        "estimate gpt2 --context 1e3",
        "estimate gpt2 --context 99999999999999999999",
        "estimate gpt2 --context 4096",
        "estimate gpt2 --batch -1",
        "estimate gpt2 --gpu ''",
        "estimate gpt2 --gpu-memory -1GiB",
        "estimate gpt2 --gpu-memory-utilization 1.5",
        "estimate gpt2 --engine-version latest",
        "estimate gpt2 --kv-dtype q8_2 --engine llama.cpp",
        "estimate gpt2 --task fly",
        "estimate gpt2 --tensor-parallel 5",
        "estimate gpt2 gpt2",
        "estimate gpt2 --scenario nothing.json",
        "estimate --layers two --hidden 4 --heads 1 --ffn 4 --vocab 9",
        "estimate --layers 2 --hidden 4",
        "estimate /",
        "estimate nothing/",
        "inspect",
        "inspect nothing.safetensors",
        "models --limit many",
        "validate nothing.jsonl",
        "compare gpt2",
        "--nope",
        "",
    ],
)  # fmt: skip
def test_bad_words_are_one_line(words: str, run: Run) -> None:
    if words:
        one_line(run(*shlex.split(words)))
    else:
        done = run()
        assert done.status == 2
        assert "Commands:" in done.out


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"model": "gpt2", "contxt": 1}',
        b'{"model": "gpt2", "model": "gpt2"}',
        b'{"context_length": NaN}',
        b"\xff",
        b"[" * 10**6,
    ],
)
def test_a_bad_scenario_on_standard_input_is_one_line(text: bytes, run: Run) -> None:
    one_line(run("estimate", "--scenario", "-", stdin=text))


def test_a_model_that_is_nowhere_is_one_line_with_the_nearest(run: Run) -> None:
    done = run("estimate", "meta-lama/Lama-3.1-8B")
    one_line(done)
    assert "not in the catalogue; did you mean 'meta-llama/Llama-3.1-8B'" in done.err


# ---- JSON ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words",
    [
        f"{LLAMA} --gpu rtx-4090 --context 8192",
        f"{LLAMA} --weights Q4_K_M --kv-dtype q8_0",
        "openai/gpt-oss-20b --gpu rtx-4080 --engine-version 0.19.0",
        "google/gemma-3-4b-it --engine transformers --gpu-memory 8GB",
        "ai21labs/AI21-Jamba-Mini-1.5 --engine llama.cpp",
        "google-bert/bert-base-uncased --engine transformers",
    ],
)
def test_json_is_what_the_interface_says(words: str, run: Run) -> None:
    done = run("estimate", *shlex.split(words), "--json")
    answer = json.loads(done.out)
    jsonschema.Draft202012Validator.check_schema(ANSWER)
    jsonschema.validate(answer, ANSWER)
    assert done.status == 0
    again = run("estimate", "--scenario", "-", "--json", stdin=json.dumps(answer["scenario"]).encode())
    assert {**json.loads(again.out), "assumptions": []} == {**answer, "assumptions": []}


def test_json_of_several_is_a_list(run: Run) -> None:
    for verb in ("estimate", "compare"):
        answers = json.loads(run(verb, LLAMA, "--gpu", "h100", "--gpu", "rtx-4090", "--json").out)
        jsonschema.validate(answers, {"type": "array", "items": ANSWER})
        assert [answer["gpus"][0]["name"] for answer in answers] == ["H100 SXM5 80 GB", "GeForce RTX 4090"]


def test_the_python_answer_is_the_same(run: Run) -> None:
    asked = vramplan.estimate(LLAMA, gpu="rtx-4090", context_length=8192)
    assert json.loads(run("estimate", LLAMA, "--gpu", "rtx-4090", "--context", "8k", "--json").out) == asked.to_dict()
    assert run("estimate", LLAMA, "--gpu", "rtx-4090", "--context", "8k").out == f"{asked}\n"


# ---- scenarios -----------------------------------------------------------------------------------------------------------
def test_a_scenario_comes_from_a_file_or_standard_input_and_options_win(run: Run, tmp_path: Path) -> None:
    given = {"model": LLAMA, "gpu": "rtx-4090", "context_length": 4096}
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(given))
    plain = run("estimate", LLAMA, "--gpu", "rtx-4090", "--context", "4096").out
    assert run("estimate", "--scenario", str(path)).out == plain
    assert run("estimate", "--scenario", "-", stdin=path.read_bytes()).out == plain
    assert (
        run("estimate", "--scenario", str(path), "--gpu", "h100", "--json").out
        == run("estimate", LLAMA, "--gpu", "h100", "--context", "4096", "--json").out
    )
    assert (
        json.loads(run("estimate", "gpt2", "--scenario", str(path), "--context", "99", "--json").out)["model"]["id"]
        == "openai-community/gpt2"
    )


def test_every_key_of_a_scenario_is_an_option_of_the_verbs_that_take_one() -> None:
    for verb in ("estimate", "compare"):
        flags = {flag for parameter in group.get_command(None, verb).params for flag in parameter.opts}  # type: ignore[arg-type, union-attr]
        assert {f"--{key.replace('_', '-')}" for key in keys()} <= flags


def test_a_decoder_described_by_hand_is_a_llama(run: Run) -> None:
    words = "--layers 32 --hidden 4096 --heads 32 --kv-heads 8 --ffn 14336 --vocab 128256 --head-dim 128"
    more = ["--context", "8192", "--engine", "transformers", "--json"]
    by_hand, named = (json.loads(run("estimate", *given, *more).out) for given in (shlex.split(words), (LLAMA,)))
    assert by_hand["quantities"] == named["quantities"]


# ---- tables and lists ----------------------------------------------------------------------------------------------------
def test_every_combination_of_repeated_options_is_a_row(run: Run) -> None:
    words = "--weights bf16 --weights fp8 --context 4096 --context 8192 --context 16384 --kv-dtype auto --kv-dtype fp8 --gpu h100"
    head, rule, *rows = run("estimate", LLAMA, *words.split()).out.splitlines()[2:]
    assert head.split()[:4] == ["weights", "context", "KV", "type"]
    assert len(rows) == 2 * 3 * 2
    assert {len(rule)} >= {len(row) for row in rows}
    assert [row.split()[:3] for row in rows[:2]] == [["bf16", "4,096", "auto"], ["bf16", "4,096", "fp8"]]


def test_models_and_gpus_as_json(run: Run) -> None:
    models = json.loads(run("models", "qwen3", "30b", "--json", "--limit", "3").out)
    assert len(models) == 3
    assert all("qwen3" in model["id"].lower() and "30b" in model["id"].lower() for model in models)
    card = next(gpu for gpu in json.loads(run("gpus", "4090", "--json").out) if gpu["id"] == "rtx-4090")
    assert (card["capacity"], card["usable"]) == (24564 * 2**20, 24052 * 2**20)
    assert len(json.loads(run("gpus", "--json").out)) == 181


def test_engines_say_how_well_they_were_validated(run: Run) -> None:
    """The carried table is what replaying the carried measurements gives; one engine by a program's name; training beside inference."""
    listed = json.loads(run("engines", "--json").out)
    assert {about["task"] for about in listed} == {"infer", "train"}
    vllm = next(about for about in listed if about["engine"] == "vllm")
    rows = [m for m in read(Path(__file__).parent.parent / "data" / "measured" / "infer.jsonl") if m["scenario"].get("engine") == "vllm"]
    assert {name: summary["n"] for name, summary in vllm["measured"].items()} == Counter(m["observed"]["quantity"] for m in rows)
    assert vllm["measured"]["weights"]["p90_abs"] < 0.01
    assert run("engines", "ollama").out.startswith("llama.cpp (")
    assert "median" in run("engines", "vllm").out
    assert "no measurement" in run("engines", "mlx").out


def test_inspect_as_json_counts_every_weight(run: Run) -> None:
    found = json.loads(run("inspect", LLAMA, "--json").out)
    assert found["parameters"] == sum(found["parts"].values()) == 8_030_261_248
    sizes = 0
    for weight in found["weights"]:
        size = weight["layers"] * weight["experts"]
        for dim in weight["shape"]:
            size *= dim
        sizes += size
    assert sizes == found["parameters"]


def test_inspect_lists_the_tensors(run: Run) -> None:
    plain, full = (run("inspect", LLAMA, *more).out for more in ((), ("--tensors",)))
    assert full.startswith(plain.rstrip("\n"))
    assert "model.layers.{i}.mlp.down_proj.weight" in full
    assert "model.layers.{i}.mlp.down_proj.weight" not in plain


# ---- terminals and pipes -------------------------------------------------------------------------------------------------
def on_a_terminal(**environment: str) -> bytes:
    """What the command prints on a pseudo-terminal."""
    main, side = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | environment
    done = subprocess.Popen([*PROGRAM, "estimate", LLAMA, "--gpu", "rtx-4090", "--context", "8192"], stdout=side, env=env)
    os.close(side)
    text = b""
    while True:
        try:
            block = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        text += block
    os.close(main)
    assert done.wait(60) == 0
    return text


def test_colour_only_on_a_terminal_and_never_with_no_color() -> None:
    assert b"\x1b[34mW\x1b[0m" in on_a_terminal()
    assert b"\x1b" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b" not in process("estimate", LLAMA, "--gpu", "rtx-4090").stdout


def test_colour_changes_nothing_but_colour() -> None:
    import re

    plain = process("estimate", LLAMA, "--gpu", "rtx-4090", "--context", "8192").stdout
    assert re.sub(r"\x1b\[\d+m", "", on_a_terminal().decode().replace("\r\n", "\n")) == plain


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.Popen([*PROGRAM, "gpus"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (0, b"")


def test_version_and_help(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version").out.split()[-1] == version("vramplan")
    assert "Usage: vramplan estimate" in run("estimate", "-h").out
