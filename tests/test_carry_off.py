"""`tsae.py` and `tsae_kernels.py` work as two files elsewhere, with torch and jaxtyping."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Our two files may import these alone; what torch and jaxtyping import themselves is their affair.
PROGRAM = """
import builtins, sys
allowed = {"torch", "jaxtyping", "tsae_kernels"} | set(sys.stdlib_module_names)
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    ours = (globals or {}).get("__name__") in ("tsae", "tsae_kernels")
    if ours and name.split(".")[0] not in allowed:
        raise ImportError(f"{name} is not there")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
import torch
import tsae

seed = torch.Generator().manual_seed(0)
static = tsae.init_static(torch.zeros(6), 24, generator=seed)
params = tsae.from_static(static, scale=1.0, hidden_enc=3, hidden_dec=5, generator=seed)
named = {name: tensor.requires_grad_() for name, tensor in tsae.tensors(params).items()}
x, dials = torch.randn(2, 5, 6, generator=seed), tsae.Dials(k=3)
x_hat, codes, state = tsae.forward(tsae.params_from(named), x, dials)
(x - x_hat).square().sum().backward()
assert all(named[n].grad.isfinite().all() for n in named if n != "scale")
assert named["W_dec"].grad.any() and named["W_enc"].grad.any() and named["bridge"].grad.any()
life = tsae.begin_chunks(tsae.start_lifecycle(24, x), torch.tensor([True, False]))
life = tsae.advance(life, codes, torch.ones(2, 5))
print(tsae.__file__, tuple(x_hat.shape), state.memory.pushed, life.tokens.item())
"""


def test_the_two_files_of_the_model_run_in_a_folder_of_their_own(tmp_path):
    for name in ("tsae.py", "tsae_kernels.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1) == [str(tmp_path / "tsae.py"), "(2, 5, 6) 5 10\n"]
