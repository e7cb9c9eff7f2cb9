"""The fault campaign: ``python -m faults`` interrupts trainings at random moments and looks at what is lost."""
