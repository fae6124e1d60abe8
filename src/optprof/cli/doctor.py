"""optprof doctor: look at this machine."""

from optprof.reports.streams import wrapped


def doctor() -> None:
    """Show what is installed, what can be measured here, and how to install the rest."""
    from optprof.profiler.machine.doctor import diagnose

    section = ""
    for finding in diagnose():
        if finding.section != section:
            print(f"{finding.section}:")
            section = finding.section
        name = f"  {'+' if finding.good else '-'} {finding.name:<18}"
        print(wrapped(f"{name} {finding.text}", len(name) + 1))
        if finding.advice:
            print(wrapped(f"{'':<{len(name)}} {finding.advice}", len(name) + 1))
