import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import toys
import typer
from rich.console import Console

import experiment
from tsae_lab import definitions, terminal
from tsae_lab.jobs import commands


@pytest.mark.parametrize(
    ("wanted", "environment", "expected"), [(3, "2", 3), (0, "2", 2), (0, "4,2", 4), (0, "x", None)]
)
def test_threads_are_those_wanted_then_those_of_the_environment_then_all(
    monkeypatch, wanted, environment, expected
):
    monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert terminal.cpu_threads(wanted) == (expected or os.cpu_count())


MEMORY = """
from tsae_lab import terminal
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
terminal.fast_memory()
before, block = megabytes(), bytearray(200 << 20)
del block
kept = megabytes()
terminal.release_memory()
print(kept - before, megabytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_stay_in_the_process_until_they_are_released():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    held, released = map(int, done.stdout.split())
    assert held > 190
    assert released < 50


# Progress


@pytest.mark.parametrize(("total", "done"), [(7, 0), (1000, 0), (40, 31), (10, 5)])
def test_without_a_terminal_a_bar_is_a_line_per_tenth(capsys, total, done):
    with terminal.progress_bar("work", total, done) as advance:
        for _ in range(total - done):
            advance()
    lines = capsys.readouterr().err.splitlines()
    expected = [n for n in range(done + 1, total + 1) if 10 * n // total > 10 * (n - 1) // total]
    assert [line.split(", ")[0] for line in lines] == [f"work: {n}/{total}" for n in expected]
    assert lines[-1].endswith(", 0 s left")


def test_a_note_of_any_characters_ends_the_line(capsys):
    with terminal.progress_bar("work", 1) as advance:
        advance("[red] " + "x" * 200)
    assert capsys.readouterr().err == f"work: 1/1, 0 s left  [red] {'x' * 200}\n"


def test_on_a_terminal_a_bar_is_drawn_with_count_and_note(monkeypatch):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    with terminal.progress_bar("work", 2000, 1499) as advance:
        advance("loss 3.5")
    last = out.getvalue().split("\r")[-1]
    assert all(word in last for word in ("work", "1500/2000", "loss 3.5"))


# Tables


def test_a_table_has_words_to_the_left_numbers_to_the_right_and_no_markup(capsys):
    rows = [("[bold]one", 7, "a b"), ("two", 123456, "[3]")]
    terminal.print_table(
        "of [x]", ["name", "n", "text"], rows, words=("name", "text"), caption="[end]"
    )
    title, _, heading, _, first, second, _, end = capsys.readouterr().out.splitlines()
    assert (title.strip(), end.strip()) == ("of [x]", "[end]")
    assert heading == "┃ name      ┃      n ┃ text ┃"
    assert first == "│ [bold]one │      7 │ a b  │"
    assert second == "│ two       │ 123456 │ [3]  │"


def test_a_table_without_a_terminal_is_as_wide_as_its_columns_need(capsys):
    row = ["x" * 20] * 12
    terminal.print_table("wide", [f"column {i}" for i in range(12)], [row])
    assert capsys.readouterr().out.count("x" * 20) == 12


def info(n_seeds: int, *, temporal: bool = True) -> dict:
    keys = ("fve", "jaccard", "tss", "l0", "delta_ce", "kl", "ce_recovered", "alive_frac")
    names = [f"static_{key}" for key in keys] + [key for key in keys if temporal]
    means = {f"{name}_mean": i / 8 for i, name in enumerate(names)}
    apart = {f"difference_{key}_mean": 1.0 for key in keys if temporal}
    return {
        "iambic": {
            "means": means | apart,
            "stderrs": {f"{name}_stderr": i / 1000 for i, name in enumerate(names)},
            "final_info_dict": {"clean_ce": [0.0] * n_seeds},
            "seed_intervals": {"difference_fve": [0.5, 1.5]} if n_seeds > 1 else {},
            "intervals": {"TSAE - static SAE: jaccard": [[0.5, 0.25, 0.75], [0.0, 0.0, 0.0]]},
        }
    }


def test_the_table_of_the_trade_off_has_a_row_per_bridge_strength(capsys):
    points = [
        {"fve": 0.5, "jaccard": 0.25, "l0": 7.0, "tss": 0.125} | {"beta": b} for b in (0, 1.3)
    ]
    curve = {"dataset": "iambic", "seed": 2, "static": points[0] | {"l0": 8.0}, "tsae": points}
    terminal.show_tradeoff(curve)
    out = capsys.readouterr().out
    assert "iambic, seed 2" in out
    assert cells(out, "static SAE") == ["0.5000", "0.2500", "8.0000", "0.1250"]
    assert cells(out, "TSAE, beta 1.3") == ["0.5000", "0.2500", "7.0000", "0.1250"]


def test_the_tables_of_a_trade_off_over_k_have_the_points_and_what_is_taken_at_equal_births(capsys):
    point = dict.fromkeys(terminal.FRONTIER_MEASURES, 0.5) | {"k": 16}
    equal = {"k": 16, "births": 12.5, "static_residual": 0.25, "residual": None}
    curve = {"dataset": "iambic", "seed": 2, "static": [point], "tsae": [point | {"kl": 0.125}]}
    tables = terminal.frontier_tables(curve | {"equal_births": [equal | {"residual_taken": None}]})
    for title, (columns, lines) in tables.items():
        terminal.print_table(title, columns, lines)
    out = capsys.readouterr().out
    assert "iambic, seed 2: at equal births per token" in out
    assert cells(out, "TSAE, k 16") == ["0.5000", "0.5000", "0.1250", *["0.5000"] * 4]
    assert cells(out, "16") == ["12.5000", "0.2500", "-", "-"]  # outside the TSAE's range
    text = terminal.markdown_table(*tables["iambic, seed 2: at equal births per token"])
    assert text.splitlines()[1:] == [
        "| --- | ---: | ---: | ---: | ---: |",
        "| 16 | 12.5000 | 0.2500 | - | - |",
    ]


def cells(output: str, measure: str) -> list[str]:
    [line] = [line for line in output.splitlines() if line.startswith(f"│ {measure} ")]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_the_runs_table_has_mean_and_standard_error_of_both_models(capsys):
    terminal.show(info(3), "run_2")
    out = capsys.readouterr().out
    assert cells(out, "FVE")[2] == "+1.0000 (+0.5000 to +1.5000)"
    assert "TSAE - static, 95 % over seeds" in out
    assert cells(out, definitions.label("l0"))[2] == "+1.0000"
    assert "iambic, run_2: mean ± standard error over 3 seeds" in out
    assert cells(out, "FVE")[:2] == ["0.0000 ± 0.0000", "1.0000 ± 0.0080"]
    assert cells(out, definitions.label("alive_frac"))[:2] == ["0.8750 ± 0.0070", "1.8750 ± 0.0150"]
    terminal.show(info(1), "run_2")
    out = capsys.readouterr().out
    assert cells(out, "FVE")[2] == "+1.0000"
    assert "95 %" not in out  # one seed has no spread
    terminal.show(info(1, temporal=False), "run_0")
    assert cells(capsys.readouterr().out, "CE recovered") == ["0.7500 ± 0.0060"]


def test_the_studys_table_has_differences_and_the_interval_of_seed_0(capsys):
    terminal.show_study(info(2))
    out = capsys.readouterr().out
    assert "mean ± standard error over 2 seeds" in out
    assert "TSAE - static, 95 % over seeds" in out
    assert cells(out, "FVE")[2] == "+1 (+0.5 to +1.5)"
    overlap = cells(out, "Jaccard overlap of neighbours")
    assert overlap == ["0.125 ± 0.001", "1.125 ± 0.009", "+1", "+0.2500 to +0.7500"]
    assert cells(out, definitions.label("l0")) == ["0.375 ± 0.003", "1.375 ± 0.011", "+1", ""]
    assert definitions.label("splice_kept_0") not in out
    terminal.show_study(info(1))
    out = capsys.readouterr().out
    assert cells(out, definitions.label("l0")) == ["0.375", "1.375", "+1", ""]
    assert "over seeds" not in out


# Errors


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ValueError("k of\n [1, 2] is [red]wrong"), "error: k of [1, 2] is [red]wrong", 1),
        (OSError(errno.ENOSPC, "No space"), f"error: [Errno {errno.ENOSPC}] No space", 1),
        (KeyboardInterrupt(), "stopped; the same command continues", 130),
    ],
)
def test_an_error_of_the_user_or_the_disk_is_one_line_and_an_exit_code(capsys, error, line, code):
    with pytest.raises(typer.Exit) as caught, terminal.one_line_errors():
        raise error
    assert caught.value.exit_code == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_a_lack_of_memory_is_one_line_and_another_fault_of_torch_is_none(capsys):
    for ask in (lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)):
        with pytest.raises(typer.Exit) as caught, terminal.one_line_errors():
            ask()
        said = capsys.readouterr().err
        assert caught.value.exit_code == 1
        assert said.startswith("error: not enough memory")
        assert said.count("\n") == 1
    with pytest.raises(RuntimeError, match="must match"), terminal.one_line_errors():
        torch.zeros(2) + torch.zeros(3)


def test_more_memory_than_the_machine_has_is_refused():
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    terminal.require_memory(there, "it")
    with pytest.raises(ValueError, match=r"^it takes [\d.,]+ GiB of memory; got a machine with"):
        terminal.require_memory(there + 1, "it")


@pytest.fixture
def heard():
    """Ctrl-C is heard, which a shell makes its background processes ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_asked_to_end_says_how_it_goes_on(capsys, number):
    before = signal.getsignal(number)

    def asked() -> None:
        with terminal.one_line_errors():
            os.kill(os.getpid(), number)
            time.sleep(9)

    with pytest.raises(typer.Exit) as caught:
        asked()
    assert caught.value.exit_code == 128 + number
    assert "the same command continues" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("heard")
