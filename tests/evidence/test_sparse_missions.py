"""Row 060: what is observed, what the demonstrations are, and what cloning beside PPO and the control do."""

from dataclasses import replace

import numpy as np
import torch

from evidence.families.reinforcement import few_demonstrations as table
from understudy.data.mixture import DATASET_NAME, ROUND
from understudy.envs.toys.gridworld_tasks import GridworldTasks, GridworldTasksExpert
from understudy.evaluate.rollout import rollout
from understudy.policy import Policy
from understudy.testing import check_env


def test_the_view_has_directions():
    check_env(table.Egocentric)
    things = [2.0, 3, 0, 5, 8, 1, 4]  # key, ball, pad, row of the door
    obs = {"observation.state": torch.tensor([[2.0, 3, 0, 0, 0, 0]] * 4),  # x, y, and what is done
           "observation.environment_state": torch.tensor([things] * 4), "simulator.subgoal": torch.arange(4)[:, None]}
    door = [1, 1], [0, 0]  # from where it is opened lies to the right and up
    stages = ([0, 0], [0, 0], 1), (*door, 0), ([0, 1], [1, 0], 0), ([1, 0], [0, 1], 0)  # key, door, ball and pad
    expected = [[*more, *door[0], *less, *door[1], here, 1, 0, 0] for more, less, here in stages]
    assert table.Egocentric().transform_obs(obs)[table.VIEW].tolist() == expected


def test_the_demonstrations():
    data = table.Layouts().load(0)
    parts = {name: [e for e in data if e.metadata[DATASET_NAME] == name] for name in ("two", "one layout", "diverse")}
    assert [len(part) for part in parts.values()] == [2, 10, 10] and all(e.metadata["success"] for e in data)
    starts = {name: {np.asarray(e.steps[table.VIEW][0]).tobytes() for e in part} for name, part in parts.items()}
    assert len(starts["one layout"]) == 1 < len(starts["two"]) < len(starts["diverse"])
    lengths = [np.array([len(e) for e in rollout(GridworldTasksExpert(noise), GridworldTasks(100, 200, missions=(0, 1)),
                                                 150, seed=3)]) for noise in (0.0, table.DETOURS)]
    assert abs(np.mean(lengths[0] / lengths[1]) - 0.6) < 0.03  # the quality


def test_the_control_changes_the_order_of_actions_alone():
    episode = table.Layouts().load(0)[0]
    shuffled = table.shuffle_actions(0, episode)
    actions = [np.asarray(e.steps["action"]) for e in (episode, shuffled)]
    assert not np.array_equal(*actions) and np.array_equal(*(np.sort(a, 0) for a in actions))
    assert all(np.array_equal(episode.steps[k], shuffled.steps[k]) for k in episode.steps if k != "action")


def test_cloning_beside_ppo_is_ppo_in_the_other_updates():
    demonstrations, losses, weights = table.Layouts().load(0), [], []
    for cloning in ("never", "beside"):
        for first in (1, 0):  # the number of the update
            method = table.Practice(cloning=cloning).method
            policy = Policy(method.policy, demonstrations.features()).fit_statistics(demonstrations)
            torch.manual_seed(0)
            for parameter in policy.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            learner = method.learner.build(policy, 0, 10, demonstrations)
            own = learner.annotate(demonstrations, 0).map(lambda e: replace(e, metadata={**e.metadata, ROUND: 0}))
            expert = learner.annotate(demonstrations, None)
            batch = learner.batch_sampler(own if cloning == "never" else expert + own).batch(32, 0)
            learner.n_updates = first
            learner.update(batch)
            weights.append(torch.cat([p.flatten() for p in policy.parameters()]))
            with torch.no_grad():
                losses.append(policy.loss(policy.windows(demonstrations).batch(200, 0), torch.Generator()).mean())
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[1], weights[3])
    assert losses[3] < losses[1]
