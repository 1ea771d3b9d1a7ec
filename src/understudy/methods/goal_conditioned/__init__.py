"""Goal-conditioned learning: policies that reach goals which are named while acting."""
