"""python -m empathy.train --store URL --stages FILE [--workers N ...]: a session as plain processes."""
