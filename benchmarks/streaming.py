"""What an action costs with a rolling buffer and with whole plans from noise: python benchmarks/streaming.py

Both policies have the network, the horizon, the executed steps and the 16 noise levels of the method
streaming-diffusion-policy, of random weights. A whole plan denoises all levels, and a plan of the buffer a quarter of
them. Network evaluations are counted over an episode of 200 steps, with the first buffer. CPU time per action is that
of one robot, without and with the start of the episode, in turns with the other policy.
"""

from __future__ import annotations

import measure

measure.one_thread()

import time  # noqa: E402

import torch  # noqa: E402

from understudy.core import keys  # noqa: E402
from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.policy import Policy  # noqa: E402

STEPS, REPEATS = 200, 7
OBS, KEY = {"observation.state": torch.zeros(1, 10)}, keys(0, range(1))


def episode(actor: PolicyActor) -> tuple[float, float]:
    """CPU milliseconds per action, of the whole episode and after its first action."""
    began = time.process_time()
    state = actor.start(OBS, KEY)
    _, state = actor.act(OBS, state)
    first = time.process_time()
    for _ in range(STEPS - 1):
        _, state = actor.act(OBS, state)
    end = time.process_time()
    return 1000 * (end - began) / STEPS, 1000 * (end - first) / (STEPS - 1)


def main() -> None:
    method = find_method("streaming-diffusion-policy")
    torch.manual_seed(0)
    steps = {"observation.state": torch.randn(400, 10).numpy(), "action": torch.rand(400, 7).numpy()}
    data, evaluations = Dataset([Episode(steps)]), []
    policy = Policy(method.policy, data.features()).fit_statistics(data).eval()
    policy.net.register_forward_hook(lambda *_: evaluations.append(1))
    executors = {"whole plans": RecedingHorizon(method.executor.n_action_steps), "rolling buffer": method.executor}
    actors = {name: PolicyActor(policy, executor) for name, executor in executors.items()}
    counts = {}
    for name, actor in actors.items():
        evaluations.clear()
        episode(actor)
        counts[name] = len(evaluations) / STEPS
    times = {name: [] for name in actors}
    for _ in range(REPEATS):
        for name, actor in actors.items():
            times[name].append(episode(actor))
    for name, pairs in times.items():
        total, later = (sorted(t)[REPEATS // 2] for t in zip(*pairs, strict=True))
        print(f"{name}: {counts[name]:.2f} evaluations and {total:.2f} ms per action ({later:.2f} ms after the first)")
    for label, i in (("episode", 0), ("after the first action", 1)):
        slow, fast = ([pair[i] for pair in times[name]] for name in actors)
        ratio = measure.ratio(slow, fast)
        print(f"{label}: {ratio.estimate:.2f} times faster [{ratio.low:.2f}, {ratio.high:.2f}]")


if __name__ == "__main__":
    main()
