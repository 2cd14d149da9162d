"""Initial values of prompts: prototypes (SPT) or uniform noise (VPT)."""
