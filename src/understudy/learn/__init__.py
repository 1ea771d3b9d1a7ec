"""How a policy's weights come about. A learner updates; `fit` only loops."""
