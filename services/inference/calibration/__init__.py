"""Calibration: thresholds, calibrators and routers fit on recorded answers. Offline; serving imports nothing of it."""
