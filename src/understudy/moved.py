"""Import paths and fields of earlier versions, so that old checkpoints and runs keep loading.

A file names code by its import path. Anyone who moves, renames or changes the fields of something that a file can name
adds an entry here. Entries name the present place, never another old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_TOYS = ("arms", "blocks", "drive", "fork", "four_rooms", "gridworld_tasks", "maze", "mdp", "memory", "particle",
         "peg_insertion", "planar_arms", "push", "tabletop", "tabular", "words")
_SIMULATORS = ("adroit", "block_pushing", "dm_control", "external", "highway", "metaworld", "minigrid", "ogbench",
               "pusht", "robosuite", "robotics")
_METHODS = {  # when each family was one file
    "behavior_cloning": (
        "attention_tuner bc bc_bins bc_gmm bc_rnn_gmm bet bottleneck_bc cec fast fourier_transporter gcbc ibc "
        "interactive_language keyframe_bc maskdp one_shot robust_bc vq_bet"),
    "chunking": "act",
    "generative": (
        "adaflow beso bid_flow_policy consistency_policy consistency_training contextvla diffusion_bc "
        "diffusion_policy dit_policy dp3 flow_policy interpolant_policy mdt mean_flow_policy mip mode "
        "normalizing_flow_policy onedp ptp reflow_policy sgac shortcut_policy streaming_diffusion_policy "
        "streaming_flow_policy training_time_rtc"),
    "interaction": "dagger td3_bc",
    "reasoning": "procedure_cloning thought_cloning",
    "representation": "bc_inverse_dynamics dualmind midas pasta vinn_byol",
    "retrieval": "behavior_retrieval knn mcnn retrieve_align_replay search_bc skill_retrieval vinn",
    "return_conditioned": "arp decision_diffuser decision_transformer dichotomy_of_control udrl",
    "skills": "groot_2 omnijarvis opal play_lmp",
}
_CLASSES = {  # methods that were functions then
    "robust_bc": "RobustBC", "consistency_policy": "ConsistencyPolicy", "onedp": "OneDP",
    "reflow_policy": "ReflowPolicy", "dichotomy_of_control": "DichotomyOfControl"}
_COLUMN_CHANGES = ("ColumnPadding", "ConstantColumn", "LastAction", "OptionalColumn", "Progress", "Rename",
                   "ReturnToGo", "SelectComponents", "TimeLeft")
_ROOMS = {  # folder: modules that were in the folder above it
    "learn.rewards": (
        "denoising_preference discriminator_reward learned_reward maxent_irl preference_reward progress_weights "
        "reward_models similarity transport_reward"),
    "learn.critics": (
        "action_values critic_learning denoising_ppo fitted_q goal_conditioned noise_aliasing off_policy_actor_critic "
        "ppo"),
    "learn.objectives": (
        "class_prediction frame_objectives latent_objectives observation_decoders reconstruction_objectives "
        "representation representation_objectives value_objectives"),
    "learn.cloning": (
        "attention_supervision cloning_from_observation distillation elastic_weights latent_labels pseudo_labels "
        "retrieval skill_autoencoder"),
    "heads.likelihood": "bins categorical correction cvae gaussian gmm normalizing_flow regression squashed_gaussian",
    "heads.tokens": "behavior_transformer fast vq_bet",
    "heads.denoising": "adaflow diffusion edm flow interpolant joint_diffusion streaming_flow",
    "heads.one_step": "consistency mean_flow mip one_step shortcut",
    "heads.energy": "coarse_to_fine energy motion_classifier transport",
    "heads.memory": "mcnn neighbors",
    "nets.pretrained": "act diffusion_policy",
    "data.opening": "column_selection source_parts stream view_file views",
    "data.formats.parts": "arrow column_names episode_table hdf5 key_map npz_arrays read_errors sidecar",
    "data.formats.logs": "bags message_logs protobuf topic_mapping",
    "commands.parts": (
        "arms behavior_metrics common conditions eval_options groups improve_page improve_robot improve_success "
        "interactive method options policies robot_check robot_options sequential served"),
}

MODULES: dict[str, str] = {  # old module: new module
    **{f"understudy.{room.rpartition('.')[0]}.{name}": f"understudy.{room}.{name}"
       for room, names in _ROOMS.items() for name in names.split()},
    **{f"understudy.envs.{name}": f"understudy.envs.toys.{name}" for name in _TOYS},
    **{f"understudy.envs.{name}": f"understudy.envs.simulators.{name}" for name in _SIMULATORS},
    "understudy.data.scored_return": "understudy.methods.return_conditioned.arp",
    "understudy.learn.task_scorer": "understudy.methods.return_conditioned.arp",
    "understudy.data.procedure": "understudy.methods.reasoning.procedure_cloning",
    "understudy.data.motion_prompt": "understudy.methods.representation.midas",
    "understudy.nets.multimodal_prompt": "understudy.methods.representation.midas",
    "understudy.learn.dichotomy_of_control": "understudy.methods.return_conditioned.dichotomy_of_control",
    "understudy.learn.instructed_autoencoder": "understudy.methods.skills.groot_2",
    "understudy.learn.state_action_vae": "understudy.methods.retrieval.behavior_retrieval",
    "understudy.execute.planar_frame": "understudy.methods.retrieval.retrieve_align_replay",
    "understudy.execute.aligned_replay": "understudy.methods.retrieval.retrieve_align_replay",
    "understudy.nets.pooled_history": "understudy.methods.generative.contextvla",
    "understudy.learn.load_balancing": "understudy.methods.generative.mode",
    "understudy.nets.goal_encoder": "understudy.methods.generative.mdt",
    "understudy.learn.goal_losses": "understudy.methods.generative.mdt",
    "understudy.nets.component_tokens": "understudy.methods.representation.pasta",
    "understudy.learn.token_prediction": "understudy.methods.representation.pasta",
    "understudy.nets.prompted_encoder": "understudy.methods.representation.dualmind",
    "understudy.nets.bottleneck": "understudy.methods.behavior_cloning.bottleneck_bc",
    "understudy.learn.information_bottleneck": "understudy.methods.behavior_cloning.bottleneck_bc",
    **{f"understudy.data.{name}": f"understudy.data.recording.{name}" for name in ("encoder", "recorder", "recovery")},
    "understudy.nets.pretrained": "understudy.nets.pretrained.files",
    "understudy.nets.pretrained_text": "understudy.nets.pretrained.text",
    "understudy.nets.pretrained_vision": "understudy.nets.pretrained.vision",
}
_PLANNERS = {
    "GuidanceConfig": "planners:Guided",
    "BestOfNConfig": "planners:BestOfN",
    "SampleSelectorConfig": "planners:SampleSelector",
    "HierarchyConfig": "planners:Hierarchical",
    "IterationConfig": "planners:IteratedPlanner",
    "InverseDynamicsConfig": "planners:InverseDynamicsPlanner",
    "MaskedGoalConfig": "planners:MaskedGoalPlanner",
    "BidirectionalDecodingConfig": "bidirectional:BidirectionalDecoding",
    "SelfGuidanceConfig": "self_guidance:SelfGuided",
    "CompositionConfig": "steering:ComposedPolicies",
    "SteeringConfig": "steering:Steered",
    "ScorerGuidanceConfig": "steering:ScorerGuided",
}
_LEARNERS = {  # that are methods, by "room.module:Name" in learn/, with and without the room
    "critics.implicit_q_learning:IQL": "offline_rl.iql:IQL",
    "critics.advantage_weighted_actor_critic:AWAC": "offline_rl.awac:AWAC",
    "cloning.distillation:ConsistencyDistillation": "generative.consistency_policy:ConsistencyPolicy",
    "cloning.distillation:OneStepDistillation": "generative.onedp:OneDP",
    "cloning.distillation:Reflow": "generative.reflow_policy:ReflowPolicy",
}
NAMES: dict[str, str] = {  # old "module:Name": new "module:Name"
    f"understudy.robots.safety:{name}": f"understudy.robots.limits:{name}"
    for name in ("Link", "SafetyLimits", "SafetyState", "Workspace")
} | {
    f"understudy.methods.{family}:{name}": f"understudy.methods.{family}.{name}:{_CLASSES.get(name, name)}"
    for family, names in _METHODS.items() for name in names.split()
} | {
    f"understudy.execute.planner_config:{old}": f"understudy.execute.{new}" for old, new in _PLANNERS.items()
} | {
    f"understudy.data.relabel:{name}": f"understudy.data.column_changes:{name}" for name in _COLUMN_CHANGES
} | {
    f"understudy.data.relabel:{name}": f"understudy.data.text_columns:{name}" for name in ("TaskText", "ThoughtText")
} | {
    f"understudy.envs{room}.{toy}:Expert": f"understudy.envs.toys.{toy}:{toy.title().replace('_', '')}Expert"
    for room in ("", ".toys") for toy in _TOYS if toy != "mdp"
} | {
    f"understudy.envs{room}.metaworld:Expert": "understudy.envs.simulators.metaworld:MetaWorldExpert"
    for room in ("", ".simulators")
} | {
    f"understudy.learn.{old.partition('.')[2] if is_old else old}": f"understudy.methods.{new}"
    for old, new in _LEARNERS.items() for is_old in (True, False)
} | {
    f"understudy.methods.{family}:{old}": f"understudy.methods.{family}:{new}" for family, old, new in (
        ("behavior_cloning.iswbc", "DiscriminatorWeightedCloning", "ISWBC"),
        ("behavior_cloning.robust_bc", "MedianOfMeans", "RobustBC"),
        ("offline_rl.edac", "DiverseCritics", "EDAC"),
        ("offline_rl.iw_sft", "ImportanceWeightedCloning", "IWSFT"),
        ("offline_rl.prdc", "NearestActions", "PRDC"),
        ("offline_rl.spot", "SupportedActorCritic", "SPOT"),
        ("online_rl.cqn_as", "SequenceValues", "CQNAS"))
} | {
    "understudy.methods.observation_only.abco:SuccessBalancedCloning": "understudy.methods.observation_only.abco:ABCO",
    "understudy.learn.median_of_means:MedianOfMeans": "understudy.methods.behavior_cloning.robust_bc:RobustBC",
    "understudy.improve.retention:BalancedSuccess": "understudy.improve.retention:LastRounds",
    "understudy.methods.reward_matching.sarm:StageLearning": "understudy.methods.reward_matching.sarm:SARM",
    "understudy.methods.goal_conditioned.fb:ForwardBackward": "understudy.methods.goal_conditioned.fb:FB",
}


def _hierarchy(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The high-level policy of a hierarchy is a planner, and no longer a policy with an `inference`."""
    high = fields["high"]
    for part in fields.get("inference", ()):
        high = {**current_document(part), "planner": high}
    column = {"as_key": fields["column"]} if "column" in fields else {}
    return {"high": high, **column}


