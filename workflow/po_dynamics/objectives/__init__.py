"""What is optimised: objectives as coefficients, their components and schedules. No torch, no files."""
