"""`python plot.py`: report.html of every run_* here, as `python experiment.py report` writes it."""

import typer

from tsae_lab.jobs.reporting import report_command

typer.run(report_command)
