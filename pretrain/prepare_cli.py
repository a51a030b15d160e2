"""The command `hear-m2d prepare`, where installs of an earlier version look for it."""

from hear_m2d.pretrain.cli import prepare as prepare
