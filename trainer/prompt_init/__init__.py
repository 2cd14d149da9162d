"""Initial values of prompts: prototypes (SPT) or uniform noise (VPT), and the prototype cache."""
