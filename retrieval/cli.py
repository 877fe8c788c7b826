"""The `retrokit` command: a table from command name to function, loaded on use, and what all commands share."""

import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from indexes.errors import InputError
from indexes.manifest import read_json
from retrieval.console import err, out

COMMANDS = {
    "demo": "retrieval.demo:demo",
    "search": "retrieval.search_commands:search",
    "encode": "retrieval.commands:encode",
    "index": "retrieval.commands:index",
    "add": "retrieval.change_commands:add",
    "delete": "retrieval.change_commands:delete",
    "compact": "retrieval.change_commands:compact",
    "export": "retrieval.export_commands:export",
    "soup": "retrieval.soup_commands:soup",
    "tune": "retrieval.tune_commands:tune",
    "mine": "retrieval.mine_commands:mine",
    "show": "retrieval.commands:show",
    "vectors info": "retrieval.vector_commands:info",
    "vectors verify": "retrieval.vector_commands:verify",
    "vectors merge": "retrieval.vector_commands:merge",
    "vectors export": "retrieval.vector_commands:export",
    "pretrain": "pretraining.commands:pretrain",
    "report": "pretraining.commands:report",
    "adapt": "pretraining.commands:adapt",
    "hybrid": "pretraining.commands:hybrid",
    "reshape": "pretraining.shape_commands:reshape",
    "distill": "pretraining.shape_commands:distill",
    "finetune": "retrieval.finetune_commands:finetune",
    "evaluate": "evaluation.commands:evaluate",
    "collection": "evaluation.dataset_commands:collection",
    "compare": "evaluation.compare_commands:compare_systems",
    "mteb": "evaluation.benchmark_commands:mteb",
    "anchors": "evaluation.benchmark_commands:anchors",
    "dataset": "evaluation.dataset_commands:dataset",
}
"""Each package owns its commands; their modules load neither torch nor transformers until a command runs.

The first of two words is a group, which has its help in `GROUPS`.
"""

CALLBACKS = {"probe collection": "evaluation.probe:DatasetProbe"}
"""What a command of one package passes in for another that may not import it, loaded on use like the commands."""

GROUPS = {"vectors": "Look into vectors folders, check, merge and export them."}

_BAD_INPUT = 2
_OUR_FAULT = 1
_INTERRUPTED = 130


def load_command(name: str) -> Callable[..., Any]:
    """The function behind a command; a recipe calls its stages through this table, handing folders on."""
    return _load(COMMANDS[name])


