"""Bad inputs of every kind, each with a part of the message that refuses it."""
