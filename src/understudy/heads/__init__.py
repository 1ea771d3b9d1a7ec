"""One file a head. A head says what the network's output means."""
