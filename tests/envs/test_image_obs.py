"""Images as observations in environments that show numbers."""

import numpy as np
import pytest
import torch

from understudy import envs
from understudy.cli import main
from understudy.core import UserError, keys
from understudy.data.video import resize
from understudy.envs import registry
from understudy.envs.base import HasExpert, HasProprioception, Renderable, Restorable
from understudy.envs.image_obs import check_images, with_images
from understudy.envs.toys.push import Push
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env

IMAGE, WHOLE = "observation.images.camera", "simulator.observation.state"


class Robot(Push, HasProprioception):
    """The push toy, whose disc is a robot that knows where it is."""

    proprioception = {"observation.state": (0, 1)}


def test_the_image_is_the_frame_and_numbers_stay():
    env, plain = envs.make("fork@images=16", 2), envs.make("fork", 2)
    assert env.features[IMAGE].shape == (16, 16, 3) and env.features[IMAGE].kind == "image"
    now, before = (e.reset(torch.arange(2), keys(3, range(2))) for e in (env, plain))
    for _ in range(3):
        assert set(now) == {*before, IMAGE} and all(torch.equal(now[k], before[k]) for k in before)
        frames = np.stack([plain.frame(row) for row in range(2)])
        assert np.array_equal(now[IMAGE], resize(frames, (16, 16)))
        action = torch.tensor([[0.1, 0.3], [0.2, -0.3]])
        now, before = env.step(action).obs, plain.step(action).obs
    assert not torch.equal(now[IMAGE][0], now[IMAGE][1])


def test_only_what_the_robot_measures_is_left():
    env = with_images(Robot(2), 16)
    assert env.features["observation.state"].shape == (2,) and env.features[WHOLE].shape == (8,)
    assert env.features["observation.state"].names == env.features[WHOLE].names[:2]
    runs = rollout(env.expert(), env, 4, seed=2)  # which reads all eight numbers
    plain = rollout(Robot(2).expert(), Robot(2), 4, seed=2)
    for one, other in zip(runs, plain, strict=True):
        assert np.array_equal(one.steps[WHOLE], other.steps["observation.state"]) and one.metadata["success"]
        assert np.array_equal(one.steps["observation.state"], other.steps["observation.state"][:, :2])
        assert np.array_equal(one.steps["action"], other.steps["action"])


@pytest.mark.parametrize("build", [lambda rows: envs.make("particle@images=12", rows),
                                   lambda rows: with_images(Robot(rows, limit=20), 12)], ids=["particle", "robot"])
def test_it_keeps_the_contract_of_environments(build):
    check_env(build, episodes=3)


def test_what_an_environment_can_do_it_can_with_images():
    for name, expert, restored in (("fork", True, True), ("FrozenLake-v1", False, False)):
        env = envs.make(f"{name}@images=16")
        assert isinstance(env, HasExpert) == expert and isinstance(env, Restorable) == restored
        assert isinstance(env, Renderable)
    fork = envs.make("fork@images=16")
    fork.reset(torch.tensor([0]), keys(0, [0]))
    assert fork.frame(0).shape == (256, 256, 3)  # of videos and reports, as without images


@pytest.mark.parametrize("build", [lambda: envs.make("fork", 3), lambda: Robot(3)], ids=["fork", "robot"])
def test_recorded_episodes_are_drawn_as_if_recorded_with_images(build):
    env = with_images(build(), 12)
    without = rollout(env.env.expert(), build(), 3, seed=5)
    drawn, recorded = without.map(env.transform_episode), rollout(env.expert(), env, 3, seed=5)
    for one, other in zip(drawn, recorded, strict=True):
        assert set(one.steps) == set(other.steps) and one.features() == other.features()
        for name in one.steps:
            assert np.array_equal(one.steps[name], other.steps[name]), name
        assert one.metadata == other.metadata


@pytest.mark.parametrize(("name", "normal"), [("push@images", "push@images"), ("push@images=96", "push@images"),
                                              ("particle:8@images=20", "particle:8@images=20"),
                                              ("push@images=20,camera", "push@images=20")])
def test_the_name_says_how_to_make_it_again(name, normal):
    env = envs.make(name)
    assert env.metadata["env"] == normal and envs.make(normal).features == env.features
    assert registry.entry_point(name) == registry.entry_point(name.partition("@")[0]) is not None


