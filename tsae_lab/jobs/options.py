"""Options of the command line: one per field of the configuration."""

import inspect
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from tsae_lab.jobs.plan import Config


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """The Typer command with one option per field of Config in place of its `**options`.

    An option that is not given is None: the scale's value, else the field's default, holds.
    """
    hints = typing.get_type_hints(Config, include_extras=True)
    signature = inspect.signature(command).parameters.values()
    parameters = [p for p in signature if p.kind is not p.VAR_KEYWORD]
    for field in fields(Config):
        kind, text = typing.get_args(hints[field.name])
        names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
        if kind is bool:
            names = {f"--{field.name}/--no_{field.name}": None}
        text = f"{text} [cpu scale: {field.default!r}]"
        annotation = Annotated[kind | None, typer.Option(*names, help=text, show_default=False)]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )

    def wrapper(**options: Any) -> None:
        command(**options)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__doc__ = command.__doc__
    return wrapper
