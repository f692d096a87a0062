"""Alerts: what somebody should look at is found, told once, watched and sent on."""
