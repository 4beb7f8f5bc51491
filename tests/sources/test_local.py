"""Models on this machine: every kind of path, and configs that are broken, hostile or no configs."""

import json
import os
from pathlib import Path

import pytest
from reader_samples import facts, gguf, info, safetensors, tensor, written

from vramplan.errors import BadFile, BadInput, NotFound
from vramplan.sources.choice import gguf_file, parts_of, safetensors_files
from vramplan.sources.local import find, parse_config, read_config

CONFIG = {"model_type": "llama", "hidden_size": 64}
WEIGHTS = safetensors({"w": tensor()}, 24)
FACTS = [("w", "fp32", (2, 3), 24)]
GGUF = gguf((), (info("w", (8,)),), data=32)
QUANT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}


def put(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        written(folder / name.replace("__", "."), content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def test_a_config(tmp_path: Path) -> None:
    path = put(tmp_path, config__json=CONFIG) / "config.json"
    found = find(path)
    assert (found.id, found.config, found.header, found.origin) == (str(path), CONFIG, None, f"file {path}")


def test_a_folder_with_safetensors_wins_over_gguf(tmp_path: Path) -> None:
    found = find(put(tmp_path, config__json=CONFIG, model__safetensors=WEIGHTS, model__gguf=GGUF))
    assert found.config == CONFIG
    assert found.header is not None
    assert facts(found.header) == FACTS
    assert (found.id, found.origin) == (str(tmp_path), f"folder {tmp_path}")


def test_a_folder_with_only_a_config_or_only_a_gguf(tmp_path: Path) -> None:
    found = find(put(tmp_path / "a", config__json=CONFIG))
    assert (found.config, found.header) == (CONFIG, None)
    found = find(put(tmp_path / "b", model__gguf=GGUF, mmproj__gguf=GGUF))
    assert found.config is None
    assert found.header is not None
    assert facts(found.header) == [("w", "F32", (8,), 32)]


def test_a_folder_with_an_index_or_with_shards_and_no_index(tmp_path: Path) -> None:
    other = safetensors({"v": tensor("U8", [3], 0, 3)}, 3)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"w": names[0], "v": names[1]}}
    folder = put(tmp_path, **{names[0]: WEIGHTS, names[1]: other, "stranger.safetensors": WEIGHTS, "model.safetensors.index.json": index})
    for path in (folder, folder / "model.safetensors.index.json"):
        header = find(path).header
        assert header is not None
        assert facts(header) == [("v", "uint8", (3,), 3), *FACTS] or facts(header) == [*FACTS, ("v", "uint8", (3,), 3)]
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(BadFile, match="tensor 'w' is there twice"):
        find(folder)
    (folder / "stranger.safetensors").unlink()
    for path in (folder, folder / names[1]):
        header = find(path).header
        assert header is not None
        assert {t.name for t in header.tensors} == {"v", "w"}
    (folder / names[0]).unlink()
    for path in (folder, folder / names[1]):
        with pytest.raises(NotFound, match="1 of the model's 2 files are not there, such as 'model-00001-of-00002"):
            find(path)


def test_a_safetensors_file_takes_the_config_beside_it(tmp_path: Path) -> None:
    path = put(tmp_path, x__safetensors=WEIGHTS) / "x.safetensors"
    assert find(path).config is None
    put(tmp_path, config__json=CONFIG)
    assert find(path).config == CONFIG


def test_modelopt_quantisation_beside_a_config_becomes_part_of_it(tmp_path: Path) -> None:
    put(tmp_path, config__json=CONFIG, hf_quant_config__json=QUANT)
    merged = {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}
    for path in (tmp_path, tmp_path / "config.json"):
        assert find(path).config == {**CONFIG, "quantization_config": merged}
    own = {**CONFIG, "quantization_config": {"quant_method": "fp8"}}
    assert find(put(tmp_path, config__json=own)).config == own
    put(tmp_path, config__json=CONFIG, hf_quant_config__json={"quantization": 3})
    with pytest.raises(BadFile, match=r"hf_quant_config.json: must hold an object named quantization"):
        find(tmp_path)


