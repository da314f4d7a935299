"""A model at work with its experts in slots: loading, memory plan, and the engine. Simulates nothing."""
