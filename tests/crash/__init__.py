"""Repairs that are cut off: cancelled at every step of the scheduler, and killed at every call and statement.

What is told (receipts) is compared with what is stored, which is read past the engine and past the stores' own methods.
"""
