"""Not installed: the pages of the documentation that are generated from the code, and its drawings."""

GENERATED = ("reference/commands.md", "reference/plan_fields.md", "reference/python.md")  # pages, relative to docs/
