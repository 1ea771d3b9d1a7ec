"""What the page of each family of methods says before its methods. docs/generate.py reads it."""

OPENINGS = {
    "behavior_cloning": """\
These methods learn the action of each step from recorded steps, as in supervised learning. They are the first choice if
you have good demonstrations and no rewards, because they train fast and a plan takes one evaluation of the network.

What can go wrong: a method that predicts one action, such as `bc`, averages demonstrations that act in two ways. On the
toy `fork` the average of left and right runs into the pillar, and the mixture of `bc-gmm` does not:

```console
$ understudy record fork --out demos --episodes 40
$ understudy train bc demos --out runs/bc --steps 300
$ understudy train bc-gmm demos --out runs/gmm --steps 500
$ understudy eval runs/bc fork --episodes 50
This checkpoint succeeds in 27 of 50 in fork. 54.0%, 95% interval 39.3% to
68.2%. This is about this checkpoint; another training seed may come out
otherwise.
...
$ understudy eval runs/gmm fork --episodes 50
This checkpoint succeeds in 50 of 50 in fork. 100.0%, 95% interval 92.9% to
100.0%. This is about this checkpoint; another training seed may come out
otherwise.
...
```

A policy can also drift to places where no demonstration was. [Improving](../improving.md) collects episodes there.""",
    "generative": """\
These methods draw a chunk of actions from noise, as image generators draw pictures. Choose one if demonstrations act in
several ways: each plan then follows one of the ways. A plan takes several evaluations of the network, so it is slower
than that of [behavior cloning](behavior-cloning.md). [Which head](../heads.md) compares their heads.

```console
$ understudy record fork --out demos --episodes 40
$ understudy train flow-policy demos --out runs/flow --steps 300
$ understudy eval runs/flow fork --episodes 50
This checkpoint succeeds in 32 of 50 in fork. 64.0%, 95% interval 49.2% to
77.1%. This is about this checkpoint; another training seed may come out
otherwise.
...
```

300 updates are few: `flow-policy` trains for 4,000 by default.

What can go wrong: if plans are too slow for the robot, try fewer steps of sampling (`--policy.head.n-steps 5`) or
[act while a plan is computed](../execution.md#plans-that-arrive-late). If motions must be precise, try
`--prediction sample`.""",
    "chunking": """\
This method predicts a long chunk of actions with a transformer, and can average the chunks that overlap. It is a common
choice for arms with cameras and two hands.

```console
$ understudy record fork --out demos --episodes 40
$ understudy train act demos --out runs/act --steps 500
$ understudy eval runs/act fork --episodes 50
```

What can go wrong: averaging (`--ensemble`) harms where there are two ways to act, because the average of two ways is
neither.""",
    "retrieval": """\
These methods compare the present observation with the recorded ones, and act as the demonstrator did in the most
similar situations. Choose one if there are very few demonstrations, or to see at once what your data contain: some
methods train nothing.

```console
$ understudy record fork --out demos --episodes 40
$ understudy train knn demos --out runs/knn
$ understudy eval runs/knn fork --episodes 50
This checkpoint succeeds in 50 of 50 in fork. 100.0%, 95% interval 92.9% to
100.0%. This is about this checkpoint; another training seed may come out
otherwise.
...
```

What can go wrong: observations with many numbers, or with noise, are near to the wrong ones. Then leave columns out
with `--policy.inputs`, or train a network.""",
    "interaction": """\
These methods train, act, collect new episodes where the policy went, and train again. Choose one if a policy fails
because it drifts to places where no demonstration was, and an expert, a person or rewards can say what is right there.
The data set must come from an environment that can be run, or `--env` names one.

```console
$ understudy record fork --out demos --episodes 40
$ understudy train dagger demos --out runs/dagger --n-rounds 2
$ understudy eval runs/dagger fork --episodes 50
```

What can go wrong: without an expert of the environment, a person has to answer.
[Improving](../improving.md) describes the ways to do so.""",
    "representation": """\
These methods train an encoder first, often on data of other tasks or without actions, and then a policy on top of it.
Choose one if there is much data that is not of your task, and few demonstrations that are.

```console
$ understudy record fork --out demos --episodes 40
$ understudy train bc-inverse-dynamics demos --out runs/inverse --steps 1000
$ understudy eval runs/inverse fork --episodes 50
```

`--prior DATA` gives the other data. What can go wrong: on observations of a few numbers there is nothing to gain.
Compare with the same policy without the first stage.""",
    "skills": """\
These methods learn short pieces of behavior from long episodes, and a policy that chooses among the pieces. Choose one
if episodes are long and the same pieces return in them.

```console
$ understudy record fork --out demos --episodes 40
$ understudy train opal demos --out runs/opal --steps 1000
$ understudy eval runs/opal fork --episodes 50
```

What can go wrong: the second stage can be no better than the pieces of the first. Train the first stage longer if
single motions are not precise.""",
    "offline_rl": """\
These methods learn from recorded episodes with rewards which actions are better than others, without an environment.
Choose one if the episodes are of mixed quality. [Which learner](../learners.md) compares them.

```console
$ understudy record fork --out demos --episodes 40
$ understudy train iql demos --out runs/iql --steps 300
$ understudy eval runs/iql fork --episodes 50
This checkpoint succeeds in 22 of 50 in fork. 44.0%, 95% interval 30.0% to
58.7%. This is about this checkpoint; another training seed may come out
otherwise.
...
```

What can go wrong: `next.terminated` must say which episodes ended by themselves and not by a limit of time. Scores of
actions that nobody recorded can be far too high; a larger weight on staying close to the data helps.""",
    "online_rl": """\
These methods learn from rewards by acting in an environment, with or without demonstrations. Choose one if you have a
simulator in which steps are cheap and a reward that says what you want.

```console
$ understudy train sac --env particle --out runs/sac --n-rounds 2
$ understudy eval runs/sac particle --episodes 20
```

Two rounds only show that the command works: a useful policy takes many more. What can go wrong: a policy that never
meets a reward learns nothing. Start from demonstrations then, or use a
[reward by matching](reward-matching.md).""",
    "reward_matching": """\
These methods make a reward from demonstrations or from your judgments, and most of them then practice in an environment
with it. Choose one if there are few demonstrations without rewards and a simulator to practice in.

```console
$ understudy record particle --out reaching --episodes 20
$ understudy train dac reaching --env particle --out runs/dac --n-rounds 2
$ understudy eval runs/dac particle --episodes 20
```

Two rounds only show that the command works: a useful policy takes many more. What can go wrong: a learned reward can be
high for behavior that nobody showed. Judge the policy by the success of the environment, not by the reward.""",
    "goal_conditioned": """\
These methods learn from episodes without a task how to reach any observed state, and you name the goal while the policy
acts. Choose one if you have play or other episodes that lead to many places.

```console
$ understudy record four_rooms:play --out play --episodes 20
$ understudy train gcivl play --out runs/reach --steps 2000
$ understudy eval runs/reach four_rooms --episodes 20
```

If the environment shows no goal, `--condition goal=0.2,0.5` of `eval` and `act` gives one. What can go wrong: states
between which no episode passes are hard to connect. `gcbc` joins nothing; the others also join pieces of episodes.""",
    "observation_only": """\
These methods imitate episodes in which few or no actions were recorded, such as videos. Most of them learn from other
episodes which action leads from one observation to the next, and fill in the missing actions. Choose one if the
demonstrations show states but not commands.

```console
$ understudy record fork --out demos --episodes 40
$ understudy view make demos --drop action --out silent.json
$ understudy record fork --out practice --episodes 60 --actor random
$ understudy train bco silent.json --prior practice --env fork --out runs/bco
$ understudy eval runs/bco fork --episodes 50
```

What can go wrong: the practice has to visit the states of the demonstrations, or the actions that are filled in there
are guesses. [The evidence](../evidence/missing-actions.md) compares these methods.""",
    "return_conditioned": """\
These methods learn what actions led to which return, and you ask for a return while the policy acts. Choose one if
episodes are of mixed quality and have rewards, and you want no critic.

```console
$ understudy record CartPole-v1 --actor random --out cart --episodes 50
$ understudy train udrl cart --out runs/asked --steps 200
$ understudy eval runs/asked CartPole-v1 --episodes 20 \\
    --condition return_to_go=60 time_left=60
```

What can go wrong: a policy that is asked for more than the data contain is not better for it. Ask for the largest
return of the data, and try smaller ones.""",
    "reasoning": """\
These methods learn how the expert found its action, such as the steps of a search or what it said, and then read the
action from that. Choose one if the recordings contain this, and new situations need the same reasoning.

What can go wrong: errors add up over the steps, so compare with plain [behavior cloning](behavior-cloning.md) on the
same data.""",
}
