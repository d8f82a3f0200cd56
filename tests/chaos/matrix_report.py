"""What came out of the kill matrix: {(phase, fault, role): {"pause", "rest", "retries", …} or {"broken": why}}."""

# Until the loss is noticed and another rank has the request; computing it again comes on top.
PAUSE_MAX = {"SIGKILL": 1.0, "SIGSTOP+CONT": 2.0, "SIGSTOP": 3.5, "restart": 1.0,
             "partition": 3.5, "slow link": 6.0, "bit flip": 6.0}


def table(results, phases, all_faults, roles):
    faults = [f for f in all_faults if any(r[1] == f for r in results)]
    lines = ["| phase | role | " + " | ".join(faults) + " |", "|---|---|" + "---|" * len(faults)]
    for phase in phases:
        for role in roles:
            cells = [results.get((phase, f, role)) for f in faults]
            if any(cells):
                lines.append(f"| {phase} | {role} | " + " | ".join(cell_text(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def cell_text(r):
    if r is None:
        return ""
    if "broken" in r:
        return "✗"
    text = f"✓ {r['pause']:.1f}" if r["retries"] is not None else "✓"
    return text + (f", {r['retries']}" if r["retries"] else "")


def summary(results, faults):
    """Prints the pauses; the faults whose worst one is too long."""
    slow = []
    for fault in faults:
        done = [r for (_, f, role), r in results.items() if f == fault and role != "router" and "broken" not in r]
        if not done:
            continue
        pauses, rests = sorted(r["pause"] for r in done), sorted(r["rest"] for r in done)
        print(f"{fault}: longest pauses of {len(done)} cells: median {pauses[len(done) // 2]:.2f} s, "
              f"p99 {pauses[int(len(done) * 0.99)]:.2f} s, worst {pauses[-1]:.2f} s; at rest after {rests[-1]:.2f} s at worst")
        if pauses[-1] > PAUSE_MAX[fault]:
            slow.append(fault)
    return slow
