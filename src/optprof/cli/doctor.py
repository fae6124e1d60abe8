"""optprof doctor: look at this machine."""


def doctor() -> None:
    """Show what is installed, what can be measured here, and what to install for more."""
    from optprof.profiler.machine.doctor import diagnose

    section = ""
    for finding in diagnose():
        if finding.section != section:
            print(f"{finding.section}:")
            section = finding.section
        print(f"  {'+' if finding.good else '-'} {finding.name:<18} {finding.text}")
        if finding.advice:
            print(f"    {'':<18} {finding.advice}")
