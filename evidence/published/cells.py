"""The cells: what was published, with how many updates, and by whom."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A figure that others published.

    Attributes:
        task: Task, method and measure.
        published: The figure. None where nobody has published one.
        source: Where it is published, which page.md describes.
        updates: Updates of the network behind the published figure.
        planned: Updates of a run here. 0 where a cell of benchmarks/ made the figures.
        unit: "%" for a rate in percent, whose interval may be 10 points to either side; else that of a score.
        same_sizes: Whether networks, batches and data have the published sizes.
        needs: What is missing for a run here. Empty if nothing is.
    """

    task: str
    published: float | None
    source: str
    updates: int
    planned: int = 0
    unit: str = "return"
    same_sizes: bool = True
    needs: str = ""


ZOO, OGBENCH, CORL, CS285, SEALS = "rl-baselines3-zoo", "OGBench", "CORL", "CS285", "imitation"
LAYOUTS = ("asymmetric_advantages", "coordination_ring", "cramped_room", "random0", "random3")
GPU, M = "a GPU", 1_000_000
_MAZE = {"gcbc-narrow": 9, "gcivl": 63, "gciql": 53, "qrl": 82, "crl": 29, "hiql": 79}
_CUBE = {"gcbc": 6, "gcivl": 53, "gciql": 68, "qrl": 5, "hiql": 15}
_COURSE = {"hopper": (3773, 1059), "walker2d": (4899, 661), "halfcheetah": (3867, 3769), "ant": (4734, 4513),
           "humanoid": (8554, 4027)}  # DAgger of ten rounds with 1,000 updates, and cloning with 1,000
_SEALS = {"bc": (2090.551, 1516.476, 204.271, 276.242, 2393.254),
          "dagger": (2302.527, 1615.004, 204.789, 283.776, 2419.748),
          "gail": (2527.566, 1595.129, 187.105, 249.949, 2399.196),
          "airl": (2485.889, 938.450, 183.780, 286.699, 1154.921)}

CELLS = {
    "iq-cartpole": Cell("CartPole-v1, IQ-Learn of one demonstration, every 20th step", 500, "IQ-Learn", 3000, 3000),
    "td3-pendulum": Cell("Pendulum-v1, td3", -151.855, ZOO, 10_000, 10_000),
    "ddpg-pendulum": Cell("Pendulum-v1, ddpg", -152.099, ZOO, 10_000, 10_000),
    "ppo-doorkey": Cell("MiniGrid-DoorKey-5x5-v0, ppo", 0.964, ZOO, 15_680, 15_680),
    "sac-pendulum": Cell("Pendulum-v1, sac", -156.995, ZOO, 19_900, 19_800),
    "sac-mountaincar": Cell("MountainCarContinuous-v0, sac", 94.679, ZOO, 50_000,
                            needs="noise that depends on the state (gSDE)"),
    **{f"overcooked-{name}": Cell(f"Overcooked {name}, bc, log loss of people's actions, nats", None, "Overcooked", 0,
                                  5000, unit="nats") for name in LAYOUTS},
    "pointmaze-medium-gcbc": Cell("pointmaze-medium, gcbc", 9, OGBENCH, M, M // 2, unit="%"),
    **{f"{data}-{name}": Cell(f"{data}, {name}", figure, OGBENCH, M, unit="%", same_sizes=False)
       for data, figures in (("pointmaze-medium", _MAZE), ("cube-single-play", _CUBE))
       for name, figure in figures.items()},
    **{f"pointmaze-medium-{name}-full": Cell(f"pointmaze-medium, {name}, published sizes", figure, OGBENCH, M,
                                             unit="%", needs=GPU)
       for name, figure in {"gcivl": 63, "qrl": 82, "hiql": 79}.items()},
    **{f"door-{name}": Cell(f"Adroit door of people, {name}, D4RL's score", figure, CORL, updates, unit="%",
                            same_sizes=name == "bc")
       for name, figure, updates in (("bc", 2.3, M), ("iql", 3.3, M), ("awac", 4.6, M), ("cql", 5.5, M),
                                     ("decision-transformer", 4.4, M // 10))},
    **{f"{task}-{name}": Cell(f"{task}, {name}", figure, CS285, updates) for task, figures in _COURSE.items()
       for name, figure, updates in zip(("dagger", "bc"), figures, (10_000, 1000), strict=True)},
    "td3-halfcheetah": Cell("HalfCheetah-v4, td3", 5514, "TD3", 90_000),
    "bet-one-block": Cell("block pushing, bet, one block", 96, "BeT", 150_000, unit="%", same_sizes=False),
    "bet-both-blocks": Cell("block pushing, bet, both blocks", 71, "BeT", 150_000, unit="%", same_sizes=False),
    **{f"ibc-particle-{n}": Cell(f"a particle in {n} dimensions, ibc", 95, "IBC", 50_000, unit="%", same_sizes=False)
       for n in (2, 8, 16)},
    **{f"seals-{task}-{name}": Cell(f"seals/{task}, {name}", figure, SEALS, 0, needs="the trained agents of seals")
       for name, figures in _SEALS.items()
       for task, figure in zip(("ant", "half_cheetah", "hopper", "swimmer", "walker"), figures, strict=True)},
}