def test_several_ggufs_are_a_choice_that_is_the_users(tmp_path: Path) -> None:
    put(tmp_path, **{"m-Q4_K_M.gguf": GGUF, "m-Q8_0.gguf": GGUF})
    with pytest.raises(BadInput, match="holds 2 GGUF files; name one of Q4_K_M, Q8_0"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "nothing.json", "nothing.gguf", "nothing.safetensors", "nothing.safetensors.index.json"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match="no such file or folder"):
        find(tmp_path / name)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match=r"holds no config\.json, no \.safetensors and no \.gguf"):
        find(tmp_path / "empty")
    with pytest.raises(BadInput, match=r"must be a config\.json, a model folder, a \.safetensors or a \.gguf"):
        find(written(tmp_path / "model.bin", b""))
    (tmp_path / "folder.gguf" / "x").mkdir(parents=True)
    with pytest.raises(NotFound):
        find(tmp_path / "folder.gguf")
    for name in ("a\0b.json", "a" * 5000 + ".json", "a" * 5000):
        with pytest.raises(BadInput):
            find(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["config.json", "x.gguf", "x.safetensors"])
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadFile, match="not a regular file"):
        find(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable to root")
def test_an_unreadable_file(tmp_path: Path) -> None:
    put(tmp_path, config__json=CONFIG)
    (tmp_path / "config.json").chmod(0)
    with pytest.raises(BadFile, match="cannot be read: Permission denied"):
        find(tmp_path)


def test_strange_paths_stay_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as refusal:
        find(tmp_path / "a\n\x1b[31mb.json")
    assert str(refusal.value).isprintable()


BROKEN = {
    "empty": b"",
    "a list": b"[]",
    "a string": b'"llama"',
    "cut": b'{"model_type": "lla',
    "not UTF-8": b'{"model_type": "\xff"}',
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
    "half a surrogate pair": b'{"model_type": "\\udfff"}',
    "half a surrogate pair as a key": b'{"\\ud800": 1}',
    "a key twice": b'{"hidden_size": 64, "hidden_size": 4096}',
    "a nested key twice": b'{"text_config": {"a": 1, "a": 1}}',
    "NaN": b'{"hidden_size": NaN}',
    "infinity by another name": b'{"hidden_size": Inf}',
    "1e999": b'{"hidden_size": 1e999}',
    "an integer of a million digits": b'{"hidden_size": ' + b"9" * 10**6 + b"}",
    "an integer of 21 digits": b'{"hidden_size": 100000000000000000000}',
    "101 deep": b'{"a":' * 101 + b"1" + b"}" * 101,
    "100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lists 100,000 deep": b'{"a":' + b"[" * 100_000,
    "a comment": b'{"a": 1} // x',
    "two documents": b"{}{}",
    "10 MB": b'{"a": "' + b"x" * 10_000_000 + b'"}',
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_configs_are_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path / "config.json", data)
    with pytest.raises(BadFile) as refusal:
        read_config(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert len(str(refusal.value)) < 300 + len(str(path))
    assert str(refusal.value).isprintable()


def test_infinity_is_read_as_mamba_2_configs_have_it() -> None:
    assert parse_config(b'{"time_step_limit": [0.0, Infinity]}', "x") == {"time_step_limit": [0.0, float("inf")]}


def test_configs_at_the_limits_are_read() -> None:
    deep = b'{"a":' * 100 + b"1" + b"}" * 100
    assert parse_config(deep, "x")["a"]
    assert parse_config(b'{"a": -9223372036854775808, "b": 18446744073709551615, "c": "\\ud83d\\ude00"}', "x") == {
        "a": -(2**63),
        "b": 2**64 - 1,
        "c": "😀",
    }


@pytest.mark.parametrize("cut", range(60))
def test_a_config_cut_at_every_byte(cut: int) -> None:
    data = b'{"model_type": "llama", "sizes": [1, 2.5, null, {"a": "b"}]}'
    assert parse_config(data, "x")["model_type"] == "llama"
    with pytest.raises(BadFile):
        parse_config(data[:cut], "x")


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"), ("q4_k_m", "m-Q4_K_M.gguf"), ("Q4_K_S", "m-Q4_K_S.gguf"), ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"), ("IQ4_XS", "m-iq4_xs.gguf"), ("BF16", "BF16/m-BF16-00001-of-00002.gguf"),
        ("F16", "m.f16.gguf"), ("MXFP4_MOE", "m-MXFP4_MOE.gguf"), ("TQ1_0", "m-UD-TQ1_0.gguf"),
    ],
)  # fmt: skip
def test_a_quantisation_names_a_gguf(quant: str, file: str) -> None:
    names = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-UD-Q4_K_XL.gguf", "m-iq4_xs.gguf", "m.f16.gguf", "m-MXFP4_MOE.gguf", "m-UD-TQ1_0.gguf",
             "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "mmproj-BF16.gguf", "README.md"]  # fmt: skip
    assert gguf_file(names, quant, "x") == file


def test_a_quantisation_that_names_none_or_several() -> None:
    names = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "other-Q8_0.gguf"]
    with pytest.raises(BadInput, match=r"no GGUF file of 'Q4_K'; there are Q4_K_M, Q8_0; did you mean 'Q4_K_M'\?"):
        gguf_file(names, "Q4_K", "x")
    with pytest.raises(BadInput, match=r"x: holds 2 GGUF files; name one of m-Q8_0\.gguf, other-Q8_0\.gguf"):
        gguf_file(names, "Q8_0", "x")
    with pytest.raises(BadInput, match=r"x: holds 3 GGUF files; name one of m-Q4_K_M\.gguf, m-Q8_0\.gguf, other-Q8_0\.gguf"):
        gguf_file(names, None, "x")
    assert gguf_file(["config.json"], "Q8_0", "x") is None
    assert len(parts_of("x-00001-of-99999.gguf")) == 99_999
    assert parts_of("x-00000-of-00000.gguf") == ["x-00000-of-00000.gguf"]


def test_files_in_subfolders_and_other_files_are_not_the_model() -> None:
    assert safetensors_files(["onnx/model.safetensors", "pytorch_model.bin"], "x") == []
    assert safetensors_files(["model.safetensors", "model.safetensors.index.json", "b.safetensors"], "x") == ["model.safetensors"]
    assert safetensors_files(["b.safetensors", "a.safetensors"], "x") == ["a.safetensors", "b.safetensors"]
