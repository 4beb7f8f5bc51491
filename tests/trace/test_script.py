"""Users' own code, traced: a plain loop, transformers' Trainer, a script that fails; against the same step traced as a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
for extra in ("transformers", "peft", "bitsandbytes", "accelerate"):
    pytest.importorskip(extra)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GPT2 = "openai-community/gpt2"
LOOP = """
import sys
import torch
from transformers import AutoModelForCausalLM

assert torch.cuda.is_available() and sys.argv[1:] == ["--steps", "2"]
model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2", dtype=torch.float32).to("cuda").train()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for step in range(2):
    ids = torch.zeros((4, 1024), dtype=torch.long).cuda()
    assert ids.device.type == "cuda" and ids.is_cuda
    output = model(input_ids=ids, labels=ids.clone(), use_cache=False)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{step} {output.loss.item():.3f} {torch.cuda.max_memory_allocated()}")
"""
TRAINER = """
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

class Data(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, at): return {name: torch.zeros(1024, dtype=torch.long) for name in ("input_ids", "labels")}

model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2", dtype=torch.float32)
arguments = TrainingArguments(output_dir=OUT, per_device_train_batch_size=4, max_steps=2, save_strategy="no", report_to=[],
    optim="adamw_torch_fused", max_grad_norm=0, disable_tqdm=True)
Trainer(model=model, args=arguments, train_dataset=Data()).train()
"""


def scenario_trace(**keys: Any) -> Any:
    from vramplan.scenario import scenario
    from vramplan.trace import trace_scenario

    loop = keys.pop("loop", "plain")
    return trace_scenario(scenario({"model": GPT2, "task": "train", "micro_batch": 4, "sequence_length": 1024, **keys}), loop=loop)


def test_a_loop_takes_what_its_scenario_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vramplan.trace import run

    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    made = run(str(script), ["--steps", "2"])
    expected = scenario_trace(precision="fp32")
    assert made.peak.nbytes == pytest.approx(expected.peak.nbytes, rel=0.001)
    for category in ("weights", "optimizer states", "saved activations", "temporaries"):
        assert made.peak.categories[category] == pytest.approx(expected.peak.categories[category], rel=0.001)
    printed = capsys.readouterr().out.split()
    assert printed[:2] == ["0", "1.000"]
    assert int(printed[-1]) == made.peak.nbytes


def test_transformers_trainer_runs_as_it_is(tmp_path: Path) -> None:
    from vramplan.trace import run

    script = tmp_path / "trainer.py"
    script.write_text(TRAINER.replace("OUT", repr(str(tmp_path))))
    made = run(str(script))
    assert made.steady.nbytes == pytest.approx(scenario_trace(precision="fp32", loop="trainer").peak.nbytes, rel=0.005)


def test_recording_is_a_context_manager() -> None:
    from vramplan.trace import recording

    with recording(gpu="rtx-4090") as recorded:
        assert torch.cuda.get_device_capability() == (8, 9)
        host = torch.ones(1 << 20)
        model = torch.nn.Linear(1024, 1024).to("cuda")
        model(host.to("cuda").view(-1, 1024)).sum().backward()
        assert model.weight.grad.device.type == "cuda"
        assert host.device.type == "cpu"
    trace = recorded.trace
    assert trace.peak.categories["weights"] == 4 * (1024 * 1024 + 1024)
    assert trace.peak.categories["workspace"] == 2 * 8_519_680
    assert not torch.cuda.is_available() or torch.version.cuda is not None


def test_a_failing_script_shows_its_own_error_and_what_was_recorded(tmp_path: Path) -> None:
    from vramplan.trace.script import TraceFailed, run

    script = tmp_path / "fails.py"
    script.write_text("import torch\nx = torch.ones(1 << 20, device='cuda')\nraise ValueError('out of coffee')\n")
    with pytest.raises(
        TraceFailed, match=r"fails.py, line 3, failed while it was traced: ValueError: out of coffee; .*peak 4.0 MiB"
    ) as caught:
        run(str(script))
    assert caught.value.trace.peak.nbytes == 4 << 20


def test_the_command_gives_what_follows_a_script_to_it(tmp_path: Path) -> None:
    from vramplan.cli import vramplan

    script = tmp_path / "echo.py"
    script.write_text("import sys, torch\nprint(sys.argv[1:])\ntorch.ones(1 << 20, device='cuda')\n")
    result = CliRunner().invoke(vramplan, ["trace", "--gpu", "t4", str(script), "--json", "-x"], standalone_mode=False)
    lines = result.output.splitlines()
    assert lines[0] == "['--json', '-x']"
    assert lines[1].startswith("echo.py: peak 4.0 MiB allocated")
    assert "Fits on Tesla T4" in result.output


def test_the_command_traces_a_model(tmp_path: Path) -> None:
    import json

    from vramplan.cli import vramplan

    arguments = ["trace", GPT2, "--precision", "fp32", "--micro-batch", "4", "--sequence-length", "1024", "--json"]
    result = CliRunner().invoke(vramplan, [*arguments, "--snapshot", str(tmp_path / "s.pickle")], standalone_mode=False)
    data = json.loads(result.output)
    assert data["quantities"]["peak_allocated"] == scenario_trace(precision="fp32").peak_allocated
    assert data["quantities"]["peak_reserved"] > data["quantities"]["peak_allocated"]
    assert data["peak"]["moment"] == "backward"
    assert (tmp_path / "s.pickle").stat().st_size > 0
