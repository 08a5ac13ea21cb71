"""Opening a saved model: what every command on one is asked, opens and writes.

A model is a folder that a run has saved, or an SAE of SAELens, dictionary_learning or sparsify; its
configuration names the language model and the hook. What can be wrong with a request is said before
the language model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

import tsae
from tsae_lab import files
from tsae_lab.data import language_model
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import checkpoint, identity, plan
from tsae_lab.jobs.identity import Identity
from tsae_lab.jobs.plan import Config
from tsae_lab.sections import figures
from tsae_lab.terminal import console, cpu_threads, fast_memory

ModelFolder = Annotated[
    Path,
    typer.Argument(
        help="run_2/TEXT/seed_0, its folder tsae or static, or another library's SAE",
        show_default=False,
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="write all numbers and tables as JSON")
]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="write the main table as CSV")]
PngOption = Annotated[
    Path | None, typer.Option("--png", help="write the main figure (.png or .svg)")
]
LmOption = Annotated[
    str, typer.Option("--lm", help="language model, in place of the one that cfg.json names")
]
HookOption = Annotated[
    str, typer.Option("--hook", help="hook, in place of the one that cfg.json names")
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Saved:
    """A saved SAE and where it belongs."""

    folder: Path
    sae: tsae.Sae
    static: tsae.Sae  # in a run's seed the static SAE beside it, else its own static part
    lm: str
    hook: str
    dataset: str  # that it was trained on; "" where cfg.json does not say
    config: Config  # of the run that the folder lies in, else the default
    made: Identity  # what it was trained on; {} where cfg.json does not say
    lm_given: bool  # another language model is taken on purpose

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return "TSAE" if self.sae.temporal else "static SAE"


def open_model(folder: Path, lm: str = "", hook: str = "") -> Saved:
    """The SAE in `folder`; in a run's seed the TSAE, with its static SAE beside it.

    `lm` and `hook` replace those of its cfg.json. Raises ValueError for a folder without a model,
    and where the language model, the hook or the run's configuration cannot be known.
    """
    inside = [folder / name for name in ("tsae", "static") if (folder / name).is_dir()]
    in_seed = bool(inside) and not (folder / checkpoint.SAELENS_CFG).is_file()
    place = inside[0] if in_seed else folder
    sae, cfg = checkpoint.load_sae(place)
    own = tsae.static_sae(sae.params.static, sae.dials.k)
    static = checkpoint.load_sae(inside[-1])[0] if in_seed else own
    named = cfg | (cfg.get("metadata") or {})  # at the top before SAELens 6
    made, lm_given = identity.form_of(named.get("identity")), bool(lm)
    lm, hook = lm or checkpoint.own_lm(cfg), hook or named.get("hook_name") or ""
    if not lm or not hook:
        advice = "give --lm and --hook"
        raise ValueError(f"{folder} does not name its language model and hook; {advice}")
    dataset, config = named.get("dataset") or "", _config_of(place)
    files.use_cache(config.cache_dir)
    return Saved(folder=folder, sae=sae, static=static, lm=lm, hook=hook, dataset=dataset,
                 config=config, made=made, lm_given=lm_given)  # fmt: skip


def _config_of(place: Path) -> Config:
    """The configuration of the run that RUN/text/seed/model lies in, else the default."""
    run = place.absolute().parent.parent.parent
    if not (run / "config.json").is_file():
        return Config()
    return plan.run_config(run)[0]


def with_lm(saved: Saved, *, exact: bool = False) -> tuple[LanguageModel, Saved]:
    """The language model and the SAEs on one device: the run's own, else CUDA where there is one.

    The dtype of the products is the run's; with `exact` it is float32, in the language model too:
    the effect of an edit is a small difference of two runs. Raises ValueError where the hook or
    the width do not fit the language model.
    """
    torch.set_num_threads(cpu_threads())
    fast_memory()
    dtype = torch.float32 if exact else None
    with console.status(f"loading {saved.lm}"):
        lm = language_model.load_lm(saved.lm, device=saved.config.device or None, dtype=dtype)
    if identity.is_other_lm(saved.made, lm):
        other = f"{saved.folder} was trained on another language model than {lm.name} is"
        if not saved.lm_given:
            raise ValueError(f"{other}; give --lm={lm.name} to take it all the same")
        console.print(other, style="yellow", markup=False, highlight=False, soft_wrap=True)
    language_model.check_hook(lm, saved.hook)
    d_in = len(saved.sae.params.static.b_dec)
    if d_in != lm.d_in:
        width = f"reads activations of width {d_in}; {lm.name} has {lm.d_in}"
        raise ValueError(f"{saved.folder} {width}")
    jumps = isinstance(saved.sae.params.static, tsae.Thresholded)  # float32 decides what is on
    low = torch.float32 if jumps else dtype or plan.products(saved.config, lm.device)
    sae, static = (
        tsae.to(replace(model, dials=replace(model.dials, low=low)), lm.device)
        for model in (saved.sae, saved.static)
    )
    return lm, replace(saved, sae=sae, static=static)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that a command was asked for."""

    json: Path | None
    csv: Path | None
    figures: tuple[Path | None, ...]


def checked_outputs(json: Path | None, csv: Path | None, *drawn: Path | None) -> Outputs:
    """The files that were asked for; ValueError for one that cannot be written."""
    files.check_outputs((json, csv), drawn)
    return Outputs(json=json, csv=csv, figures=drawn)


def write_outputs(
    outputs: Outputs,
    content: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    drawn: Sequence[Figure | None],
) -> None:
    """Write `content`, `rows` and figures where they were asked for; None: nothing to draw."""
    if outputs.json:
        files.write_json(outputs.json, content)
    if outputs.csv:
        names = dict.fromkeys(name for row in rows for name in row)
        files.write_csv(outputs.csv, [{name: row.get(name, "") for name in names} for row in rows])
    for path, figure in zip(outputs.figures, drawn, strict=True):
        if path and figure is None:
            console.print(f"{path} was not written: there is nothing to draw", soft_wrap=True)
        elif path and figure is not None:
            figures.save(figure, path)
