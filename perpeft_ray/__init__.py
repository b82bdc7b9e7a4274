"""perpeft-ray: which personalised PEFT set-up is best for your catalogue."""

__version__ = "0.1.0"
