"""The state machine of a sweep, and the policies it applies. It knows no library."""