def load_callback(name: str) -> Callable[..., Any]:
    """What makes a callback, by its name in `CALLBACKS`."""
    return _load(CALLBACKS[name])


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def main() -> None:
    """Run `retrokit` on the arguments of this process."""
    try:
        status = build_app()(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        status = _say_usage(error)
    sys.exit(status)


def build_app() -> typer.Typer:
    """All commands of the table, with what they share."""
    built = typer.Typer(
        name="retrokit",
        help="Learn encoders from raw text, encode corpora, index them, search them and measure the result.\n\n"
        "Try: retrokit demo",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    built.callback()(_about)
    groups = {"": built}
    for path in COMMANDS:
        group, _, name = path.rpartition(" ")
        if group not in groups:
            groups[group] = typer.Typer(help=GROUPS[group], no_args_is_help=True)
            built.add_typer(groups[group], name=group)
        function = load_command(path)
        groups[group].command(name, help=inspect.getdoc(function), no_args_is_help=_needs_arguments(function))(
            _command(function)
        )
    return built


def _about(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        out.print(f"retrokit {metadata.version('retrokit')}")
        raise typer.Exit


def _needs_arguments(function: Callable[..., Any]) -> bool:
    empty = inspect.Parameter.empty
    return any(parameter.default is empty for parameter in inspect.signature(function).parameters.values())


def _command(function: Callable[..., Any]) -> Callable[..., None]:
    """Give a function what every command has: `--config`, `--traceback`, errors in one line, exit status 2."""

    @functools.wraps(function)
    def run(config: Path | None = None, traceback: bool = False, **arguments: Any) -> None:
        try:
            if arguments.get("json") is not None:
                refuse_json_target(Path(arguments["json"]))
            function(**arguments)
        except (Exception, KeyboardInterrupt) as error:
            if traceback or isinstance(error, typer.Exit):
                raise
            raise typer.Exit(_say(error)) from None

    signature = inspect.signature(function)
    shared = (
        _option("config", Path | None, None, _config_option(function)),
        _option("traceback", bool, False, typer.Option("--traceback", help="Show where an error came from.")),
    )
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *shared], return_annotation=None
    )
    run.__annotations__ = {name: parameter.annotation for name, parameter in run.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return run


def refuse_json_target(path: Path) -> None:
    """Refuse a `--json` file that would replace anything but an earlier result.

    Raises:
        InputError: It is a folder, lies in a folder of retrokit's or in a model folder, or is no JSON object.
    """
    if any(
        (folder / name).is_file() for folder in path.resolve().parents for name in ("manifest.json", "modules.json")
    ):
        raise InputError(f"--json {path} lies inside a folder that must stay as it is; choose another place")
    if path.is_dir():
        raise InputError(f"--json {path} is a folder; expected the name of a file")
    if path.exists() and (path.suffix != ".json" or not isinstance(read_json(path), dict)):
        raise InputError(f"--json {path} exists and is no earlier result; choose another name")


def _option(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, option])


def _config_option(function: Callable[..., Any]) -> Any:
    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            try:
                context.default_map = {**(context.default_map or {}), **read_config(path, function)}
            except (InputError, OSError) as error:
                raise typer.Exit(_say(error)) from None
        return path

    text = "YAML file with any of these options; options given on the command line win."
    return typer.Option("--config", callback=read, is_eager=True, help=text, metavar="FILE")


def read_config(path: Path, function: Callable[..., Any]) -> dict[str, Any]:
    """Read a command's options from a YAML file, checked against the command's own signature.

    Raises:
        InputError: The file is missing or no YAML mapping, or an option is unknown or of the wrong type.
    """
    import pydantic
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: found a {type(found).__name__}; expected options, one `name: value` a line")
    hints = get_type_hints(function)
    names = list(inspect.signature(function).parameters)
    # An alias keeps an option such as `json` from hiding a method of the model.
    options: dict[str, Any] = {f"option_{name}": (hints[name], pydantic.Field(None, alias=name)) for name in names}
    model = pydantic.create_model("Options", __config__=pydantic.ConfigDict(extra="forbid"), **options)
    try:
        checked = model.model_validate({str(name).replace("-", "_"): value for name, value in found.items()})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        known = ", ".join(sorted(names))
        said = f"unknown option; expected one of {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"{path}: {name}: {said}") from None
    return checked.model_dump(mode="json", exclude_unset=True, by_alias=True)


def _say_usage(error: Any) -> int:
    """Print what is wrong with the arguments as one line; without any arguments, the help."""
    message = error.format_message()
    if message.lstrip().startswith("Usage:") or not message.strip():
        sys.stderr.write(message + "\n" if message.strip() else "")
        return _BAD_INPUT
    command = getattr(error, "ctx", None)
    path = command.command_path if command else "retrokit"
    err.print(f"error: {' '.join(message.split())} (see {path} --help)", markup=False)
    return _BAD_INPUT


def _say(error: BaseException) -> int:
    """Print an error as one line and return the exit status it stands for."""
    if isinstance(error, KeyboardInterrupt):
        err.print("interrupted; run the same command again to go on where it was")
        return _INTERRUPTED
    message = " ".join(str(error).split())
    if isinstance(error, InputError | OSError):
        err.print(f"error: {message}", markup=False)
        return _BAD_INPUT
    err.print(
        f"internal error: {type(error).__name__}: {message} (this is a bug; --traceback shows where)",
        markup=False,
    )
    return _OUR_FAULT
