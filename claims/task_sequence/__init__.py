"""What must be kept of earlier tasks when a policy learns one task after another."""
