"""The list of all commands in groups, their help, and where the options of each are."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Command:
    """A command in the list of commands.

    Args:
        group: The heading under which the help lists it.
        is_resumable: Whether the same command continues after an interrupt.
        module: Name of its file in commands/, if it is not the name of the command.
        interrupted: What is said after an interrupt if the same command does not continue.
    """

    group: str
    summary: str
    is_resumable: bool = False
    module: str = ""
    interrupted: str = "stopped; nothing was changed, and the same command starts again"


COMMANDS = {
    "demo": Command("Start", "record, train and evaluate on a toy task", True),
    "studio": Command("Start", "show, train and compare on a page in the browser",
                      interrupted="stopped; everything is in the folder of the project"),
    "completion": Command("Start", "print the completion of commands and options for your shell"),
    "record": Command("Data", "record demonstrations in an environment or on a robot", True),
    "inspect": Command("Data", "show what a data set contains, and what is wrong"),
    "audit": Command("Data", "check a data set and score its episodes"),
    "repair": Command("Data", "finish a recording, or save what can be read"),
    "convert": Command("Data", "write demonstrations in another format"),
    "split": Command("Data", "split data into views that share no episode"),
    "merge": Command("Data", "merge data sets that agree into one view"),
    "curate": Command("Data", "keep the best episodes, as a view"),
    "view": Command("Data", "make and show views: operations that copy no data"),
    "replay": Command("Data", "repeat recorded actions: do they still succeed?"),
    "methods": Command("Train", "list the methods, or show the parts of one"),
    "choose": Command("Train", "find the method that suits the data, by short trials", True),
    "train": Command("Train", "train a policy on demonstrations", True),
    "plot": Command("Train", "plot the curves of trainings, as a page"),
    "eval": Command("Judge", "evaluate a policy, with the interval of its success", True, module="evaluate"),
    "compare": Command("Judge", "compare policies: which differences are significant", True),
    "verify": Command("Judge", "repeat a part of the stored evaluations of a run", module="sharing.verify"),
    "plan": Command("Judge", "calculate how many rollouts a comparison needs"),
    "robustness": Command("Judge", "measure success as the environment changes", True),
    "diagnose": Command("Improve", "say why a policy fails although its loss fell"),
    "improve": Command("Improve", "improve a trained policy by corrections, in rounds", True),
    "judge": Command("Improve", "say which of two motions is better, to learn a reward", True),
    "export": Command("Deploy", "write a trained policy as one file, or for LeRobot"),
    "serve": Command("Deploy", "serve a trained policy to clients in the network"),
    "push": Command("Deploy", "upload data or a policy to the Hugging Face hub", True, module="sharing.push"),
    "pull": Command("Deploy", "download data or a policy from the Hugging Face hub", True, module="sharing.pull"),
    "calibrate": Command("Deploy", "calibrate a failure detector at a stated rate of errors"),
    "robot": Command("Robot", "set up, calibrate and check a robot, or emulate one"),
    "act": Command("Robot", "run a trained policy on a robot, within limits",
                   interrupted="stopped, and so is the robot. Finished episodes of --out are kept. To start again"),
}

WORDS = {
    "DATA": "a file or folder of demonstrations, or hf:OWNER/NAME",
    "RUN": "the folder of a trained policy, hf:OWNER/NAME, or a policy of LeRobot (ACT, Diffusion Policy)",
    "ENV": "a toy (fork, push, maze, ...), a Gymnasium id, metaworld/NAME, or module:factory",
    "METHOD": "the name of a method, module:function, or a method.json",
}


def help_text(version: str, width: int) -> str:
    """Returns the list of all commands in groups, with no line longer than `width` characters."""
    def entry(name: str, text: str) -> str:
        return textwrap.fill(text, width, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13)

    groups: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        groups.setdefault(command.group, []).append(entry(name, command.summary))
    closing = ("Code that is not understudy's is loaded only with --trust PACKAGE. `understudy COMMAND --help` shows "
               "the options of a command, -V prints the version, and --debug shows where an error came from.")
    return "\n\n".join([
        textwrap.fill(f"understudy {version}: imitation learning from demonstrations, with honest evaluation.", width),
        "usage: understudy COMMAND ... [--debug]",
        *("\n".join([group, *lines]) for group, lines in groups.items()),
        "\n".join(["Words", *(entry(word, text) for word, text in WORDS.items())]),
        textwrap.fill(closing, width)]) + "\n"


def command_module(name: str) -> ModuleType:
    """Returns the module of a command. The function `main` of the module runs the command."""
    return import_module(f"understudy.commands.{COMMANDS[name].module or name}")


def options_class(name: str) -> type:
    """Returns the dataclass of the options of a command."""
    return getattr(command_module(name), {"robot": "RobotCommandOptions"}.get(name, f"{name.capitalize()}Options"))
