"""What goes before a query: a prompt, a task that the model folder has a prompt for, or an instruction."""

import re

from indexes.errors import InputError
from retrieval.model_folder import ModelFolder

_FORM = re.compile(r"Instruct: .*?(\nQuery: ?)", re.S)
_USUAL = "\nQuery: "


def query_prompt_for(
    settings: ModelFolder, query_prompt: str | None, task: str | None, instruction: str | None
) -> str | None:
    """The query prompt that one of three options asks for; None: the model folder's own.

    Raises:
        InputError: More than one is given, or the folder has no prompt for the task.
    """
    given = {"query_prompt": query_prompt, "task": task, "instruction": instruction}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} are given; give one of them")
    if task is not None:
        if task not in settings.tasks:
            known = f"it has {', '.join(settings.tasks)}" if settings.tasks else "it has none; give instruction"
            raise InputError(f"the model folder has no prompt for the task {task!r}: {known}")
        return settings.tasks[task]
    return query_prompt if instruction is None else instructed(instruction, settings)


def instructed(instruction: str, settings: ModelFolder) -> str:
    """The prompt `Instruct: …` of a query (Wang et al., Improving Text Embeddings with LLMs, arXiv:2401.00368).

    `Query:` follows in a line of its own, with a space behind it unless the folder's own prompts have none
    (E5-mistral's have one, Qwen3-Embedding's do not). Documents have no instruction.

    Raises:
        InputError: There is no instruction.
    """
    if not instruction.strip():
        raise InputError("instruction is empty; say in words what queries ask for, or leave it out")
    prompts = [settings.query_prompt, *settings.tasks.values()]
    own = next(filter(None, map(_FORM.fullmatch, prompts)), None)
    return f"Instruct: {instruction}{own[1] if own else _USUAL}"