@pytest.mark.parametrize(("name", "said"), [
    ("fork@images=7", "at least 8 pixels"), ("fork@images=64,wrist", "there is no camera 'wrist'"),
    ("fork@images=", "not understood"), ("fork@images=64,", "not understood"), ("fork@images64", "not understood"),
    ("fork@image", "no environment"),
])
def test_bad_names_say_what_is_wrong(name, said):
    with pytest.raises(UserError, match=said):
        envs.make(name)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="cannot be drawn"):
        with_images(_Blind(envs.make("fork")))


class _Blind(envs.Env):
    def __init__(self, env):
        self.env, self.rows, self.features, self.metadata = env, env.rows, env.features, env.metadata

    def reset(self, which, key):
        return self.env.reset(which, key)

    def step(self, action):
        return self.env.step(action)


def test_the_commands_record_learn_and_act_with_images(tmp_path, capsys):
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["record", "fork@images=16", "--episodes", "3", "--out", data, "--images", "png"]) == 0
    assert main(["train", "bc", data, "--steps", "2", "--out", run]) == 0
    assert main(["eval", run, "fork@images=16", "--episodes", "2"]) == 0
    assert "scaled" not in capsys.readouterr().err
    assert main(["eval", run, "fork@images=24", "--episodes", "2"]) == 0
    warning = ("fork@images=24 shows observation.images.camera with 24 x 24 pixels, which are scaled to the 16 x 16 "
               f"that {run} was trained with")
    assert capsys.readouterr().err.count(warning) == 1
    scaled = str(tmp_path / "scaled")
    assert main(["train", "bc", data, "--steps", "2", "--out", scaled, "--image-size", "12"]) == 0
    assert main(["eval", scaled, "fork@images=16", "--episodes", "2"]) == 0
    assert "which are scaled" not in capsys.readouterr().err  # as those of the training were
    assert main(["eval", run, "fork", "--episodes", "2"]) != 0
    assert "name it fork@images=16" in capsys.readouterr().err
    assert main(["replay", data, "fork@images=16"]) == 0
    assert "every step is as recorded" in capsys.readouterr().out


def test_images_of_other_cameras_are_not_promised():
    features = dict(envs.make("fork@images=16").features)
    check_images({k: f for k, f in features.items() if k != IMAGE}, envs.make("fork"))
    check_images({"observation.images.wrist": features[IMAGE]}, envs.make("fork"))  # nobody knows where it comes from
    with pytest.raises(UserError, match="shows none by itself"):
        check_images(features, envs.make("fork"))


# -- MuJoCo ----------------------------------------------------------------------------------------------------------


def mujoco_env(name, rows=1, **options):
    pytest.importorskip("metaworld", reason="simulator not installed")
    env = envs.make(name, rows, **options)
    try:
        env.reset(torch.arange(rows), keys(0, range(rows)))
    except UserError as error:
        assert "cannot draw" in str(error)
        pytest.skip("this machine cannot draw")
    return env


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_images_of_mujoco_are_those_of_its_own_renderer():
    """Of the state itself: after a step MuJoCo draws bodies where they were before the last small step."""
    import mujoco

    env = mujoco_env("metaworld/door-open-v3@images=48,corner2,topview,free")
    action = torch.tensor([[1.0, -1.0, 0.5, 1.0]])
    for _ in range(3):
        obs = env.step(action).obs
    model, data = env.env._simulation(0)
    with mujoco.Renderer(model, 48, 48) as renderer:
        mujoco.mj_forward(model, data)
        for camera, turned in (("corner2", -1), ("topview", 1), ("free", 1)):
            renderer.update_scene(data, -1 if camera == "free" else camera)
            assert np.array_equal(obs[f"observation.images.{camera}"][0], renderer.render()[::turned, ::turned])
    env.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_images_of_restored_states_are_as_recorded():
    mujoco_env("Hopper-v4@images=16").close()
    check_env(lambda rows: envs.make("Hopper-v4@images=16", rows), episodes=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_meta_world_shows_hand_and_gripper_beside_the_image():
    env = mujoco_env("metaworld/reach-v3@images=32")
    assert set(env.features) == {"observation.images.corner2", "observation.state", WHOLE, "action"}
    episode = rollout(env.expert(), env, 1, seed=1)[0]
    assert episode.metadata["success"] and episode.steps["observation.state"].shape[1] == 4
    images = episode.steps["observation.images.corner2"].astype(int)
    assert np.abs(images[-1] - images[0]).max() > 50  # the arm moved
    env.close()
