"""Training callbacks (see `fit`)."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..core import UserError
from ..files import read_json, write_json
from ..hints import LONG_SECONDS, format_duration
from .fit import Learner


def is_update(metrics: Mapping[str, float]) -> bool:
    """Returns whether metrics are of an update, and not of an evaluation or a round.

    Some updates train the critic alone, which has the "critic/loss", or nothing.
    """
    return not metrics or any(name.rpartition("/")[2] == "loss" for name in metrics)


class LossCurve:
    """Callback that passes the mean metrics of the last `every` updates to a function.

    Its state is saved with the learner, so that a training has the same curve whether it is interrupted or not.

    Args:
        write: Called as ``write(step=..., loss=..., ...)``.
        state: State of an earlier training to continue. None starts a new curve.
    """

    def __init__(self, every: int, write, state: dict | None = None):
        self.every, self.write = every, write
        self.state = {"count": {}, "sum": {}} if state is None else state

    def __call__(self, step: int, learner: Learner, metrics: dict[str, float]) -> None:
        count, total = self.state["count"], self.state["sum"]
        for name, value in metrics.items():  # some learners update some networks only occasionally
            count[name] = count.get(name, 0) + 1
            total[name] = total.get(name, 0.0) + value
        if step % self.every == 0:
            self.write(step=step, **{k: v / count[k] for k, v in total.items()})
            self.state = {"count": {}, "sum": {}}


class ProgressBar:
    """Callback that shows a progress bar on standard error, with the loss and the remaining time.

    It also prints one line if it continues an earlier training, and one if the training will take long.

    Args:
        steps: Number of updates in all. None if it is unknown.
        start: Number of updates that were made before.
        bar: Whether to show the bar. None shows it if standard error is a terminal. False also hides the printed lines.
    """

    def __init__(self, steps: int | None, start: int = 0, *, bar: bool | None = None, title: str = "training"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True)
        self.steps, self.start, self.began, self.quiet = steps, start, math.nan, bar is False
        self.bar = Bar(TextColumn(title), BarColumn(), MofNCompleteColumn(),
                       TextColumn("loss {task.fields[loss]}  {task.fields[speed]} updates/s"),
                       TimeRemainingColumn(), console=self.console, transient=True, refresh_per_second=4,
                       disable=not (self.console.is_terminal if bar is None else bar))
        self.task = self.bar.add_task("", total=steps, completed=start, loss="–", speed="–")

    def __enter__(self):
        if self.start and not self.quiet:
            of = "" if self.steps is None else f" of {self.steps}"
            self.console.print(f"all {self.steps} updates were done before" if self.start == self.steps else
                               f"going on from update {self.start}{of}", highlight=False)
        self.bar.start()
        return self

    def __exit__(self, *error):
        self.bar.stop()

    def __call__(self, step: int, learner: Learner, metrics: dict[str, float]) -> None:
        if not is_update(metrics):
            return
        now, n_made = time.perf_counter(), step - self.start
        if n_made == 1:  # the first update compiles and allocates, so its time is not representative
            self.began = now
        speed = (n_made - 1) / max(now - self.began, 1e-9) if n_made > 1 else float("nan")
        if n_made == 11 and not self.quiet and self.steps is not None and (self.steps - step) / speed > LONG_SECONDS:
            self.console.print(
                f"{self.steps - step} updates at {speed:.3g} a second: about "
                f"{format_duration((self.steps - step) / speed)}. Ctrl-C keeps what is done; the same command "
                "continues.",
                highlight=False,
            )
        # Updates of a critic alone have no loss.
        loss = f"{metrics['loss']:.4g}" if "loss" in metrics else self.bar.tasks[self.task].fields["loss"]
        self.bar.update(self.task, completed=step, loss=loss, speed="–" if math.isnan(speed) else f"{speed:.3g}")


class TensorBoard:
    """Callback that logs to TensorBoard. It needs the package tensorboard.

    Args:
        every: Updates between logged losses. Validation and scores are always logged.
    """

    def __init__(self, folder: Path | str, every: int = 10):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("the package tensorboard is not installed", where="TensorBoard",
                            hint="pip install 'understudy[tensorboard]'; metrics.jsonl has the same numbers") from None
        self.start, self.folder, self.every, self.writer = SummaryWriter, str(folder), every, None

    def __call__(self, step: int, learner: Learner, metrics: dict[str, float]) -> None:
        if step % self.every == 0 or not is_update(metrics):
            if self.writer is None:  # only the process that logs writes; what was logged after `step` is dropped
                self.writer = self.start(self.folder, purge_step=step)
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self.writer is not None:
            self.writer.close()


WANDB_FILE = "wandb.json"  # in the folder of a run: where in Weights & Biases it is


class Wandb:
    """Logs to Weights & Biases. Needs the package wandb, and a login unless wandb is offline or disabled.

    Args:
        every: Updates between logged losses. Validation and scores are always logged.
        folder: The folder of the run. The project and the id are kept in it, so that evaluations are logged there too.
        **options: Arguments of wandb.init.
    """

    def __init__(self, every: int = 10, folder: Path | None = None, **options):
        try:
            import wandb
        except ImportError:
            raise UserError("the package wandb is not installed", where="Wandb",
                            hint="pip install 'understudy[wandb]'; metrics.jsonl has the same numbers") from None
        _check_wandb_login(wandb)
        self.start, self.options, self.every, self.folder, self.run = wandb.init, options, every, folder, None

    def add_config(self, config: dict) -> None:
        """Adds JSON data to the configuration that the run shows."""
        self.options["config"] = {**self.options.get("config", {}), **config}

    def __call__(self, step: int, learner: Learner, metrics: dict[str, float]) -> None:
        if step % self.every == 0 or not is_update(metrics):
            if self.run is None:  # only the process that logs begins a run
                self.run = self.start(**self.options)
                self.run.define_metric("*", step_metric="step")
                if self.folder is not None:
                    write_json(self.folder / WANDB_FILE, {k: self.options.get(k) for k in ("project", "name", "id")})
            self.run.log({**metrics, "step": step})

    def close(self) -> None:
        """Ends the run and uploads what is left."""
        if self.run is not None:
            self.run.finish()


def _check_wandb_login(wandb) -> None:
    """Raises UserError if wandb would ask for a login, or fail for want of one, after the first update."""
    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    hint = ("wandb login, or set WANDB_API_KEY. WANDB_MODE=offline logs into the folder wandb, for wandb sync later. "
            "metrics.jsonl has the same numbers")
    prompt = {"prompt": False} if "prompt" in inspect.signature(wandb.login).parameters else {}  # wandb 0.31
    try:
        has_login = wandb.login(**prompt)
    except wandb.Error as error:
        raise UserError(f"Weights & Biases refuses the login: {error}", where="Wandb", hint=hint) from None
    if not has_login:
        raise UserError("there is no login for Weights & Biases", where="Wandb", hint=hint)


def log_evaluation(folder: Path, env: str, step: int | None, result: dict) -> None:
    """Logs the numbers of an evaluation to the run in Weights & Biases that training logged to, if it did.

    Args:
        env: The environment or the data.
        step: The update of the checkpoint. None if it is unknown.
        result: The result as JSON data. Lists and texts are left out.
    """
    if not (folder / WANDB_FILE).exists():
        return
    logger = Wandb(resume="allow", **read_json(folder / WANDB_FILE))
    numbers = {f"eval/{env}/{name}": value for name, value in _numbers(result)}
    logger.run = logger.start(**logger.options)
    logger.run.define_metric("*", step_metric="step")
    logger.run.log(numbers if step is None else {**numbers, "step": step})
    logger.close()


def _numbers(document: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the path and the value of each number in nested dictionaries."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", value
