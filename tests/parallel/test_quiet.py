import subprocess
import sys

IMPORTS = """
import sys
import torch
import deepspeed
import megatron.core.parallel_state
import megatron_pixel.model.stages
import megatron_pixel.model.objectives
import megatron_pixel.parallel.engine
from megatron_pixel.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_pixel.parallel.mesh import mesh
model = ModelConfig(layers=1, hidden=16, heads=2, kv_heads=1, ffn=16, vocab_size=16, patch_size=2)
objectives = megatron_pixel.model.objectives.pretraining_objectives(model, LossConfig())
with mesh(ParallelConfig()):
    megatron_pixel.model.stages.build_stages(model, objectives, seed=0)
assert not {"torch._dynamo", "torch._inductor"} & set(sys.modules), "nothing is compiled, so no compiler is imported"
"""
SILENCE = "from megatron_pixel.parallel.quiet import silence_libraries; silence_libraries()"


def output(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout + done.stderr


def test_imports_and_a_first_model_say_nothing() -> None:
    assert output(SILENCE + IMPORTS) == ""


def test_other_warnings_and_records_go_through() -> None:
    program = """
import logging, warnings
warnings.warn("a warning of our own")
warnings.warn_explicit("Apex has caught fire", UserWarning, "file.py", 1, module="megatron.core.optimizer")
warnings.warn_explicit("Apex is not installed. Falling back", UserWarning, "file.py", 1, module="somebody.else")
warnings.warn_explicit("Apex is not installed. Falling back", UserWarning, "file.py", 2, module="megatron.core.x")
logger = logging.getLogger("DeepSpeed")
logger.warning("Setting accelerator to CPU. If you have GPU")
logger.warning("the disk is full")
logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='/usr'")
"""
    said = output(SILENCE + program)
    assert "a warning of our own" in said
    assert "Apex has caught fire" in said
    assert "file.py:1: UserWarning: Apex is not installed" in said
    assert "file.py:2" not in said
    assert "the disk is full" in said
    assert "Setting accelerator" not in said
    assert "No CUDA runtime" not in said
