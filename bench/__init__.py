"""How fast Degu is: beside the bytes' own speed limit, and beside its peers.

``python -m bench`` measures everything and writes ``bench/results``; with ``--quick``
in less than two minutes. Each section lets its competitors take turns, round after
round, so that a busy moment of the machine hits all of them, and says median, least
and most, and the ratio of the medians.
"""
