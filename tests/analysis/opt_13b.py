"""Published fits of OPT-13B on A100s (DistServe's repository), in seconds."""

from moejax.analysis.pool_latency import DecodeTime, Latency, PrefillTime

ONE = Latency(PrefillTime(18.1025e-3, 0.101912e-3, 7.1223e-9), DecodeTime(19.9347e-3, 6.2694e-7, 0.038507e-3))
TWO = Latency(PrefillTime(14.7430e-3, 0.068577e-3, 2.4496e-9), DecodeTime(13.2948e-3, 3.4109e-7, 0.062963e-3))