def test_a_process_that_is_asked_twice_ends_at_once_and_one_that_ignores_ctrl_c_goes_on():
    pid = os.fork()
    if not pid:  # it cleans up for long
        with contextlib.suppress(BaseException), terminal.one_line_errors():
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(9)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with terminal.one_line_errors():
        os.kill(os.getpid(), signal.SIGINT)


BREAKS_OFF = """
import os, signal, sys
class Breaking:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Breaking())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {root!r})
import experiment
"""


def test_ctrl_c_while_libraries_are_imported_ends_in_silence():
    script = BREAKS_OFF.format(root=str(toys.ROOT))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert experiment.app  # what imports it has its own again
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


@pytest.mark.parametrize(
    ("text", "kind", "numbers"), [("4,2,4", int, [4, 2]), ("0.5", float, [0.5])]
)
def test_the_numbers_of_an_option_are_listed_once_each(text, kind, numbers):
    assert commands.listed("ks", text, kind) == numbers
    with pytest.raises(ValueError, match=r"--ks needs .*numbers, separated by commas; got 'a'"):
        commands.listed("ks", "a", kind)


def test_an_error_of_the_program_is_not_hidden():
    with pytest.raises(KeyError), terminal.one_line_errors():
        raise KeyError("a bug")


@pytest.mark.parametrize("wanted", [-1, 1_025, 10**8])
def test_threads_that_no_process_can_have_are_refused(wanted):
    with pytest.raises(ValueError, match=f"^threads needs 0 <= threads <= 1,024; got {wanted}$"):
        terminal.cpu_threads(wanted)


