"""Networks that lose packets: the kernel drops them by rules of iptables, and nobody is told.

Needs root and iptables. The ends of a connection notice what they would of a cable that was pulled out: nothing, until
their own patience is over.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import pytest
from two_nodes import NETWORKS, NODES

Rule = Sequence[str]


def require_iptables() -> None:
    if os.geteuid() or not shutil.which("iptables"):
        pytest.skip("dropping packets needs root and iptables")
    if subprocess.run(["iptables", "-w", "-L", "INPUT", "-n"], capture_output=True).returncode:
        pytest.skip("this machine's kernel has no rules for packets")


def port_rules(port: int) -> list[Rule]:
    """What reaches or leaves a port of this machine."""
    return [["-p", "tcp", way, str(port)] for way in ("--dport", "--sport")]


def node_rules(place: int) -> list[Rule]:
    """What a node of `two_nodes` sends, and, by rules in its own network, what it is sent."""
    return [["-s", NODES[place]], [NETWORKS[place], "!", "-i", "lo"]]


@contextlib.contextmanager
def dropped(rules: Sequence[Rule]) -> Iterator[None]:
    """Within this block, packets to which one of the rules applies do not arrive. A rule that begins with the name of
    a network applies there. Some must have come, or the block has shown nothing."""
    try:
        for rule in rules:
            _iptables("-I", rule)
        yield
        assert any(_packets(rule) for rule in rules), "no packet was dropped"
    finally:
        for rule in rules:
            with contextlib.suppress(subprocess.CalledProcessError):
                _iptables("-D", rule)


def _iptables(action: str, rule: Rule) -> None:
    network, words = _split(rule)
    subprocess.run([*network, "iptables", "-w", action, "INPUT", *words, "-j", "DROP"], check=True)


def _packets(rule: Rule) -> int:
    """How many packets the first rules of this rule's network have dropped."""
    network, _ = _split(rule)
    words = [*network, "iptables", "-w", "-L", "INPUT", "-v", "-x", "-n"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    return sum(int(line.split()[0]) for line in lines[2:] if " DROP " in line)


def _split(rule: Rule) -> tuple[list[str], Rule]:
    if rule[0] in NETWORKS:
        return ["ip", "netns", "exec", rule[0]], rule[1:]
    return [], rule
