import re
from pathlib import Path

from tsae import Dials

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_the_code_blocks_of_the_readme_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    l0, jaccard, tss = map(float, capsys.readouterr().out.split())
    assert 0 < l0 <= Dials().k
    assert 0 <= jaccard <= 1
    assert 0 <= tss <= 1


def test_the_readme_names_two_commands_and_the_tests_are_the_second():
    commands = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert len(commands) == 2
    assert "python experiment.py --out_dir=run_2" in commands[0]
    assert commands[1].strip().endswith("python -m pytest")
