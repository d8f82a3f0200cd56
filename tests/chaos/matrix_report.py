"""What came out of the kill matrix: {(phase, fault, role): [{"pause", "leased", "rest", "retries", …} or {"broken": why}]}."""

# Until the loss is noticed and another rank has the request; computing it again comes on top.
PAUSE_MAX = {"SIGKILL": 1.0, "SIGSTOP+CONT": 2.0, "SIGSTOP": 3.0, "restart": 1.0,
             "partition": 3.5, "slow link": 6.0, "bit flip": 6.0}


def table(runs, phases, all_faults, roles):
    faults = [f for f in all_faults if any(cell[1] == f for cell in runs)]
    lines = ["| phase | role | " + " | ".join(faults) + " |", "|---|---|" + "---|" * len(faults)]
    for phase in phases:
        for role in roles:
            cells = [runs.get((phase, f, role)) for f in faults]
            if any(cells):
                lines.append(f"| {phase} | {role} | " + " | ".join(cell_text(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def cell_text(rs):
    """The run with the longest pause stands for all."""
    if not rs:
        return ""
    if any("broken" in r for r in rs):
        return "✗"
    r = max(rs, key=lambda r: r["pause"])
    text = f"✓ {r['pause']:.1f}" if r["retries"] is not None else "✓"
    return text + (f", {r['retries']}" if r["retries"] else "")


def summary(runs, faults):
    """Prints the pauses; the faults whose 99th of a hundred is too long."""
    slow = []
    for fault in faults:
        done = [r for (_, f, role), rs in runs.items() for r in rs if f == fault and role != "router" and "broken" not in r]
        if not done:
            continue
        pauses, leased, rests = (sorted(r[k] for r in done) for k in ("pause", "leased", "rest"))
        p99 = pauses[(99 * len(done) + 99) // 100 - 1]  # the smallest that 99 % do not exceed
        print(f"{fault}: longest pauses of {len(done)} runs: median {pauses[len(done) // 2]:.2f} s, p99 {p99:.2f} s, "
              f"worst {pauses[-1]:.2f} s; leases until {leased[-1]:.2f} s, at rest after {rests[-1]:.2f} s at worst")
        if p99 > PAUSE_MAX[fault]:
            slow.append(fault)
    return slow
