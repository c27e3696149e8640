"""The paper's tables and figures, run: what to train at which scale, and a page of what came of it.

``published`` reads the tables, ``stems`` plans, ``running`` and ``jobs`` do, ``findings`` reads and ``page`` writes.
"""