def _inverse_dynamics(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As `_hierarchy`, with the column of states and that of the next state."""
    columns = {k: v for k, v in fields.items() if k in ("column", "as_key")}
    return {"high": _hierarchy(fields)["high"], **columns}


def _collection_rounds(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The number of updates of a round is a rule."""
    fields = dict(fields)
    if (count := fields.pop("updates_per_step", None)) is not None:
        rule = "PerStoredStep" if fields.get("reset_learner") else "PerNewStep"
        fields["updates"] = {"$": f"understudy.improve.updates:{rule}", "count": count}
    return fields


def _joined_columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The column of what is known has another name."""
    return {"known_column" if name == "known" else name: field for name, field in fields.items()}


# Settings of TD3, SAC and CQL, which were one class, and the values with which they do nothing. `...`: whatever it is.
_NOISE = {"target_noise": ..., "max_target_noise": ..., "critic_bc_weight": 0.0}
_DENSITY = {"temperature": None, "target_entropy": None}
_CONSERVATIVE = {"conservative_weight": 0.0, "n_conservative_samples": ...}


def _without(fields: Mapping[str, Any], unread: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those of another method, as far as they do nothing."""
    return {name: field for name, field in fields.items() if name not in unread or unread[name] not in (field, ...)}


def _deterministic(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Methods that are TD3 had fields of SAC and CQL."""
    return _without(fields, _DENSITY | _CONSERVATIVE)


def _stochastic(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Methods that are SAC had fields of TD3 and CQL."""
    return _without(fields, _NOISE | _CONSERVATIVE)


def _conservative(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Methods that are CQL had fields of TD3, and another name for `n_samples`."""
    return {"n_samples" if name == "n_conservative_samples" else name: field
            for name, field in _without(fields, _NOISE).items()}


def _actor_critic(fields: Mapping[str, Any]) -> dict[str, Any]:
    """TD3, SAC and CQL were one class, which had other defaults than SAC has."""
    fields = {"bc_weight": 0.4, "policy_delay": 2, **fields}
    if fields.get("temperature") is None:
        return {"$": "understudy.learn.critics.td3:TD3", **_deterministic(fields)}
    fields = {"target_entropy": None, **fields}
    if fields.get("conservative_weight"):
        return {"$": "understudy.methods.offline_rl.cql:CQL", **_conservative(fields)}
    return {"$": "understudy.learn.critics.sac:SAC", **_stochastic(fields)}


def _without_noise_and_density(fields: Mapping[str, Any]) -> dict[str, Any]:
    """BCQ had settings of TD3, SAC and CQL, which it never read."""
    unread = {*_NOISE, *_DENSITY, *_CONSERVATIVE}
    return {name: field for name, field in fields.items() if name not in unread}


def _without_old_floor(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest range was 1e-4 in any unit by default. Statistics of before are in the checkpoints."""
    return {name: field for name, field in fields.items() if (name, field) != ("min_scale", 1e-4)}


# "module:Name", old or present: function of its JSON, without "$", that returns the present fields.
UPGRADES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "understudy.execute.planner_config:HierarchyConfig": _hierarchy,
    "understudy.execute.planner_config:InverseDynamicsConfig": _inverse_dynamics,
    "understudy.improve.collection:CollectionRounds": _collection_rounds,
    "understudy.data.codec:Normalizer": _without_old_floor,
    "understudy.data.running_normalizer:RunningNormalizer": _without_old_floor,
    "understudy.data.relabel:ConcatColumns": _joined_columns,
    "understudy.learn.critics.off_policy_actor_critic:OffPolicyActorCritic": _actor_critic,
    "understudy.learn.critics.noise_aliasing:NoiseAliasing": _stochastic,
    "understudy.methods.offline_rl.bcq:BCQ": _without_noise_and_density,
    "understudy.methods.offline_rl.cal_ql:CalQL": _conservative,
    "understudy.methods.offline_rl.edac:EDAC": _stochastic,
    **{f"understudy.methods.{name}": _deterministic for name in (
        "goal_conditioned.rig:RIG", "offline_rl.prdc:PRDC", "offline_rl.spot:SPOT", "offline_rl.tacr:TACR",
        "reward_matching.ads:ADS", "reward_matching.rot:ROT", "reward_matching.virl:VIRL")},
    "understudy.improve.retention:BalancedSuccess": lambda fields: {"keep_initial": True},  # abco's learner balances
}


def current_name(name: str) -> str:
    """Returns the present "module:Name" of a class or function that may have moved."""
    module, _, attribute = name.partition(":")
    return NAMES.get(name) or f"{MODULES.get(module, module)}:{attribute}"


def current_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON of a dataclass with its present name and fields. Nested dataclasses stay as they are."""
    old = document["$"]
    fields = {k: v for k, v in document.items() if k != "$"}
    upgrade = UPGRADES.get(old) or UPGRADES.get(current_name(old), dict)
    return {"$": current_name(old), **upgrade(fields)}
