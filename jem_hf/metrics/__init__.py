"""Numbers of arrays: prediction, calibration, intervals, distances."""
