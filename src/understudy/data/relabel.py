"""Conditioning is relabelling: functions Episode -> Episode that only add or change columns."""