def test_threads_are_those_wanted_else_the_users_else_the_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7,2")
    assert (terminal.cpu_threads(4), terminal.cpu_threads()) == (4, 7)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert terminal.cpu_threads() == 3


def test_what_could_not_be_computed_is_a_dash(capsys):
    text = info(2)
    absent = ("static_l0_mean", "difference_l0_mean", "ce_recovered_mean")
    text["iambic"]["means"] |= dict.fromkeys(absent)
    text["iambic"]["stderrs"] |= {"fve_stderr": None}  # a single seed has it
    assert terminal.cell(None, ".2f") == terminal.between(None, 1.0, ".2f") == "-"
    assert (terminal.cell(0.5, ".2f"), terminal.between(-1.0, 1.0, "+.1f")) == (
        "0.50",
        "-1.0 to +1.0",
    )
    terminal.show_study(text)
    assert cells(capsys.readouterr().out, definitions.label("l0")) == [
        "-",
        "1.375 ± 0.011",
        "-",
        "",
    ]
    terminal.show(text, "run_2")
    out = capsys.readouterr().out
    assert cells(out, "CE recovered")[1] == "-"
    assert cells(out, "FVE")[1] == "1.0000"


HELD = """
from tsae_lab import terminal
before = terminal.resident_mib()
held = b"1" * 2**28
print(terminal.more_than(before))
"""


def test_memory_is_told_beside_what_was_held_before(monkeypatch):
    out = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert float(out.stdout) == pytest.approx(256, rel=0.02)
    before = terminal.resident_mib()
    assert terminal.more_than(1e9) == 0
    assert terminal.more_than(None) is None
    monkeypatch.setattr(terminal, "resident_mib", lambda: None)
    assert terminal.more_than(before) is None
